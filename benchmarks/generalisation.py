#!/usr/bin/env python
"""How a network does on an object that it has not seen: with the bundle alone, refined, and after a
short training that goes on from it.

    python benchmarks/generalisation.py --out DIR

Simulates dead-leaves objects under one probe, trains on eight of them, and reconstructs others with
the bundle alone; one of these also with some iterations of refinement after it (`--refine`). Then
trains on that one, from the bundle (`--train.init`) and from nothing. Compares with the truth,
prints a table and writes `DIR/generalisation.json`. Stages that are done are not done again, so it
can be stopped and started.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIMULATION = {
    "simulation.object": "dead_leaves",
    "simulation.amplitude_range": [0.5, 1.0],
    "simulation.phase_range_rad": [-1.0, 1.0],
    "simulation.scan_shape": [24, 24],
    "simulation.nphotons": 1e6,
}
TRAINING_OBJECTS = range(8)
UNSEEN_OBJECTS = (9, 10, 11)
EPOCHS_ON_MANY = 4
REFINE_ITERATIONS = (3, 10)
EPOCHS_FROM_BUNDLE = (1, 2, 4)
EPOCHS_FROM_NOTHING = (2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory of scans, runs and results"
    )
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    # training hears it too, leaves its checkpoint and ends; then so does this script
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    seen = [simulate(out, seed) for seed in TRAINING_OBJECTS]
    unseen = [simulate(out, seed) for seed in UNSEEN_OBJECTS]
    many = train(out, "many", seen, EPOCHS_ON_MANY)
    rows = {"bundle, a training object": reconstruct(out, "seen", many, seen[0])}
    for seed, scan in zip(UNSEEN_OBJECTS, unseen, strict=True):
        rows[f"bundle, unseen object {seed}"] = reconstruct(out, f"unseen_{seed}", many, scan)
    new, name = unseen[0], f"unseen object {UNSEEN_OBJECTS[0]}"
    for iterations in REFINE_ITERATIONS:
        rows[f"bundle + refine {iterations}, {name}"] = reconstruct(
            out, f"refine_{iterations}", many, new, f"--refine={iterations}"
        )
    init = (f"--train.init={many}",)
    for start, arguments, numbers_of_epochs in (
        ("bundle", init, EPOCHS_FROM_BUNDLE),
        ("nothing", (), EPOCHS_FROM_NOTHING),
    ):
        for epochs in numbers_of_epochs:
            run = f"{start}_{epochs}"
            row = reconstruct(out, run, train(out, run, [new], epochs, *arguments), new)
            rows[f"from {start}, {epochs} epochs, {name}"] = row | {
                "cpu_seconds": cpu_seconds(out)[f"train {run}"]
            }

    result = {
        "simulation": SIMULATION,
        "objects": len(TRAINING_OBJECTS),
        "training_cpu_seconds": cpu_seconds(out)["train many"],
        "rows": rows,
    }
    (out / "generalisation.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{len(TRAINING_OBJECTS)} training objects, {result['training_cpu_seconds']:.0f} CPU s")
    print("| | CPU s | phase | amplitude | deviance |\n|---|---|---|---|---|")
    for name, row in rows.items():
        cells = (
            f"{row['phase_correlation']:.3f} | {row['amplitude_correlation']:.3f} | "
            f"{row['deviance_per_pixel']:.2f}"
        )
        print(f"| {name} | {row['cpu_seconds']:.0f} | {cells} |")


def simulate(out: Path, seed: int) -> Path:
    scan = out / f"object{seed}.npz"
    if not scan.exists():
        settings = [f"--{key}={value}" for key, value in SIMULATION.items()]
        launch(out, f"simulate {seed}", "simulate.py", f"--out={scan}", *settings,
               f"--simulation.seed={seed}")  # fmt: skip
    return scan


def train(out: Path, run: str, scans: list[Path], epochs: int, *arguments: str) -> Path:
    bundle = out / run / "bundle.zip"
    if not bundle.exists():
        told = (
            "--data.path=[" + ",".join(map(str, scans)) + "]",
            f"--train.run_dir={out / run}",
            f"--train.epochs={epochs}",
        )
        config = f"--config={ROOT / 'configs' / 'default.yaml'}"
        launch(out, f"train {run}", "train.py", config, *told, "--train.resume=auto", *arguments)
    return bundle


def reconstruct(
    out: Path, name: str, bundle: Path, scan: Path, *arguments: str
) -> dict[str, float]:
    """Correlation with the truth, deviance per pixel of the stitched object, and CPU seconds of
    inference."""
    folder = out / f"reconstruction_{name}"
    if not (folder / "metrics.json").exists():
        launch(
            out,
            f"infer {name}",
            "infer.py",
            f"--bundle={bundle}",
            str(scan),
            f"--out={folder}",
            *arguments,
        )
        reconstruction = f"--reconstruction={folder / 'reconstruction.npz'}"
        launch(
            out,
            f"evaluate {name}",
            "evaluate.py",
            reconstruction,
            f"--reference={scan}",
            f"--out={folder}",
        )
    numbers = json.loads((folder / "metrics.json").read_text()) | json.loads(
        (folder / "summary.json").read_text()
    )
    of_object = {
        key: numbers[key]
        for key in ("phase_correlation", "amplitude_correlation", "deviance_per_pixel")
    }
    return of_object | {"cpu_seconds": cpu_seconds(out)[f"infer {name}"]}


def launch(out: Path, stage: str, script: str, *arguments: str) -> None:
    """Run a script of launch/, and add the CPU time that it took to the stage's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    status = subprocess.run(
        [sys.executable, str(ROOT / "launch" / script), *arguments], check=False
    ).returncode
    seconds = cpu_seconds(out)
    seconds[stage] = (
        seconds.get(stage, 0.0) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    )
    (out / "cpu_seconds.json").write_text(json.dumps(seconds, indent=2) + "\n")
    if status:
        sys.exit(f"{stage} ended with status {status}")


def cpu_seconds(out: Path) -> dict[str, float]:
    """CPU seconds (user) by stage, start of Python included."""
    file = out / "cpu_seconds.json"
    return json.loads(file.read_text()) if file.exists() else {}


if __name__ == "__main__":
    main()
