#!/usr/bin/env python
"""A training step in multiples of a plain reference network's: python benchmarks/training_step.py
--out DIR

The reference, in stock PyTorch, is an autoencoder of a known peer's shape: N = 64, one pattern a
sample, widths 64-128-256 and back, an amplitude and a phase decoder with a branch each for the
border, 2.3 million parameters; float32, plain Adam, mean squared error, batch 16. The peer's own
step, with its physics and loss, takes 1.05 to 1.13 times as long. Compared are the same network in
this package's step (physics, scaled Poisson loss, checks, optimiser), and the network of
configs/default.yaml.

The arithmetic of a step's convolutions and matrix products (FFTs and what works pixel by pixel not
counted) is compared with what the machine does in one large matrix product of the same precision.

A turn times every step once; a figure is the minimum over the turns, and multiples compare minima
of one run. `--profile` also shows which operations the default network's step spends its time in.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ptycho_dist.config import Config, make_parser, read_config
from ptycho_dist.data.batches import Samples
from ptycho_dist.model.corrections import MOST_CORRECTIONS
from ptycho_dist.model.gradients import limit_surprise
from ptycho_dist.model.lightning_module import PtychographyModule
from ptycho_dist.physics.simulated_probes import make_probe
from ptycho_dist.scale.calibration import Calibration

CONFIG = Path(__file__).parents[1] / "configs" / "default.yaml"
SIZE = 64
PEERS_MULTIPLE = (1.05, 1.13)
"""Of the reference's step, that the peer's own takes: float32, one thread, physics and loss
included."""


def main() -> None:
    """Time, print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for training_step.json; made if missing"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="where there is no GPU"
    )
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[16, 64],
        help="samples a step: groups of C patterns",
    )
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also show where the default network's step spends its time",
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    for threads in arguments.threads if device.type == "cpu" else [1]:
        torch.set_num_threads(threads)
        rows += measure(threads, arguments.batches, arguments.turns, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    content = {"device": name, "turns": arguments.turns, "torch": torch.__version__, "rows": rows}
    (arguments.out / "training_step.json").write_text(json.dumps(content, indent=1) + "\n")
    if arguments.profile:
        for precision in precisions(device):
            print(
                f"\n{precision}, C = 4, {arguments.batches[0]} samples\n"
                + profile_of(default_step(precision, 4, arguments.batches[0], device))
            )


def measure(
    threads: int, batches: list[int], turns: int, device: torch.device
) -> list[dict[str, Any]]:
    """Rows of one number of threads, printed as a table."""
    steps = {("reference", "32", 1, 16): reference_step(device)}
    for precision in precisions(device):
        steps["reference network, our step", precision, 1, 16] = shape_step(precision, 16, device)
        for group_size in (1, 4):
            for batch in batches:
                steps["default network", precision, group_size, batch] = default_step(
                    precision, group_size, batch, device
                )
    seconds = fastest(steps, turns, device)
    yardstick = seconds["reference", "32", 1, 16]
    peak = {precision: product_gflops(precision, device) for precision in precisions(device)}
    products = ", ".join(f"{gflops:.0f} in {precision}" for precision, gflops in peak.items())
    print(
        f"\n{threads} thread(s), {device}; GFLOP/s of a matrix product: {products}; GB/s of a "
        f"copy: {copy_gb_per_s(device):.1f}\n"
    )
    print(
        "| step | precision | C | samples | ms | multiple | multiple a pattern | GFLOP/s | of a "
        "product's |\n" + "|---" * 9 + "|"
    )
    rows = []
    for (name, precision, group_size, batch), time_taken in seconds.items():
        multiple = time_taken / yardstick
        row = {
            "step": name,
            "precision": precision,
            "C": group_size,
            "samples": batch,
            "threads": threads,
        }
        row |= {
            "ms": 1e3 * time_taken,
            "multiple": multiple,
            "multiple_a_pattern": multiple * 16 / (batch * group_size),
        }
        row["gflops"] = gflop_of(steps[name, precision, group_size, batch]) / time_taken
        row["of_a_product"] = row["gflops"] / peak[precision]
        rows.append(row)
        cells = [
            name,
            precision,
            group_size,
            batch,
            f"{row['ms']:.2f}",
            f"{multiple:.3f}",
            f"{row['multiple_a_pattern']:.3f}",
        ]
        cells += [f"{row['gflops']:.0f}", f"{row['of_a_product']:.3f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return rows


def precisions(device: torch.device) -> list[str]:
    return ["32", "bf16-mixed"] if device.type == "cpu" else ["32", "tf32", "bf16-mixed"]


def fastest(
    steps: dict[Any, Callable[[], Any]], turns: int, device: torch.device
) -> dict[Any, float]:
    """Seconds of each step, the fewest of some turns."""
    best = dict.fromkeys(steps, float("inf"))
    for turn in range(turns + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(MOST_CORRECTIONS):  # as many steps as there are kinds of them
                step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first makes plans and buffers
                best[name] = min(best[name], (time.perf_counter() - started) / MOST_CORRECTIONS)
    return best


def gflop_of(step: Callable[[], None]) -> float:
    """1e9 multiplications and additions of a step's convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        for _ in range(MOST_CORRECTIONS):
            step()
    return counter.get_total_flops() / MOST_CORRECTIONS / 1e9


def product_gflops(precision: str, device: torch.device) -> float:
    """What the machine does in one product of square matrices."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.rand(
        2,
        side,
        side,
        device=device,
        dtype=torch.bfloat16 if precision == "bf16-mixed" else torch.float32,
    )
    use_precision(precision)
    return 2 * side**3 / fastest({"product": lambda: torch.mm(a, b)}, 5, device)["product"] / 1e9


def copy_gb_per_s(device: torch.device) -> float:
    """Read and written, of 512 MB."""
    source = torch.zeros(128 << 20, device=device)
    target = torch.empty_like(source)
    return (
        2 * source.nbytes / fastest({"copy": lambda: target.copy_(source)}, 3, device)["copy"] / 1e9
    )


def use_precision(precision: str) -> None:
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def reference_step(device: torch.device) -> Callable[[], None]:
    network = ReferenceNetwork().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    patterns, patches = (
        torch.rand(16, 1, SIZE, SIZE, device=device),
        torch.rand(16, 2, SIZE, SIZE, device=device),
    )

    def step() -> None:
        use_precision("32")
        F.mse_loss(network(patterns), patches).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def shape_step(precision: str, batch: int, device: torch.device) -> Callable[[], None]:
    return Step(shape_module(device), precision, samples(batch, 1, device))


def default_step(
    precision: str, group_size: int, batch: int, device: torch.device
) -> Callable[[], None]:
    return Step(default_module(device), precision, samples(batch, group_size, device))


def shape_module(device: torch.device) -> CountingModule:
    """This package's module, with the reference network in the place of its own.

    Its first layer sees one channel, which has no layout that could follow through the others: here
    the weights say which.
    """
    module = default_module(device)
    network = AsCorrection(ReferenceNetwork()).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    module.network = network
    return module


def default_module(device: torch.device) -> CountingModule:
    probe = torch.from_numpy(make_probe("disk", SIZE, 24.0, 0.0)).to(torch.complex64)
    calibration = Calibration(
        intensity_scale=10.0,
        nphotons=(10.0 * SIZE / 2) ** 2,
        nphotons_source="config",
        rms_factor=1.0,
        mean_energy=(SIZE / 2) ** 2,
        num_patterns=1,
        pattern_size=SIZE,
    )
    probes = probe.reshape(1, -1, SIZE, SIZE)
    module = CountingModule(default_config().model, calibration, probes, learning_rate=1e-3)
    return module.to(device)


def default_config() -> Config:
    return read_config(make_parser("").parse_args([f"--config={CONFIG}"]))


class CountingModule(PtychographyModule):
    """Knows its step without a trainer: the number of corrections changes with it."""

    steps = 0

    @property
    def global_step(self) -> int:
        return self.steps


def samples(batch: int, group_size: int, device: torch.device) -> Samples:
    """Patterns that mean nothing, of the right energy, at neighbouring positions."""
    generator = torch.Generator().manual_seed(0)
    x_norm = torch.rand(batch, group_size, SIZE, SIZE, generator=generator) * (3**0.5 / 2)
    positions_px = SIZE / 2 + 5 * torch.rand(
        batch, group_size, 2, generator=generator, dtype=torch.float64
    )
    return Samples(
        x_norm.to(device),
        positions_px.to(device),
        torch.zeros(batch, dtype=torch.int64, device=device),
    )


class Step:
    """Forward, loss, backward, checks and optimiser, as in training.

    `model` is the module as DDP wraps it, where it does; `loss` the module's own, if not another.
    """

    def __init__(
        self,
        module: CountingModule,
        precision: str,
        batch: Samples,
        *,
        model: nn.Module | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.module, self.batch, self.precision = module, batch, precision
        self.model, self.loss = model or module, loss or module.loss
        self.optimizer = module.configure_optimizers()

    def __call__(self) -> None:
        module, batch = self.module, self.batch
        use_precision(self.precision)
        with torch.autocast(
            batch.x_norm.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16-mixed"
        ):
            predicted = self.model(batch)
        self.loss(predicted, batch.x_norm).backward()
        limit_surprise(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        module.steps += 1


def profile_of(step: Callable[[], None]) -> str:
    """Where the time of three steps goes, the dearest operations first."""
    for _ in range(MOST_CORRECTIONS):
        step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiler:
        for _ in range(MOST_CORRECTIONS):
            step()
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=50)


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3 x 3 convolutions."""
    first, second = (
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
    )
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


class ReferenceDecoder(nn.Module):
    """(B, 256, 8, 8) to (B, 1, 64, 64): the middle 32 x 32 pixels from 63 channels, the border from
    the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Upsample(scale_factor=2)
        self.levels = nn.Sequential(self.widen, block(256, 128), self.widen, block(128, 64))
        self.middle = nn.Conv2d(63, 1, 3, padding=1)
        self.border = nn.Sequential(block(1, 64), self.widen, nn.Conv2d(64, 1, 3, padding=1))
        is_border = torch.ones(SIZE, SIZE)
        is_border[16:-16, 16:-16] = 0
        self.register_buffer("is_border", is_border, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.levels(x)
        return (
            F.pad(self.middle(x[:, :-1]), (16, 16, 16, 16))
            + self.border(x[:, -1:]) * self.is_border
        )


class ReferenceNetwork(nn.Module):
    """(B, 1, 64, 64) to (B, 2, 64, 64), amplitude and phase."""

    def __init__(self) -> None:
        super().__init__()
        halve = nn.MaxPool2d(2)
        self.encoder = nn.Sequential(
            block(1, 64), halve, block(64, 128), halve, block(128, 256), halve
        )
        self.amplitude, self.phase = ReferenceDecoder(), ReferenceDecoder()

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        return torch.cat((self.amplitude(x), self.phase(x)), dim=1)


class AsCorrection(nn.Module):
    """Calls a network of one pattern the way this package calls its own; probe, estimate and mask
    are of no use to it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, x_norm: Tensor, probe: Tensor, estimate: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        amplitude, phase = self.network(x_norm.reshape(-1, 1, SIZE, SIZE)).float().unbind(dim=1)
        return torch.polar(1 + amplitude, phase).view(x_norm.shape)


if __name__ == "__main__":
    main()
