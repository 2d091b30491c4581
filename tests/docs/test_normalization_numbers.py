"""The numbers of docs/normalization.md, computed with NumPy from the scan and from the output of
the page's commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ptycho_dist.config import DataConfig
from ptycho_dist.data.prepare import prepare
from ptycho_dist.scale.calibration import Calibration
from tests.docs.blocks import ROOT, blocks

pytestmark = pytest.mark.realdata

PAGE = (ROOT / "docs/normalization.md").read_text()
SECTION = PAGE.partition("## The numbers of a real scan")[2].partition("\n## ")[0]
NUMBER = r"\d+(?: \d{3})*(?:\.\d+)?"


def row(label: str) -> list[str]:
    """Return the numbers in the last cell of the one row that begins with the label."""
    rows = [line for line in SECTION.splitlines() if line.startswith(f"| {label}")]
    assert len(rows) == 1, label
    return [
        number.replace(" ", "")
        for number in re.findall(NUMBER, rows[0].rstrip("| ").rpartition("|")[2])
    ]


def require(label: str, *found: float) -> None:
    """Require that the page's numbers are these, to their last digit."""
    written = row(label)
    assert len(written) == len(found), (label, written)
    for text, value in zip(written, found, strict=True):
        decimals = len(text.partition(".")[2])
        # NumPy's float64 rounds a few times, the package once.
        assert abs(float(text) - value) <= 0.5 * 10.0**-decimals + 1e-15 * abs(value), (
            label,
            text,
            value,
        )


@dataclass(frozen=True)
class Subset:
    """The scan and the numbers of its training patterns."""

    path: Path
    amplitude: np.ndarray
    train: np.ndarray
    probe: np.ndarray
    calibration: Calibration

    @property
    def mean_counts(self) -> float:
        return float(np.square(self.amplitude[self.train]).sum(axis=(1, 2)).mean())

    @property
    def x_norm(self) -> np.ndarray:
        """All patterns, float64 of float32."""
        return (
            (32 / np.sqrt(self.mean_counts) * self.amplitude).astype(np.float32).astype(np.float64)
        )

    def s(self, nphotons: float) -> float:
        return float(np.sqrt(nphotons / np.square(self.x_norm[self.train]).sum(axis=(1, 2)).mean()))


@pytest.fixture(scope="module")
def subset(realdata: Path) -> Subset:
    path = realdata / "siemens_velociprobe_N64.npz"
    data = prepare(DataConfig(path=str(path), measurement="amplitude", nphotons="measured"))
    with np.load(path) as scan:
        return Subset(
            path,
            scan["diffraction"].astype(np.float64),
            data.subset.train,
            scan["probeGuess"],
            data.calibration,
        )


def test_statistical_numbers(subset: Subset) -> None:
    counts = np.square(subset.amplitude).sum(axis=(1, 2))
    require("patterns in the scan; in the training subset", 516, len(np.unique(subset.train)))
    require("mean counts per pattern of the subset", subset.mean_counts)
    require("the darkest and the brightest pattern", counts.min(), counts.max())
    require("r = 32 / sqrt(440 520.516)", 32 / np.sqrt(subset.mean_counts))
    require("mean of sum X_norm^2", np.square(subset.x_norm[subset.train]).sum(axis=(1, 2)).mean())
    require(
        "energy of the file's probe; as it is used",
        np.square(np.abs(subset.probe.astype(np.complex128))).sum(),
        1024,
    )
    assert float(row("r = ")[0]) == subset.calibration.rms_factor


def test_physical_numbers(subset: Subset) -> None:
    require("nphotons; its source", subset.mean_counts)
    require("s = sqrt(nphotons / 1024.0000052)", subset.s(subset.mean_counts))
    require("sqrt(nphotons) / 32", np.sqrt(subset.mean_counts) / 32)
    require("the same with `--data.nphotons 1e6`", subset.s(1e6))
    assert subset.calibration.nphotons_source == "measured"
    assert float(row("s = ")[0]) == subset.calibration.intensity_scale


def test_one_pixel_on_its_way(subset: Subset) -> None:
    brightest = np.unravel_index(subset.amplitude[0].argmax(), (64, 64))
    amplitude, x_norm = subset.amplitude[0][brightest], subset.x_norm[0][brightest]
    require("the detector", amplitude**2)
    require("the file", amplitude)
    require("the network's input", x_norm)
    require("in the loss |", (subset.s(subset.mean_counts) * x_norm) ** 2)
    require("in the loss, with", (subset.s(1e6) * x_norm) ** 2)
    assert "2.27 times as many" in SECTION
    assert "believed 1.5 times as precise" in SECTION
    assert 1e6 / subset.mean_counts == pytest.approx(2.27, abs=5e-3)
    assert np.sqrt(1e6 / subset.mean_counts) == pytest.approx(1.5, abs=0.05)


@pytest.fixture(scope="module")
def reconstruction(
    subset: Subset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """Return the reconstruction that the page's commands write."""
    folder = tmp_path_factory.mktemp("siemens")
    (folder / "scan.npz").symlink_to(subset.path)
    for name in ("launch", "configs"):
        (folder / name).symlink_to(ROOT / name)
    shown = [block.text for block in blocks("docs/normalization.md") if block.language == "bash"]
    commands = [text for text in shown if "--data.nphotons measured" in text]
    assert len(commands) == 1
    torchrun = f"{shlex.quote(sys.executable)} -m torch.distributed.run --standalone"
    script = (
        commands[0]
        .replace("torchrun ", f"{torchrun} ")
        .replace("\npython ", f"\n{shlex.quote(sys.executable)} ")
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with np.load(folder / "DIR/reconstruction.npz") as stored:
        return dict(stored)


def predicted_energies(reconstruction: dict[str, np.ndarray]) -> np.ndarray:
    """Return the sum of I_hat of each pattern, float64 (n,): by Parseval the energy of the exit
    wave. The subpixel remainder of the position shifts the probe."""
    probe, size = reconstruction["probe"].astype(np.complex128), 64
    spectrum, frequency = np.fft.fft2(probe), np.fft.fftfreq(size)
    energies = []
    for position in reconstruction["positions_px"]:
        pixel = np.floor(position + 0.5)
        rest = position - pixel
        moved = np.fft.ifft2(
            spectrum * np.exp(-2j * np.pi * (frequency[:, None] * rest[0] + frequency * rest[1]))
        )
        row, column = (pixel - size // 2 - reconstruction["origin_px"]).astype(int)
        energies.append(
            np.square(
                np.abs(moved * reconstruction["object"][row : row + size, column : column + size])
            ).sum()
        )
    return np.array(energies)


@pytest.mark.slow
def test_photons_and_display_of_the_reconstruction(
    subset: Subset, reconstruction: dict[str, np.ndarray]
) -> None:
    measured = np.square(subset.amplitude).sum(axis=(1, 2)).mean()
    # The summary's number goes through float32 amplitudes.
    assert float(row("mean measured photons per pattern")[0]) == pytest.approx(measured, rel=1e-7)
    predicted = subset.s(subset.mean_counts) ** 2 * predicted_energies(reconstruction).mean()
    # Training amplifies the rounding of other machines: 1 %, as the page says.
    assert float(row("mean predicted photons per pattern")[-1]) == pytest.approx(
        predicted, rel=0.01
    )
    assert float(row("predicted over measured")[0]) == pytest.approx(predicted / measured, rel=0.01)
    amplitude = np.abs(reconstruction["object"][reconstruction["valid"]])
    shown = re.search(
        rf"from ({NUMBER}) \(black\) to ({NUMBER}) \(white\).*?from ({NUMBER}) to ({NUMBER})\.",
        SECTION,
        re.DOTALL,
    )
    assert shown
    found = [*np.percentile(amplitude, (1, 99)), amplitude.min(), amplitude.max()]
    numbers = [float(number) for number in shown.groups()]
    assert numbers[:2] == pytest.approx(found[:2], rel=0.05)
    assert numbers[2:] == pytest.approx(found[2:], rel=0.15)  # single pixels
