#!/usr/bin/env python
"""Seconds from a command to its first training step, or to its end: python benchmarks/start_up.py
--out DIR

On a scan so small that the work itself takes next to nothing. Two tables.

Commands: by the clock and in CPU seconds (of torchrun, all its processes), beside bare imports of
PyTorch and Lightning. They take turns, and the least of all turns is told, since other work can
only slow a turn down; ratios are of CPU seconds.

Training: what its seconds go into, by CPU, and, of the imports, which packages they are (`python -X
importtime`, each package's own time).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

LAUNCH = Path(__file__).parents[1] / "launch"
CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SMALL_SCAN = [
    "--simulation.scan_shape=[6, 6]",
    "--simulation.pattern_size=32",
    "--simulation.probe_diameter_px=16",
]
MARKS = "START_UP_MARKS"
"""Variable of the environment: file that a training process leaves its marks in, and ends after its
first step."""
STAGES = ("Python and imports", "configuration", "data", "first step")


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Seconds by the clock and of the CPU, and CPU seconds of a training process when each stage
    was over."""

    seconds: float
    cpu_s: float
    marks: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="directory for start_up.json, and a folder of what it takes",
    )
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    commands = prepare(arguments.out / "start_up", torch.cuda.device_count() or 2)
    turns: dict[str, list[Turn]] = {name: [] for name in commands}
    for _ in range(arguments.turns):
        for name, command in commands.items():
            turns[name].append(timed(command, arguments.out / "start_up" / "marks.json"))
    rows = rows_of_commands(turns)
    show(rows, "| command | seconds | CPU seconds | of import torch | of import lightning |")
    stages = rows_of_stages([turn.marks for turn in turns["train, 1 rank, to the first step"]])
    show(stages, "| training, 1 rank | CPU seconds |")
    packages = rows_of_packages(
        [import_times("ptycho_dist.training.train") for _ in range(arguments.turns)]
    )
    show(packages, "| imports of training | seconds |")
    content = {"turns": arguments.turns, "commands": rows, "stages": stages, "packages": packages}
    (arguments.out / "start_up.json").write_text(json.dumps(content, indent=1) + "\n")


def prepare(folder: Path, num_ranks: int) -> dict[str, list[str]]:
    """A scan, a trained network and a reconstruction; gives the commands, what follows the name of
    Python."""
    scan, run, out = folder / "scan.npz", folder / "run", folder / "reconstruction"
    folder.mkdir(parents=True, exist_ok=True)
    train = [
        f"--config={CONFIG}",
        f"--data.path={scan}",
        "--train.epochs=1",
        "--model.base_width=4",
        "--train.precision=32",
    ]
    infer = [str(LAUNCH / "infer.py"), f"--bundle={run / 'bundle.zip'}", str(scan), f"--out={out}"]
    evaluate = [
        str(LAUNCH / "evaluate.py"),
        f"--reconstruction={out / 'reconstruction.npz'}",
        f"--reference={scan}",
        f"--out={out}",
    ]
    if not (run / "bundle.zip").exists():
        call([str(LAUNCH / "simulate.py"), f"--config={CONFIG}", f"--out={scan}", *SMALL_SCAN])
        call([str(LAUNCH / "train.py"), *train, f"--train.run_dir={run}"])
        call(infer)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    to_first_step = [
        __file__,
        str(LAUNCH / "train.py"),
        *train,
        f"--train.run_dir={folder / 'again'}",
    ]
    return {
        "python -c pass": ["-c", "pass"],
        "import torch": ["-c", "import torch"],
        "import lightning": ["-c", "import lightning"],
        "import ptycho_dist": ["-c", "import ptycho_dist"],
        "from ptycho_dist import derive_intensity_scale": [
            "-c",
            "from ptycho_dist import derive_intensity_scale",
        ],
        "train --help": [str(LAUNCH / "train.py"), "--help"],
        "train, 1 rank, to the first step": to_first_step,
        f"train, {num_ranks} ranks, to the first step": [*torchrun, *to_first_step],
        "infer": infer,
        "evaluate": evaluate,
    }


def call(arguments: Sequence[str], **environment: str) -> str:
    """Run Python with one thread; gives what it wrote."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stdout}")
    return done.stdout


def timed(command: Sequence[str], marks: Path) -> Turn:
    marks.unlink(missing_ok=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    call(command, **{MARKS: str(marks)})
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Turn(
        seconds=seconds, cpu_s=cpu_s, marks=json.loads(marks.read_text()) if marks.exists() else {}
    )


def rows_of_commands(turns: dict[str, list[Turn]]) -> list[dict[str, Any]]:
    least = {name: min(turn.cpu_s for turn in of_command) for name, of_command in turns.items()}
    return [
        {
            "command": name,
            "seconds": rounded(min(turn.seconds for turn in of_command)),
            "cpu_s": rounded(least[name]),
            "of_torch": rounded(least[name] / least["import torch"]),
            "of_lightning": rounded(least[name] / least["import lightning"]),
        }
        for name, of_command in turns.items()
    ]


def rows_of_stages(marks: list[dict[str, float]]) -> list[dict[str, Any]]:
    """From the least of each stage."""
    rows = []
    for number, stage in enumerate(STAGES):
        before = STAGES[number - 1] if number else None
        rows.append(
            {
                "stage": stage,
                "cpu_s": rounded(
                    min(turn[stage] - (turn[before] if before else 0.0) for turn in marks)
                ),
            }
        )
    return rows


def import_times(module: str) -> dict[str, float]:
    """Seconds that the modules of each package take themselves."""
    packages: dict[str, float] = {}
    for line in call(["-X", "importtime", "-c", f"import {module}"]).splitlines():
        if match := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)", line):
            packages[match[2]] = packages.get(match[2], 0.0) + int(match[1]) / 1e6
    return packages


def rows_of_packages(turns: list[dict[str, float]], most: int = 12) -> list[dict[str, Any]]:
    """Of the turn that took least."""
    packages = min(turns, key=lambda turn: sum(turn.values()))
    largest = sorted(packages, key=lambda name: -packages[name])[:most]
    rows = [{"package": name, "seconds": rounded(packages[name])} for name in largest]
    return [*rows, {"package": "all", "seconds": rounded(sum(packages.values()))}]


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def show(rows: Sequence[dict[str, Any]], head: str) -> None:
    print(f"{head}\n|{'---|' * (head.count('|') - 1)}")
    for row in rows:
        print(
            "| "
            + " | ".join(
                f"{value:g}" if isinstance(value, float) else str(value) for value in row.values()
            )
            + " |"
        )
    print(flush=True)


# --- In a training process


def train_to_first_step(script: str, arguments: list[str]) -> None:
    """Run a script of `launch/` until it has made a step, and leave the CPU seconds at which each
    stage was over."""
    import runpy

    marks: dict[str, float] = {}

    def mark_after(owner: Any, name: str, stage: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def marked(*given: Any, **named: Any) -> Any:
            result = original(*given, **named)
            marks[stage] = time.process_time()
            if stage == STAGES[-1]:
                leave(marks)
            return result

        setattr(owner, name, marked)

    # What training imports anyway; so that all of it falls into the first stage, and its steps can
    # be marked.
    import_module("ptycho_dist.training.train")
    marks[STAGES[0]] = time.process_time()
    mark_after(import_module("ptycho_dist.config"), "read_config", "configuration")
    mark_after(import_module("ptycho_dist.training.train"), "prepare", "data")
    mark_after(
        import_module("ptycho_dist.model.lightning_module").PtychographyModule,
        "optimizer_step",
        "first step",
    )
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def leave(marks: dict[str, float]) -> None:
    """End a process, with its ranks, in good order and at once."""
    import torch.distributed as dist

    if os.environ.get("RANK", "0") == "0":
        Path(os.environ[MARKS]).write_text(json.dumps(marks))
    if dist.is_initialized():
        dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].endswith(".py"):
        train_to_first_step(sys.argv[1], sys.argv[2:])
    else:
        main()
