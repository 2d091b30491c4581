#!/usr/bin/env python
"""How fast patterns are loaded, and what that costs a training step: python benchmarks/loading.py
--out DIR

Three rates, in samples (groups of patterns) a second over all ranks: IO, the loader alone;
SYNTHETIC, the step alone on one batch that lies there; FULL, both together as in training. Loading
is free where FULL is the smaller of the other two. Patterns are streamed from a page cache that
holds the file (warm) or nothing of it (cold), or held in memory. The step is that of
configs/default.yaml.

Other processes of the machine disturb all three, so they take turns, and medians are told; FULL is
compared with the two of its own turn. CPU seconds, which a busy machine changes less, stand beside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from page_cache import bring_into_page_cache, drop_from_page_cache, part_in_page_cache
from ranks import on_ranks
from torch.nn.parallel import DistributedDataParallel

from ptycho_dist.config import Config, make_parser, read_config
from ptycho_dist.data import placement
from ptycho_dist.data.batches import HeldBatches, Samples, StreamedBatches, make_batches
from ptycho_dist.data.npz_writer import write_npz_scan
from ptycho_dist.data.prepare import prepare
from ptycho_dist.distributed import largest, sum_floats
from ptycho_dist.model.gradients import limit_surprise
from ptycho_dist.training.processes import quieten_lightning, resolve_precision
from ptycho_dist.training.start import Start

CONFIG = Path(__file__).parents[1] / "configs" / "default.yaml"
STATES = ("streamed, warm", "streamed, cold", "held")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for the scan and loading.json"
    )
    parser.add_argument("--patterns", type=int, default=8192, help="of the scan that is written")
    parser.add_argument("--size", type=int, default=64, help="N")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=5, help="training steps a turn")
    parser.add_argument(
        "--batches", type=int, default=100, help="batches a turn of the loader alone"
    )
    parser.add_argument("--turns", type=int, default=21)
    arguments = parser.parse_args()
    scan = write_scan(
        arguments.out / f"{arguments.patterns}_{arguments.size}.npz",
        arguments.patterns,
        arguments.size,
    )
    rows: list[dict[str, Any]] = []
    for num_ranks in arguments.ranks:
        for row in measure(num_ranks, scan, arguments):
            rows.append(row)
            show(row, with_head=len(rows) == 1)
        settings = {
            "patterns": arguments.patterns,
            "size": arguments.size,
            "bytes": scan.stat().st_size,
            "turns": arguments.turns,
        }
        settings |= {
            "steps": arguments.steps,
            "batches": arguments.batches,
            "torch": torch.__version__,
        }
        (arguments.out / "loading.json").write_text(
            json.dumps({**settings, "rows": rows}, indent=1) + "\n"
        )


def write_scan(path: Path, num_patterns: int, size: int) -> Path:
    """A raster scan of counts that mean nothing."""
    random = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(num_patterns)))
    y, x = np.indices((size, size)) - size / 2
    probe = np.exp(-(y**2 + x**2) / (2 * (size / 6) ** 2))
    write_npz_scan(
        path,
        diffraction=np.sqrt(random.poisson(1.0, (num_patterns, size, size)).astype(np.float32)),
        positions_px=size + 3.0 * np.stack(np.divmod(np.arange(num_patterns), side), axis=1),
        probe=probe.astype(np.complex64),
        transmission=np.ones((3 * side + 2 * size,) * 2, np.complex64),
        nphotons=float(size**2),
        settings={},
    )
    return path


def measure(num_ranks: int, scan: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of one number of ranks, each rank a process of its own with one thread."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    turns = on_ranks(num_ranks, turns_of_rank, scan, arguments, backend=backend)
    for state in STATES:
        io, synthetic, full = (turns[f"{what} {state}"] for what in ("IO", "SYNTHETIC", "FULL"))
        parts = [
            one.rate / min(two.rate, three.rate)
            for one, two, three in zip(full, io, synthetic, strict=True)
        ]
        yield {
            "ranks": num_ranks,
            "patterns": state,
            **{
                f"{name}_samples_per_s": median(turn.rate for turn in rows)
                for name, rows in rates(io, synthetic, full)
            },
            **{
                f"{name}_cpu_ms_per_sample": median(turn.cpu_ms for turn in rows)
                for name, rows in rates(io, synthetic, full)
            },
            "full_of_smaller": median(parts),
            "cached": median(turn.cached for turn in io),
        }


def rates(io: Any, synthetic: Any, full: Any) -> list[tuple[str, Any]]:
    return [("io", io), ("synthetic", synthetic), ("full", full)]


def median(values: Any) -> float:
    return float(f"{statistics.median(values):.4g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Samples a second over all ranks, CPU milliseconds a sample, and the part of the file that lay
    in the page cache before."""

    rate: float
    cpu_ms: float
    cached: float


def turns_of_rank(scan: Path, arguments: argparse.Namespace) -> dict[str, list[Turn]]:
    quieten_lightning()
    return Rank(default_config(scan), scan, arguments).turns()


def default_config(scan: Path) -> Config:
    arguments = [f"--config={CONFIG}", f"--data.path={scan}"]
    return read_config(make_parser("").parse_args(arguments))


class Rank:
    """One process of the measurement."""

    def __init__(self, config: Config, scan: Path, arguments: argparse.Namespace) -> None:
        self.scan = scan
        self.arguments = arguments
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.loaders = {held: self._loader(config, held) for held in (False, True)}
        self.precision = resolve_precision(config.train.precision)
        self.module = Start(config=config).module(self.data).to(self.device)
        self.model: torch.nn.Module = self.module
        if dist.get_world_size() > 1:
            self.model = DistributedDataParallel(self.module, broadcast_buffers=False)
        self.optimizer = self.module.configure_optimizers()
        self.resident = self._on_device(next(iter(self.loaders[True])))
        self.epoch = 0
        if (found := min(map(len, self.loaders.values()))) <= max(
            arguments.batches, arguments.steps
        ):
            raise SystemExit(
                f"an epoch has {found} batches: take more --patterns, or fewer --batches and "
                "--steps"
            )

    def _loader(self, config: Config, held: bool) -> StreamedBatches | HeldBatches:
        placement.LARGEST_PART = 1.0 if held else 0.0
        self.data = prepare(config.data)
        self.global_batch_size = config.train.global_batch_size
        if self.data.placement.held != held:
            raise SystemExit("this machine has no room to hold the patterns: take fewer --patterns")
        return make_batches(self.data, config.train)[0]

    def turns(self) -> dict[str, list[Turn]]:
        steps, batches = self.arguments.steps, self.arguments.batches
        resident = repeat(self.resident)
        self._timed(3, resident, self._step)  # what the first steps do once
        turns: dict[str, list[Turn]] = {}
        for _ in range(self.arguments.turns):
            for state in STATES:
                turns.setdefault(f"SYNTHETIC {state}", []).append(
                    self._timed(steps, resident, self._step)
                )
                for what, count, use in (
                    ("IO", batches, lambda batch: None),
                    ("FULL", steps, self._step),
                ):
                    turns.setdefault(f"{what} {state}", []).append(self._loaded(state, count, use))
        return turns

    def _loaded(self, state: str, count: int, use: Callable[[Samples], None]) -> Turn:
        """Of `count` batches, each used; in an order of their own, after one that fills the
        pipeline."""
        cached = self._drop_cache() if state.endswith("cold") else self._fill_cache()
        loader = self.loaders[state == "held"]
        self.epoch += 1
        loader.batch_sampler.set_epoch(self.epoch)  # type: ignore[union-attr]
        batches = map(self._on_device, loader)
        use(next(batches))
        return replace(self._timed(count, batches, use), cached=cached)

    def _step(self, batch: Samples) -> None:
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16-mixed"
        ):
            predicted = self.model(batch)
        self.module.loss(predicted, batch.x_norm).backward()
        limit_surprise(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _timed(
        self, count: int, batches: Iterator[Samples], use: Callable[[Samples], None]
    ) -> Turn:
        """Of `count` batches the slowest rank's time, and all ranks' CPU time."""
        largest([0.0])  # all begin together
        started, cpu_started = time.perf_counter(), time.process_time()
        for _ in range(count):
            use(next(batches))
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        cpu = time.process_time() - cpu_started
        seconds = largest([time.perf_counter() - started])[0]
        samples = count * self.global_batch_size
        return Turn(
            rate=samples / seconds,
            cpu_ms=1e3 * float(sum_floats(torch.tensor(cpu))) / samples,
            cached=1.0,
        )

    def _on_device(self, batch: Samples) -> Samples:
        return Samples(*(field.to(self.device, non_blocking=True) for field in batch))

    def _drop_cache(self) -> float:
        drop_from_page_cache(self.scan)
        largest([0.0])
        cached = part_in_page_cache(self.scan)
        largest([0.0])  # nobody reads before all have looked
        return cached

    def _fill_cache(self) -> float:
        bring_into_page_cache(self.scan)
        return part_in_page_cache(self.scan)


def show(row: dict[str, Any], *, with_head: bool) -> None:
    if with_head:
        print(
            "| ranks | patterns | IO | SYNTHETIC | FULL | FULL / smaller | CPU ms a sample: IO | "
            "SYNTHETIC | FULL | in page cache |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
    values = [f"{row[f'{name}_samples_per_s']:.4g}" for name in ("io", "synthetic", "full")]
    cpu = [f"{row[f'{name}_cpu_ms_per_sample']:.3g}" for name in ("io", "synthetic", "full")]
    cells = [
        row["ranks"],
        row["patterns"],
        *values,
        f"{row['full_of_smaller']:.3f}",
        *cpu,
        f"{row['cached']:.0%}",
    ]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
