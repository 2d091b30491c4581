#!/usr/bin/env python
"""Network, refinement and ePIE on one measured scan, from full overlap to none: python
benchmarks/refinement.py --data scan.npz --out DIR

Of the scan's positions all, a half, a quarter and a set whose probes do not overlap are kept. On
each, a network is trained with the same number of steps, and another one that was trained elsewhere
may be given (--bundle); their objects are refined, and so is an empty one. Seconds are CPU seconds
of one thread, without the training, which refinement.json tells apart. Deviances are per pixel,
with predicted rates floored at 1e-3 counts.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from epie import epie

from ptycho_dist import load_bundle, read_scan, reconstruct, train
from ptycho_dist.bundle import Bundle
from ptycho_dist.config import Config, DataConfig, TrainConfig
from ptycho_dist.data.scan import Scan
from ptycho_dist.inference.records import Units
from ptycho_dist.inference.refine import Refinement, refine
from ptycho_dist.inference.scan_patterns import ScanPatterns
from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.model.loss import RATE_FLOOR
from ptycho_dist.physics.probe import normalize_probe
from ptycho_dist.report.comparison import compare_with_reference

REFINE_ITERATIONS = (1, 3, 5, 10, 30)
EPIE_ITERATIONS = (1, 5, 20, 40)
PROBE_ENERGY = 0.9
"""Probes do not overlap where the circles that hold this part of their energy do not."""
TRAINING_BATCH_PATTERNS = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="NPZ of sqrt(counts), with an objectGuess to compare with",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="directory for the smaller scans, the networks and refinement.json",
    )
    parser.add_argument(
        "--bundle", type=Path, help="a network that was trained once, on whatever scan"
    )
    parser.add_argument(
        "--steps", type=int, default=200, help="training steps of each network, of 16 patterns each"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    given = load_bundle(arguments.bundle) if arguments.bundle else None

    rows: list[dict[str, Any]] = []
    for overlap, patterns in overlaps(read_scan(arguments.data, "amplitude")).items():
        scan_path = write_part(arguments.data, patterns, arguments.out / f"{overlap}.npz")
        trained, training_seconds = train_on(
            scan_path,
            arguments.out / overlap,
            steps=arguments.steps,
            group_size=1 if overlap == "none" else 4,
        )
        networks = {"network": trained, **({"given network": given} if given else {})}
        for row in Benchmark(read_scan(scan_path, "amplitude")).rows(networks):
            rows.append(
                {
                    "overlap": overlap,
                    "patterns": len(patterns),
                    "training_seconds": training_seconds,
                    **row,
                }
            )
            show(rows[-1], with_head=len(rows) == 1)
        content = {
            "data": str(arguments.data),
            "bundle": str(arguments.bundle),
            "steps": arguments.steps,
            "rate_floor": RATE_FLOOR,
        }
        (arguments.out / "refinement.json").write_text(
            json.dumps({**content, "rows": rows}, indent=1) + "\n"
        )


def overlaps(scan: Scan) -> dict[str, np.ndarray]:
    """Numbers of the patterns to keep: as many as wanted, spread as evenly as can be (each next one
    farthest from those before)."""
    distances = [np.full(scan.num_patterns, np.inf)]
    order = [0]
    while len(order) < scan.num_patterns:
        newest = np.linalg.norm(scan.positions_px - scan.positions_px[order[-1]], axis=1)
        distances.append(np.minimum(distances[-1], newest))
        distances[-1][order] = -1
        order.append(int(distances[-1].argmax()))
    spacing_px = [distance.max() for distance in distances]
    num_apart = sum(spacing >= probe_diameter_px(scan.probe[0]) for spacing in spacing_px)
    half, quarter = scan.num_patterns // 2, scan.num_patterns // 4
    return {
        name: np.sort(order[:count])
        for name, count in {
            "full": None,
            "half": half,
            "quarter": quarter,
            "none": num_apart,
        }.items()
    }


def probe_diameter_px(probe: np.ndarray) -> float:
    """Diameter of the circle round a probe's centre of mass that holds `PROBE_ENERGY` of its
    energy."""
    light = np.abs(probe) ** 2 / np.sum(np.abs(probe) ** 2)
    y, x = np.indices(probe.shape)
    radius = np.hypot(y - np.sum(y * light), x - np.sum(x * light)).ravel()
    outward = radius.argsort()
    return float(
        2 * radius[outward][np.searchsorted(light.ravel()[outward].cumsum(), PROBE_ENERGY)]
    )


def write_part(scan_path: Path, patterns: np.ndarray, path: Path) -> Path:
    """Write the scan with some of its patterns alone."""
    with np.load(scan_path, allow_pickle=False) as whole:
        part = {key: whole[key][patterns] for key in ("diffraction", "xcoords", "ycoords")}
        np.savez(path, **part, probeGuess=whole["probeGuess"], objectGuess=whole["objectGuess"])
    return path


def train_on(
    scan_path: Path, run_dir: Path, *, steps: int, group_size: int
) -> tuple[Bundle, float]:
    """A network of about so many steps, and the CPU seconds that it took; one that lies there
    already is taken."""
    if not (run_dir / "bundle.zip").exists():
        started = time.process_time()
        with np.load(scan_path) as scan:
            steps_an_epoch = math.ceil(len(scan["xcoords"]) * group_size / TRAINING_BATCH_PATTERNS)
        train(
            Config(
                data=DataConfig(
                    path=str(scan_path),
                    measurement="amplitude",
                    nphotons="measured",
                    group_size=group_size,
                    val_fraction=0.0,
                ),
                train=TrainConfig(
                    run_dir=str(run_dir),
                    epochs=max(1, round(steps / steps_an_epoch)),
                    global_batch_size=TRAINING_BATCH_PATTERNS // group_size,
                ),
            )
        )
        (run_dir / "training_seconds").write_text(f"{time.process_time() - started:.1f}")
    return load_bundle(run_dir / "bundle.zip"), float((run_dir / "training_seconds").read_text())


class Benchmark:
    """The rows of one scan."""

    def __init__(self, scan: Scan) -> None:
        if scan.object_guess is None:
            raise ValueError(
                f"{scan.path}: objectGuess: found none, expected an object to compare with"
            )
        self.scan = scan
        self.object_guess = scan.object_guess
        self.amplitude = scan.amplitude(np.arange(scan.num_patterns))
        counts = torch.from_numpy(self.amplitude).square()
        self.probe = normalize_probe(torch.from_numpy(scan.probe))
        mean_photons = float(counts.sum(dtype=torch.float64)) / scan.num_patterns
        # Amplitudes stay in sqrt(counts); the probe has the energy (N/2)**2.
        self.units = Units(
            predicted_amplitude=math.sqrt(mean_photons) / (scan.pattern_size / 2),
            measured_photons=1.0,
            brightness=1.0,
        )
        self.patterns = ScanPatterns(scan, 1.0)
        empty = StitchedObject(scan.positions_px, self.probe)
        self.origin_px = empty.origin_px
        self.empty_object = np.ones(empty.light.shape[1:], np.complex64)
        empty.replace(
            torch.from_numpy(self.empty_object), self.probe, torch.from_numpy(scan.positions_px)
        )
        self.valid, self.illumination = empty.valid(), empty.illumination()

    def rows(self, networks: dict[str, Bundle]) -> Iterator[dict[str, Any]]:
        yield self.row("reference", self.reference(), 0.0)
        for name, bundle in networks.items():
            for iterations in (0, *REFINE_ITERATIONS):
                started = time.process_time()
                found = reconstruct(bundle, self.scan, refine_iterations=iterations)
                seconds = time.process_time() - started
                label = f"{name} + refine {iterations}" if iterations else name
                yield self.row(label, found.object, seconds, found.summary.deviance_per_pixel)
        for iterations in REFINE_ITERATIONS:
            started = time.process_time()
            refined = self.refined(self.empty_object, iterations)
            yield self.row(
                f"empty object + refine {iterations}",
                refined.object.numpy(),
                time.process_time() - started,
            )
        seconds, reconstruction = (
            0.0,
            epie(self.amplitude, self.scan.positions_px, self.scan.probe[0]),
        )
        for iteration in range(1, max(EPIE_ITERATIONS) + 1):
            started = time.process_time()
            object_ = next(reconstruction)
            seconds += time.process_time() - started
            if iteration in EPIE_ITERATIONS:
                yield self.row(f"ePIE {iteration}", object_, seconds)

    def row(
        self,
        name: str,
        object_: np.ndarray,
        seconds: float,
        deviance_per_pixel: float | None = None,
    ) -> dict[str, Any]:
        scores = compare_with_reference(
            object_,
            origin_px=self.origin_px,
            valid=self.valid,
            illumination=self.illumination,
            positions_px=self.scan.positions_px,
            reference=self.object_guess,
        )
        return {
            "name": name,
            "phase_correlation": scores.phase.correlation,
            "amplitude_correlation": scores.amplitude.correlation,
            "deviance_per_pixel": deviance_per_pixel
            or self.refined(object_, 0).deviance_per_pixel[0],
            "seconds": round(seconds, 2),
        }

    def refined(self, object_: np.ndarray, iterations: int) -> Refinement:
        start = StitchedObject(self.scan.positions_px, self.probe)
        start.replace(
            torch.from_numpy(object_), self.probe, torch.from_numpy(self.scan.positions_px)
        )
        return refine(start, self.patterns, self.units, iterations=iterations)

    def reference(self) -> np.ndarray:
        """The file's own object, on the canvas and in the units of the others: what its probe lacks
        in energy, it gets."""
        guess = self.object_guess
        gain = (
            np.linalg.norm(self.scan.probe)
            / (self.scan.pattern_size / 2)
            / self.units.predicted_amplitude
        )
        (y, x), (height, width) = self.origin_px.astype(int), self.empty_object.shape
        rows, columns = np.arange(y, y + height), np.arange(x, x + width)
        known = ((rows >= 0) & (rows < len(guess)))[:, None] & (
            (columns >= 0) & (columns < guess.shape[1])
        )
        nearest = guess[rows.clip(0, len(guess) - 1)[:, None], columns.clip(0, guess.shape[1] - 1)]
        return np.where(known, gain * nearest, 1).astype(np.complex64)


def show(row: dict[str, Any], *, with_head: bool) -> None:
    columns = {
        "overlap": 8,
        "patterns": 8,
        "name": 34,
        "phase_correlation": 7,
        "amplitude_correlation": 9,
    }
    columns |= {"deviance_per_pixel": 8, "seconds": 7}
    if with_head:
        print(
            *(
                name.removesuffix("_correlation").removesuffix("_per_pixel").ljust(width)
                for name, width in columns.items()
            )
        )
    cells = (
        (f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name])).ljust(width)
        for name, width in columns.items()
    )
    print(*cells, flush=True)


if __name__ == "__main__":
    main()
