#!/usr/bin/env python
"""How a scan is explained whose probe is known only roughly: python benchmarks/approximate_probe.py
--data scan.npz --out DIR

Trains by configs/default.yaml on one measured scan, given the file's own probe, that probe spoilt
(out of focus, blurred and too bright), or a Gaussian of its width; with the probe kept as it is
given, or refined, in one or three modes. Told is the deviance per pixel of the stitched object over
the whole scan, and the CPU seconds of the training process. What DIR already holds is used again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from generalisation import cpu_seconds, launch, train
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

DEFOCUS_RAD = 3.0
"""Quadratic phase in the far field, at the detector's edge."""
BLUR_PX = 1.0
TOO_BRIGHT = 2.5

REFINED = ("--model.probe_trainable=true",)
ROWS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("reference", 20, ()),
    ("spoilt", 4, REFINED),
    ("gaussian", 4, ()),
    ("gaussian", 4, REFINED),
    ("gaussian", 4, (*REFINED, "--model.probe_modes=3")),
)
"""Probe in the file, epochs, options of the training."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="NPZ of sqrt(counts) with a probe of one mode"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="directory of scans, runs and approximate_probe.json; made if missing",
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_scans(arguments.data, arguments.out)
    rows = []
    print(
        "| probe in the file | options | epochs | CPU s | deviance per pixel "
        "|\n|---|---|---|---|---|"
    )
    for probe, epochs, options in ROWS:
        deviance, cpu_s = deviance_after(arguments.out, probe, epochs, options)
        rows.append(
            {
                "probe": probe,
                "epochs": epochs,
                "options": options,
                "cpu_seconds": cpu_s,
                "deviance_per_pixel": deviance,
            }
        )
        print(
            f"| {probe} | {' '.join(options) or 'probe fixed'} | {epochs} | {cpu_s:.0f} | "
            f"{deviance:.2f} |",
            flush=True,
        )
    (arguments.out / "approximate_probe.json").write_text(json.dumps(rows, indent=1) + "\n")


def write_scans(source: Path, folder: Path) -> None:
    """The scan once with each probe."""
    with np.load(source) as arrays:
        reference = arrays["probeGuess"].astype(np.complex128)
        for name, probe in {
            "reference": reference,
            "spoilt": spoilt(reference),
            "gaussian": gaussian_of_its_width(reference),
        }.items():
            np.savez(folder / f"{name}.npz", **{**arrays, "probeGuess": probe.astype(np.complex64)})


def spoilt(probe: NDArray[np.complex128]) -> NDArray[np.complex128]:
    frequencies = np.fft.fftfreq(len(probe)) / 0.5  # 1 at the detector's edge
    phase = DEFOCUS_RAD * (frequencies[:, None] ** 2 + frequencies**2)
    defocused = np.fft.ifft2(np.fft.fft2(probe) * np.exp(1j * phase))
    return TOO_BRIGHT * (
        gaussian_filter(defocused.real, BLUR_PX) + 1j * gaussian_filter(defocused.imag, BLUR_PX)
    )


def gaussian_of_its_width(probe: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Real, in the middle, with the second moment of the probe's intensity and nothing else of
    it."""
    light = np.abs(probe) ** 2 / np.sum(np.abs(probe) ** 2)
    axes = np.indices(probe.shape)
    variance = sum(np.sum(light * axis**2) - np.sum(light * axis) ** 2 for axis in axes) / 2
    y, x = axes - len(probe) // 2
    return np.exp(-(y**2 + x**2) / (4 * variance)).astype(np.complex128)


def deviance_after(
    out: Path, probe: str, epochs: int, options: tuple[str, ...]
) -> tuple[float, float]:
    """Deviance per pixel of the scan's object after a training, and the CPU seconds that the
    training took."""
    name, scan = (
        "_".join(
            [probe, *(option.removeprefix("--model.").replace("=", "_") for option in options)]
        ),
        out / f"{probe}.npz",
    )
    bundle = train(
        out,
        name,
        [scan],
        epochs,
        "--data.measurement=amplitude",
        "--data.nphotons=measured",
        *options,
    )
    summary = out / name / "reconstruction" / "summary.json"
    if not summary.exists():
        launch(
            out,
            f"infer {name}",
            "infer.py",
            f"--bundle={bundle}",
            str(scan),
            f"--out={summary.parent}",
        )
    return json.loads(summary.read_text())["deviance_per_pixel"], cpu_seconds(out)[f"train {name}"]


if __name__ == "__main__":
    main()
