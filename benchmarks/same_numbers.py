"""Record what fixed runs compute, to the last bit, and compare two records.

A change that should not change any number is checked with this before and after it::

    python benchmarks/same_numbers.py record --data siemens_velociprobe_N64.npz --out before.json
    ...
    python benchmarks/same_numbers.py record --data siemens_velociprobe_N64.npz --out after.json
    python benchmarks/same_numbers.py compare before.json after.json

A record holds, for each run, `intensity_scale`, the loss of every step, and the SHA-256 of the
final weights and probes; and for each reconstruction the SHA-256 of its object. The runs are short:
some hundred patterns, two or three epochs. Two records can be compared only if they were made on
one machine with one version of PyTorch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COMMON = [
    "--data.measurement",
    "amplitude",
    "--data.nphotons",
    "measured",
    "--train.precision",
    "32",
]
SMALL = ["--data.subset_size", "103", "--train.epochs", "3", "--train.accumulate_grad_batches", "1"]
SINGLE = ["--data.group_size", "1"]
PROBE = ["--model.probe_trainable", "true", "--model.probe_modes", "2"]
STOP_AFTER = 20
"""Losses after which the run that is resumed later is stopped, in the middle of an epoch."""


def train_noting_losses(notes: Path, stop_after: int | None, arguments: list[str]) -> None:
    """Run `ptycho-train` in this process and write the loss of each step of rank 0 to `notes`."""
    from ptycho_dist.model.loss import ScaledPoissonLoss

    losses: list[str] = []
    original: Callable[..., Any] = ScaledPoissonLoss.forward

    def forward(self: Any, *tensors: Any) -> Any:
        loss = original(self, *tensors)
        losses.append(float(loss.detach()).hex())
        if os.environ.get("RANK", "0") == "0":
            notes.write_text("\n".join(losses))
        if len(losses) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    ScaledPoissonLoss.forward = forward  # type: ignore
    sys.argv = ["ptycho-train", *arguments]
    from ptycho_dist.commands.train import main

    main()


def run(
    folder: Path, name: str, options: list[str], *, num_ranks: int = 1, resumed: bool = False
) -> dict[str, Any]:
    """Train, and return what the run computed."""
    run_dir = folder / name
    launcher = [sys.executable]
    if num_ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    losses: list[str] = []
    for part in (0, 1) if resumed else (0,):
        notes = folder / f"{name}.{part}.losses"
        stop_after = str(STOP_AFTER if resumed and part == 0 else 0)
        command = [*launcher, __file__, "train", str(notes), stop_after, *options]
        command += ["--train.run_dir", str(run_dir), *(["--train.resume", "auto"] if part else [])]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if done.returncode and not (resumed and part == 0):
            raise RuntimeError(f"{name}: exit status {done.returncode}\n{done.stderr}")
        losses += notes.read_text().split()
    import yaml

    hparams = yaml.safe_load((run_dir / "hparams.yaml").read_text())
    with zipfile.ZipFile(run_dir / "bundle.zip") as archive:
        members = {
            member: hashlib.sha256(archive.read(member)).hexdigest()
            for member in ("weights.safetensors", "probe.npy")
        }
    print(
        f"{name}: {len(losses)} losses, s = {hparams['intensity_scale']!r}, weights "
        f"{members['weights.safetensors'][:12]}",
        flush=True,
    )
    return {"intensity_scale": float(hparams["intensity_scale"]).hex(), "losses": losses, **members}


def reconstruction(bundle: Path, scan: Path, **options: Any) -> dict[str, str]:
    """SHA-256 of the arrays of a reconstruction."""
    from ptycho_dist import load_bundle, read_scan, reconstruct

    result = reconstruct(load_bundle(bundle), read_scan(scan, "amplitude"), **options)
    arrays = {
        "object": result.object,
        "valid": result.valid,
        "probe": result.probe,
        "illumination": result.illumination,
    }
    print(f"{bundle.parent.name} {options}: {result.photons.deviance_per_pixel!r}", flush=True)
    return {
        name: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        for name, array in arrays.items()
    } | {"deviance_per_pixel": result.photons.deviance_per_pixel.hex()}


def weaker_scan(scan: Path, path: Path) -> Path:
    """The scan with a tenth of its photons."""
    with np.load(scan) as arrays:
        content = dict(arrays)
    counts = np.round(content["diffraction"].astype(np.float64) ** 2).astype(np.int64)
    content["diffraction"] = np.sqrt(np.random.default_rng(0).binomial(counts, 0.1)).astype(
        np.float32
    )
    np.savez(path, **content)
    return path


def record(scan: Path, out: Path) -> None:
    """Make all runs and reconstructions and write the record."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mask = folder / "mask.npy"
        size = int(np.load(scan)["diffraction"].shape[-1])
        np.save(mask, np.random.default_rng(1).random((size, size)) > 0.05)
        weak = weaker_scan(scan, folder / "weak.npz")
        one = [*COMMON, *SMALL, "--data.path", str(scan)]
        two = [*COMMON, *SMALL, "--data.path", json.dumps([str(scan), str(weak)])]
        runs = {}
        for num_ranks in (1, 2):
            for name, options in {
                "groups": one,
                "single": [*one, *SINGLE],
                "masked": [*one, "--data.mask", str(mask)],
                "two_doses": two,
                "probe": [*one, *PROBE],
            }.items():
                full_name = f"{name}_{num_ranks}"
                runs[full_name] = run(folder, full_name, options, num_ranks=num_ranks)
        runs["resumed_1"] = run(folder, "resumed_1", one, resumed=True)
        runs["resumed_2"] = run(folder, "resumed_2", one, num_ranks=2, resumed=True)
        of = {name: folder / name / "bundle.zip" for name in runs}
        reconstructions = {
            "groups": reconstruction(of["groups_1"], scan),
            "refined": reconstruction(of["groups_1"], scan, refine_iterations=5),
            "refined with probe": reconstruction(
                of["groups_1"], scan, refine_iterations=5, refine_probe=True
            ),
            "single": reconstruction(of["single_1"], scan),
            "own normalization": reconstruction(of["groups_1"], weak, normalization="scan"),
            "weak": reconstruction(of["groups_1"], weak, refine_iterations=2, refine_probe=True),
            "trained probe": reconstruction(of["probe_1"], scan),
        }
    out.write_text(
        json.dumps(
            {"torch": torch.__version__, "runs": runs, "reconstructions": reconstructions}, indent=1
        )
    )


def compare(before: Path, after: Path) -> int:
    """Print what differs; return 1 if anything does."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    different = [
        f"{kind}: {name}: {key}"
        for kind in ("runs", "reconstructions")
        for name, values in old[kind].items()
        for key, value in values.items()
        if new[kind].get(name, {}).get(key) != value
    ]
    count = sum(
        len(values) for kind in ("runs", "reconstructions") for values in old[kind].values()
    )
    print(
        "\n".join(different)
        or f"all {count} values of {len(old['runs'])} runs and {len(old['reconstructions'])} "
        "reconstructions are equal"
    )
    return 1 if different else 0


def main() -> None:
    if sys.argv[1:2] == ["train"]:
        train_noting_losses(Path(sys.argv[2]), int(sys.argv[3]) or None, sys.argv[4:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record")
    recorder.add_argument(
        "--data", type=Path, required=True, help="scan file with amplitudes and a probe"
    )
    recorder.add_argument("--out", type=Path, required=True)
    comparer = commands.add_parser("compare")
    comparer.add_argument("before", type=Path)
    comparer.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "record":
        record(arguments.data.resolve(), arguments.out)
    else:
        sys.exit(compare(arguments.before, arguments.after))


if __name__ == "__main__":
    main()
