#!/usr/bin/env python
"""Make the table of arXiv 2602.21361 again: python benchmarks/paper_table.py --data
FOLDER_OF_REAL_DATA --out DIR

For each probe and group size: simulate two objects to train on and two to test on, train with
`launch/train.py`, reconstruct the test objects with the bundle, score them by the published
protocol. What DIR already holds is used again. Without --data, the ideal probe only.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from paper_protocol import (
    OBJECT_SIDE_PX,
    compared,
    experimental_probe,
    ideal_probe,
    positions_of_test,
    positions_of_training,
    scores,
    simulate,
)

from ptycho_dist.bundle import software_versions
from ptycho_dist.command_line import run
from ptycho_dist.config import make_parser
from ptycho_dist.data.readers import read_object
from ptycho_dist.inference.infer import infer

ROOT = Path(__file__).parents[1]
EPOCHS_OF_SINGLES = 6
"""Times the epochs for C = 1, where an epoch shows each pattern once; with C = 4 it is in four
groups."""
PROBE_FILE = "run1084_probe_object.npz"
TRAINING_OBJECTS = (0, 1)
TEST_OBJECTS = (2, 3)
COLUMNS = {
    "amplitude_ssim": ("amplitude SSIM", ".3f"),
    "ms_ssim": ("MS-SSIM", ".3f"),
    "mae": ("MAE", ".4f"),
    "psnr": ("PSNR (range 255)", ".2f"),
    "phase_ssim": ("phase SSIM", ".3f"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of the table: its probe, its group size C, and the published figures in the order of
    `COLUMNS`."""

    probe: str
    group_size: int
    published: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"C = {self.group_size}, {self.probe} probe"


ROWS = (
    Row(probe="ideal", group_size=1, published=(0.620, 0.852, 0.185, 60.67, 0.410)),
    Row(probe="experimental", group_size=1, published=(0.904, 0.981, 0.072, 68.89, 0.886)),
    Row(probe="ideal", group_size=4, published=(0.952, 0.993, 0.0518, 71.34, 0.996)),
    Row(probe="experimental", group_size=4, published=(0.968, 0.994, 0.0402, 73.03, 0.966)),
)


def main() -> None:
    """Parse, make the rows, print the table and write it."""
    parser = make_parser("Make the published table again.", config=False)
    parser.add_argument(
        "--data",
        type=Path,
        help=f"folder that holds {PROBE_FILE}; without it the experimental probe's rows are left "
        "out",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("paper_table"),
        help="directory to work in; made if missing",
    )
    arguments = parser.parse_args()
    make_table(arguments.out, arguments.data, config=ROOT / "configs/paper_table.yaml")


def make_table(
    out: Path, data: Path | None, *, config: Path, side_px: int = OBJECT_SIDE_PX
) -> list[dict[str, Any]]:
    """Make the rows, print them beside the published ones, and write `paper_table.json` and
    `paper_table.png`."""
    probes = {"ideal": ideal_probe()}
    if data is not None:
        probes["experimental"] = experimental_probe(data / PROBE_FILE)
    rows, pictures = [], {}
    for row in ROWS:
        if row.probe in probes:
            scans = simulated_scans(row, probes[row.probe], out / "scans", side_px)
            measured, pictures[row.name] = make_row(
                row, scans, out / f"{row.probe}_C{row.group_size}", config
            )
            rows.append(measured)
    out_json = out / "paper_table.json"
    out_json.write_text(
        json.dumps(
            {"rows": rows, "versions": software_versions(), "config": config.read_text()}, indent=2
        )
        + "\n"
    )
    draw(pictures, out / "paper_table.png")
    print(markdown(rows))
    return rows


def simulated_scans(
    row: Row, probe: NDArray[np.complex128], folder: Path, side_px: int
) -> dict[int, Path]:
    """Scan files by object: two to train on, two to test on."""
    files = {}
    for seed in (*TRAINING_OBJECTS, *TEST_OBJECTS):
        is_training = seed in TRAINING_OBJECTS
        files[seed] = folder / (
            f"{row.probe}_train_{seed}.npz"
            if is_training
            else f"{row.probe}_test_C{row.group_size}_{seed}.npz"
        )
        if not files[seed].exists():
            positions = (
                positions_of_training(side_px)
                if is_training
                else positions_of_test(side_px, row.group_size)
            )
            simulate(
                files[seed], object_seed=seed, side_px=side_px, positions_px=positions, probe=probe
            )
    return files


def make_row(
    row: Row, scans: dict[int, Path], folder: Path, config: Path
) -> tuple[dict[str, Any], tuple[NDArray, NDArray, NDArray]]:
    """Train, reconstruct the test objects and score them; the picture is that of the first."""
    train(row, [scans[seed] for seed in TRAINING_OBJECTS], folder, config)
    of_objects, images = [], []
    for seed in TEST_OBJECTS:
        reconstruction = infer(folder / "run/bundle.zip", scans[seed], folder / f"object_{seed}")
        images.append(compared(reconstruction, read_object(scans[seed])))
        of_objects.append(
            {**scores(*images[-1]), "deviance_per_pixel": reconstruction.summary.deviance_per_pixel}
        )
    measured = {
        "name": row.name,
        "published": dict(zip(COLUMNS, row.published, strict=True)),
        "mean": {
            key: float(np.mean([scores_[key] for scores_ in of_objects])) for key in of_objects[0]
        },
        "objects": of_objects,
        "training": json.loads((folder / "training.json").read_text()),
    }
    return measured, images[0]


def train(row: Row, scans: list[Path], folder: Path, config: Path) -> None:
    """Train in one process of its own, by the command that users have, and note what it took."""
    if (folder / "training.json").exists():
        return
    started, children_before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    epochs = yaml.safe_load(config.read_text())["train"]["epochs"]
    keys = {
        "data.path": json.dumps([str(scan) for scan in scans]),
        "data.group_size": row.group_size,
        "train.epochs": epochs if row.group_size > 1 else EPOCHS_OF_SINGLES * epochs,
        "train.run_dir": folder / "run",
    }
    options = [f"--{key}={value}" for key, value in keys.items()]
    command = [
        sys.executable,
        str(ROOT / "launch/train.py"),
        f"--config={config}",
        *options,
        "--train.resume=auto",
    ]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = (
        children.ru_utime + children.ru_stime - children_before.ru_utime - children_before.ru_stime
    )
    took = {"cpu_seconds": round(cpu_seconds, 1), "seconds": round(time.monotonic() - started, 1)}
    (folder / "training.json").write_text(json.dumps(took) + "\n")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table; each cell is ours, then the published figure."""
    lines = [
        "| | " + " | ".join(title for title, _ in COLUMNS.values()) + " | training, CPU s |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for row in rows:
        cells = [
            f"{row['mean'][key]:{form}} ({row['published'][key]:{form}})"
            for key, (_, form) in COLUMNS.items()
        ]
        lines.append(
            f"| {row['name']} | " + " | ".join(cells) + f" | {row['training']['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines)


def draw(pictures: dict[str, tuple[NDArray, NDArray, NDArray]], path: Path) -> None:
    """Truth, reconstruction, their difference and the phase of the first test object: one line a
    row of the table."""
    figure = Figure(figsize=(13, 3 * len(pictures)), layout="constrained")
    axes = figure.subplots(len(pictures), 4, squeeze=False)
    for line, (name, (amplitude, phase, true_amplitude)) in zip(
        axes, pictures.items(), strict=True
    ):
        low, high = true_amplitude.min(), true_amplitude.max()
        images = (
            ("true amplitude", true_amplitude, "gray", low, high),
            ("amplitude", amplitude, "gray", low, high),
            ("difference", amplitude - true_amplitude, "RdBu_r", -0.2, 0.2),
            ("phase, rad", phase, "RdBu_r", -0.2, 0.2),
        )
        for ax, (title, image, colour_map, lowest, highest) in zip(line, images, strict=True):
            figure.colorbar(ax.imshow(image, cmap=colour_map, vmin=lowest, vmax=highest), ax=ax)
            ax.set(title=title, xticks=[], yticks=[])
        line[0].set_ylabel(name)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    run(main)
