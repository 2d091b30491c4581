#!/usr/bin/env python
"""Quality against dose, with the Poisson loss and with an amplitude loss: python benchmarks/dose.py
--out DIR

One object of dead leaves is scanned with 1e3 to 1e9 photons a pattern (same object, positions and
probe); a network is trained on each scan with configs/default.yaml and a fixed number of epochs,
reconstructs it and is compared with the truth. The Poisson loss also has its trainable factor, and
is told ten times too many and too few photons. A second seed, of everything (object, positions,
noise, weights), shows what chance does. Prints a table, writes DIR/dose.json and DIR/dose.png. What
DIR already holds is used again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ptycho_dist import ScaledPoissonLoss, load_bundle, read_scan, reconstruct, train
from ptycho_dist.bundle import Bundle, software_versions
from ptycho_dist.command_line import run
from ptycho_dist.config import Config, SimulationConfig, make_parser, read_config
from ptycho_dist.data.scan import Scan
from ptycho_dist.distributed import mean_over_ranks
from ptycho_dist.model.loss import poisson_deviance
from ptycho_dist.physics.simulation import expected_intensity, simulate_scan
from ptycho_dist.report.comparison import compare_with_reference
from ptycho_dist.training.run_directory import read_metrics

ROOT = Path(__file__).parents[1]
EPOCHS = 4
SCAN_SHAPE = (24, 24)
DOSES = (1e3, 1e4, 1e5, 1e6, 1e9)
MATCHED_DOSE = 1e4
"""At how many times this dose does the amplitude loss do what the Poisson loss does here?"""
MATCHING_DOSES = (2e4, 4e4, 8e4)
COMPARED_DOSES = {1: (1e4,), 0: (1e3, 1e5, 1e6, 1e9)}
"""By seed: where the two losses are compared beside `MATCHED_DOSE`."""


class AmplitudeLoss(ScaledPoissonLoss):
    """Mean of (sqrt(I_hat) - X_norm)^2, in the Poisson loss's place: it knows no photons.
    Validation still reports the deviance."""

    metric = "amplitude_error_per_pixel"

    def reported(self, value: float) -> float:
        return value

    def forward(
        self, predicted_intensity: Tensor, x_norm: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        assert mask is None  # simulated scans have none
        # Autograd makes 0 * infinity of a root at exactly 0.
        amplitude = predicted_intensity.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        return mean_over_ranks(
            (amplitude - x_norm).square().sum(dtype=torch.float64), x_norm.numel()
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A way to train: the loss, its trainable factor, and what it is told of the dose, as a
    multiple of the truth."""

    name: str
    loss: type[ScaledPoissonLoss] = ScaledPoissonLoss
    trainable: bool = False
    told: float = 1.0


POISSON = Variant(name="Poisson")
AMPLITUDE = Variant(name="amplitude", loss=AmplitudeLoss)
VARIANTS = (
    POISSON,
    AMPLITUDE,
    Variant(name="Poisson, trainable factor", trainable=True),
    Variant(name="Poisson, nphotons x 10", told=10.0),
    Variant(name="Poisson, nphotons / 10", told=0.1),
)


def main() -> None:
    """Parse, train, print the table and write it."""
    parser = make_parser("Quality against dose.", config=False)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("dose"),
        help="directory of scans, runs and results; made if missing",
    )
    torch.set_num_threads(1)
    make_table(parser.parse_args().out)


def make_table(
    out: Path, config_file: Path = ROOT / "configs/default.yaml"
) -> list[dict[str, Any]]:
    """Make every row, print the table, and write `dose.json` and `dose.png`."""
    config = read_config(make_parser("").parse_args([f"--config={config_file}"]))
    rows = []
    for dose, variant, seed in trainings():
        scan_file = simulate(out, dose, seed)
        name = variant.name.replace(" ", "_").replace("/", "over")
        row = make_row(out / f"{dose:g}_{name}_{seed}", config, scan_file, dose, variant, seed)
        rows.append(row)
        print(line(row), flush=True)
        content = {
            "epochs": EPOCHS,
            "scan_shape": SCAN_SHAPE,
            "versions": software_versions(),
            "config": config.to_dict(),
        }
        (out / "dose.json").write_text(
            json.dumps({**content, "matching_dose": matching_dose(rows), "rows": rows}, indent=1)
            + "\n"
        )
    print("\n" + markdown(rows))
    print(
        f"\nthe amplitude loss does what the Poisson loss does at {MATCHED_DOSE:g} at",
        matching_dose(rows),
    )
    draw(rows, out / "dose.png")
    return rows


def trainings() -> Iterator[tuple[float, Variant, int]]:
    """(dose, variant, seed), those first that say most."""
    yield from ((MATCHED_DOSE, variant, 0) for variant in VARIANTS)
    yield from ((dose, AMPLITUDE, 0) for dose in MATCHING_DOSES)
    yield from (
        (dose, variant, seed)
        for seed, doses in COMPARED_DOSES.items()
        for dose in doses
        for variant in (POISSON, AMPLITUDE)
    )
    yield from (
        (dose, variant, 0) for dose in DOSES if dose != MATCHED_DOSE for variant in VARIANTS[2:]
    )


def simulate(out: Path, dose: float, seed: int) -> Path:
    """A scan file that doesn't tell its dose: metadata would go before what a run is told."""
    file = out / f"scan_{dose:g}_{seed}.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        settings = SimulationConfig(scan_shape=SCAN_SHAPE, nphotons=dose, seed=seed)
        scan = simulate_scan(**dataclasses.asdict(settings))
        y, x = scan.positions_px.T
        np.savez(
            file,
            diffraction=scan.diffraction,
            ycoords=y,
            xcoords=x,
            probeGuess=scan.probe[0].astype(np.complex64),
            objectGuess=scan.object.astype(np.complex64),
        )
    return file


def make_row(
    folder: Path, config: Config, scan_file: Path, dose: float, variant: Variant, seed: int
) -> dict[str, Any]:
    """Train, reconstruct and compare with the truth; a row that lies there already is taken."""
    row_file = folder / "row.json"
    if row_file.exists():
        return json.loads(row_file.read_text())
    started = time.process_time()
    run_config = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, path=str(scan_file), measurement="amplitude", nphotons=variant.told * dose
        ),
        model=dataclasses.replace(config.model, intensity_scale_trainable=variant.trainable),
        train=dataclasses.replace(
            config.train, run_dir=str(folder), epochs=EPOCHS, seed=seed, resume="auto"
        ),
    )
    bundle = load_bundle(train(run_config, loss=variant.loss))
    training_seconds = time.process_time() - started
    scan = read_scan(scan_file, "amplitude")
    assert scan.object_guess is not None
    found = reconstruct(with_true_dose(bundle, variant.told), scan)
    scores = compare_with_reference(
        found.object,
        origin_px=found.origin_px,
        valid=found.valid,
        illumination=found.illumination,
        positions_px=found.positions_px,
        reference=scan.object_guess,
    )
    validation = [
        metrics["val_deviance_per_pixel"]
        for metrics in read_metrics(folder)
        if metrics.get("val_deviance_per_pixel")
    ]
    row = {
        "dose": dose,
        "variant": variant.name,
        "seed": seed,
        "phase_correlation": scores.phase.correlation,
        "amplitude_correlation": scores.amplitude.correlation,
        "complex_error": scores.complex_error,
        "frc_0.5_resolution_px": scores.frc.resolution_px(0.5),
        "deviance_per_pixel": found.summary.deviance_per_pixel,
        "deviance_per_pixel_of_truth": deviance_of_truth(scan),
        "predicted_over_measured_photons": found.summary.mean_predicted_photons
        / found.summary.mean_measured_photons,
        "gain": bundle.gain,
        "validation_deviance_per_pixel": [
            float(deviance) / variant.told for deviance in validation
        ],
        "training_cpu_seconds": round(training_seconds, 1),
    }
    row_file.write_text(json.dumps(row, indent=1) + "\n")
    return row


def with_true_dose(bundle: Bundle, told: float) -> Bundle:
    """The same network, which counts true photons: it was told `told` times as many."""
    nphotons = bundle.calibration.nphotons / told
    scale = bundle.intensity_scale / math.sqrt(told)
    calibration = dataclasses.replace(bundle.calibration, nphotons=nphotons, intensity_scale=scale)
    return dataclasses.replace(bundle, calibration=calibration)


def deviance_of_truth(scan: Scan) -> float:
    """Deviance per pixel of the object that the scan was simulated with; far below 1 where most
    pixels are dark."""
    assert scan.object_guess is not None
    rate = expected_intensity(
        scan.probe.astype(np.complex128), scan.object_guess.astype(np.complex128), scan.positions_px
    )
    counts = scan.amplitude(np.arange(scan.num_patterns)).astype(np.float64) ** 2
    return 2 * float(poisson_deviance(torch.from_numpy(rate), torch.from_numpy(counts)).mean())


def matching_dose(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """By score, the dose (log-interpolated) at which the amplitude loss is as good as the Poisson
    loss at `MATCHED_DOSE`.

    None where it is better at every dose, or at none.
    """
    first_seed = [row for row in rows if row["seed"] == 0]
    doses: dict[str, float | None] = {}
    for score in ("phase_correlation", "amplitude_correlation", "complex_error"):
        wanted = [
            row[score]
            for row in first_seed
            if (row["dose"], row["variant"]) == (MATCHED_DOSE, POISSON.name)
        ]
        curve = sorted(
            (row["dose"], row[score]) for row in first_seed if row["variant"] == AMPLITUDE.name
        )
        doses[score] = None
        for (low, before), (high, after) in itertools.pairwise(curve):
            if (
                wanted
                and before != after
                and 0 <= (part := (wanted[0] - before) / (after - before)) <= 1
            ):
                doses[score] = round(low * (high / low) ** part)
                break
    return doses


def line(row: dict[str, Any]) -> str:
    """One row, for the terminal."""
    return (
        f"{row['dose']:8g}  seed {row['seed']}  {row['variant']:27} "
        f"{row['phase_correlation']:.3f} {row['amplitude_correlation']:.3f}  "
        f"error {row['complex_error']:.4f}  resolution "
        f"{row['frc_0.5_resolution_px'] or math.inf:.2f} px  "
        f"deviance {row['deviance_per_pixel']:.3f} (truth "
        f"{row['deviance_per_pixel_of_truth']:.3f})  gain {row['gain']:.4f}  "
        f"{row['training_cpu_seconds']:.0f} CPU s"
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a variant and seed, one column a dose: correlation of phase / of amplitude / complex
    error."""
    doses = sorted({row["dose"] for row in rows})
    lines = [
        "| | " + " | ".join(f"{dose:g}" for dose in doses) + " |",
        "|---" * (len(doses) + 1) + "|",
    ]
    for seed in sorted({row["seed"] for row in rows}):
        for variant in VARIANTS:
            of_line = {
                row["dose"]: row
                for row in rows
                if (row["variant"], row["seed"]) == (variant.name, seed)
            }
            cells = [
                f"{row['phase_correlation']:.3f} / {row['amplitude_correlation']:.3f} / "
                f"{row['complex_error']:.3f}"
                if row
                else ""
                for row in map(of_line.get, doses)
            ]
            if of_line:
                lines.append(f"| {variant.name}, seed {seed} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Complex error and both correlations against the dose, one curve a variant; the second seed as
    single points."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = {"complex_error": "complex error"} | {
        f"{part}_correlation": f"correlation of {part}" for part in ("phase", "amplitude")
    }
    for ax, (score, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for number, variant in enumerate(VARIANTS):
            for seed, style in ((0, "o-"), (1, "x")):
                points = sorted(
                    (row["dose"], row[score])
                    for row in rows
                    if (row["variant"], row["seed"]) == (variant.name, seed)
                )
                if points:
                    label = variant.name if seed == 0 else None
                    ax.semilogx(
                        *zip(*points, strict=True),
                        style,
                        color=f"C{number}",
                        label=label,
                        markersize=4,
                        linewidth=1,
                    )
        ax.set(xlabel="photons a pattern", title=title)
    figure.axes[0].legend(fontsize="small")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=70)


if __name__ == "__main__":
    run(main)
