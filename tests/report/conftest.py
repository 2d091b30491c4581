"""A report of arrays that were made up, quick to draw."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest

from ptycho_dist.report.page import Report
from ptycho_dist.scale.calibration import Calibration
from tests import figures

HALF_SIZE = 8


@pytest.fixture(scope="module", autouse=True)
def figures_are_drawn() -> Iterator[None]:
    with figures.drawing():
        yield


@pytest.fixture(scope="session")
def report() -> Report:
    random = np.random.default_rng(0)
    y, x = np.indices((16, 16)) - HALF_SIZE
    probe = np.exp(-(y**2 + x**2) / 20 + 0.05j * (y**2 + x**2))[None].astype(np.complex64)
    object_ = (
        random.uniform(0.7, 1, (40, 44)) * np.exp(1j * random.uniform(-0.5, 0.5, (40, 44)))
    ).astype(np.complex64)
    pattern = random.uniform(0.1, 5000, (16, 16))
    nphotons = 1e6 / 3
    mean_energy = HALF_SIZE**2 * (1 + 1e-8)
    return Report(
        title="Reconstruction of scan.npz",
        run={"scan": "/data/scan.npz", "device": "cpu"},
        gain=1.0 + 1e-16,
        calibration=Calibration(
            intensity_scale=math.sqrt(nphotons / mean_energy),
            nphotons=nphotons,
            nphotons_source="metadata",
            rms_factor=0.1 + 0.2,
            mean_energy=mean_energy,
            num_patterns=492,
            pattern_size=16,
            subset_fingerprint="75b1" * 16,
        ),
        summary={
            "deviance_per_pixel": 5.2333071127912705,
            "mean_measured_photons": 440557.10421110585,
            "mean_predicted_photons": 438056.39212800923,
            "num_patterns": 30,
            "masked_pixels": 0,
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
        },
        object=object_,
        origin_px=np.array([3.0, -2.0]),
        valid=np.ones((40, 44), dtype=bool),
        positions_px=random.uniform(10, 40, (30, 2)),
        mean_measured_pattern=pattern,
        mean_predicted_pattern=0.9 * pattern,
        pattern_deviance_per_pixel=random.uniform(1, 9, 30).astype(np.float32),
        probe=probe,
        config={"data": {"path": "/data/scan.npz", "nphotons": None}},
        versions={"python": "3.10.1", "torch": "2.4.0"},
    )


@pytest.fixture(scope="session")
def hostile_report(report: Report) -> tuple[Report, str]:
    """A report in which every text is an attack, and that attack."""
    attack = (
        "</title></style></pre><script>window.hit = 1</script><img src=x onerror='window.hit "
        "= 1'>\"'&{{ 7 * 7 }}"
    )
    return (
        dataclasses.replace(
            report,
            title=attack,
            run={attack: attack},
            calibration=dataclasses.replace(
                report.calibration, nphotons_source=attack, subset_fingerprint=attack
            ),
            summary={**report.summary, "data": attack, "versions": {attack: attack}},
            config={"data": {attack: attack}},
            versions={attack: attack},
            note=attack,
        ),
        attack,
    )


@pytest.fixture(scope="session")
def full_report(report: Report) -> Report:
    """One with every optional part."""
    rows = [
        {"step": 10 * epoch, "epoch": epoch, "train_deviance_per_pixel": 9 / (epoch + 1)}
        for epoch in range(4)
    ]
    rows[-1] |= {
        "val_deviance_per_pixel": "6.5",
        "val_nll": "-447.4700343967199",
        "step_deviance_per_pixel": "",
    }
    return dataclasses.replace(
        report,
        metrics=rows,
        refined_probe=np.concatenate([report.probe, 0.3 * report.probe[:, ::-1]]),
        summary=report.summary | {"refinement": {"deviance_per_pixel": [5.25, 4.5, 4.125]}},
        note="Shown are the 30 of 900 patterns nearest to the centre.",
    )
