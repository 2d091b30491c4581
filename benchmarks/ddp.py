#!/usr/bin/env python
"""What it costs a training step to be one of two ranks: python benchmarks/ddp.py --out DIR

The same work a rank, one thread each (or one GPU each, where there are two): one process alone; two
side by side that know nothing of each other, which shows what they cost each other on this machine;
two under DDP, with several settings of its gradient buckets. All take turns in one run; a figure is
the fewest seconds of the slower rank. Efficiency is the time alone over the time under DDP; the
other ratio, side by side over DDP, leaves out what the machine itself can't do twice at once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training_step import Step, default_module, precisions, samples, shape_module

from ptycho_dist.distributed import average_gradients, largest
from ptycho_dist.model.corrections import MOST_CORRECTIONS

NETWORKS: dict[str, tuple[Callable[[torch.device], Any], int]] = {
    "default": (default_module, 4),
    "reference": (shape_module, 1),
}
"""What makes the module, and C."""

SETTINGS: dict[str, dict[str, Any]] = {
    "as in training": {},
    "buckets of 1 MB": {"bucket_cap_mb": 1},
    "gradients copied": {"gradient_as_bucket_view": False},
}
"""Of DDP, where they are other than in training."""


def main() -> None:
    """Time, print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for ddp.json; made if missing"
    )
    parser.add_argument(
        "--samples", type=int, default=8, help="a rank and step: groups of C patterns"
    )
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        ranks = [
            context.Process(
                target=run_rank, args=(rank, store, arguments.samples, arguments.turns, results)
            )
            for rank in range(2)
        ]
        for process in ranks:
            process.start()
        rows = results.get()
        for process in ranks:
            process.join()
    print(
        "| network | precision | gradients, MB | DDP | alone, ms | side by side, ms | DDP, ms | "
        "efficiency | side by side / DDP |"
    )
    print("|---" * 9 + "|")
    for row in rows:
        times = [f"{row[name]:.2f}" for name in ("alone_ms", "side_by_side_ms", "ddp_ms")]
        ratios = [f"{row[name]:.3f}" for name in ("efficiency", "of_side_by_side")]
        print(
            "| "
            + " | ".join(
                [
                    row["network"],
                    row["precision"],
                    f"{row['gradients_mb']:.2f}",
                    row["ddp"],
                    *times,
                    *ratios,
                ]
            )
            + " |"
        )
    content = {
        "samples": arguments.samples,
        "turns": arguments.turns,
        "torch": torch.__version__,
        "rows": rows,
    }
    (arguments.out / "ddp.json").write_text(json.dumps(content, indent=1) + "\n")


def run_rank(rank: int, store: str, batch: int, turns: int, results: Any) -> None:
    torch.set_num_threads(1)
    on_gpus = torch.cuda.device_count() >= 2
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpus else "gloo", init_method=store, rank=rank, world_size=2
    )
    rows = [
        row
        for network in NETWORKS
        for precision in precisions(device)
        for row in measure(network, precision, batch, turns, device)
    ]
    if rank == 0:
        results.put(rows)
        results.close()
        results.join_thread()
    dist.barrier()
    dist.destroy_process_group()


def measure(
    network: str, precision: str, batch: int, turns: int, device: torch.device
) -> list[dict[str, Any]]:
    make, group_size = NETWORKS[network]
    patterns = samples(batch, group_size, device)
    module = make(device)
    loss = module.loss
    apart = Step(
        module,
        precision,
        patterns,
        loss=lambda predicted, x_norm: loss.deviance(predicted, x_norm).mean(dtype=torch.float64),
    )
    steps = {"alone": apart, "side by side": apart}
    for name, settings in SETTINGS.items():
        module = make(device)
        model = DistributedDataParallel(
            module, **{"broadcast_buffers": False, "gradient_as_bucket_view": True, **settings}
        )
        model.register_comm_hook(None, average_gradients)
        steps[name] = Step(module, precision, patterns, model=model)
    best = dict.fromkeys(steps, float("inf"))
    for turn in range(turns + 1):
        for name, step in steps.items():
            seconds = timed(step if name != "alone" or dist.get_rank() == 0 else None, device)
            if turn:  # the first makes plans and buffers
                best[name] = min(best[name], seconds)
    ms = {name: 1e3 * seconds for name, seconds in best.items()}
    size = sum(parameter.numel() for parameter in apart.module.parameters()) * 4e-6
    times = {"alone_ms": ms["alone"], "side_by_side_ms": ms["side by side"]}
    return [
        {
            "network": network,
            "precision": precision,
            "gradients_mb": size,
            "ddp": name,
            **times,
            "ddp_ms": ms[name],
        }
        | {"efficiency": ms["alone"] / ms[name], "of_side_by_side": ms["side by side"] / ms[name]}
        for name in SETTINGS
    ]


def timed(step: Step | None, device: torch.device) -> float:
    """Seconds of one step, of the slower rank; a rank without one waits."""
    largest([0.0])  # both begin together
    started = time.perf_counter()
    # as many steps as there are kinds of them
    for _ in range(MOST_CORRECTIONS if step is not None else 0):
        step()  # type: ignore[misc]
    if device.type == "cuda":
        torch.cuda.synchronize()
    return largest([time.perf_counter() - started])[0] / MOST_CORRECTIONS


if __name__ == "__main__":
    main()
