"""From a bundle and a scan to photons: the stored scale and normalisation, used as they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import xlogy

from ptycho_dist import load_bundle, read_scan, reconstruct, save_bundle
from ptycho_dist.bundle import Bundle
from ptycho_dist.config import Hdf5Config
from ptycho_dist.data import placement
from ptycho_dist.data.scan import Scan
from ptycho_dist.inference import infer as infer_module
from ptycho_dist.inference import reconstruct as reconstruct_module
from ptycho_dist.inference import scan_patterns
from ptycho_dist.inference.alignment import AlignedPatches, stitching_order
from ptycho_dist.inference.infer import infer
from ptycho_dist.inference.records import Normalization, ProbeChoice, Reconstruction, Units
from ptycho_dist.inference.stitch import StitchedObject
from tests.calibrations import calibration_of
from tests.inference.bundles import SIZE, untrained_bundle
from tests.report.reading import ReadPage, assert_self_contained
from tests.scans import MASKED_HDF5, dead_pixels, small_scan_arrays

FIVE_PATTERNS = dict.fromkeys(("cpu", "cuda"), 5 * SIZE**2)


def read(path: Path) -> Scan:
    return read_scan(path, "amplitude")


@pytest.fixture
def bundle(write_scan: Callable[..., Path]) -> Bundle:
    scan = read(write_scan("training.npz"))
    amplitude = scan.amplitude(np.arange(scan.num_patterns))
    return untrained_bundle(amplitude, scan.probe, 1e6, measurement="amplitude")


def with_data(bundle: Bundle, **changed: Any) -> Bundle:
    """The bundle with another `data` section."""
    config = bundle.require_config()
    data = dataclasses.replace(config.data, **changed)
    return dataclasses.replace(bundle, config=dataclasses.replace(config, data=data))


def predicted_intensities(scan: Scan, result: Reconstruction) -> np.ndarray:
    """Float64 (n, N, N), normalised units: the probe at its subpixel position, times the object
    round the nearest whole pixel."""
    probe = scan.probe.astype(complex) * (SIZE / 2) / np.sqrt((np.abs(scan.probe) ** 2).sum())
    frequency = np.fft.fftfreq(SIZE)
    intensities = []
    for position in scan.positions_px:
        whole = np.floor(position + 0.5)
        dy, dx = position - whole
        shifted = np.fft.ifft2(
            np.fft.fft2(probe[0]) * np.exp(-2j * np.pi * (frequency[:, None] * dy + frequency * dx))
        )
        i, j = (whole - SIZE // 2 - result.origin_px).astype(int)
        exit_wave = shifted * result.object[i : i + SIZE, j : j + SIZE]
        intensities.append(np.abs(np.fft.fftshift(np.fft.fft2(exit_wave, norm="ortho"))) ** 2)
    return np.stack(intensities)


def deviance_in_float64(rate: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The loss's definition with SciPy's k log k; below the loss's floor it goes on along its
    tangent."""
    lit = np.maximum(rate, 1e-3)
    return (
        lit
        - counts
        - xlogy(counts, lit)
        + xlogy(counts, counts)
        + (rate - lit) * (1 - counts / lit)
    )


def test_photons_are_those_of_the_stitched_object(
    bundle: Bundle, write_scan: Callable[..., Path]
) -> None:
    scan = read(write_scan())
    result = reconstruct(bundle, scan)
    rates = bundle.intensity_scale**2 * predicted_intensities(scan, result)
    counts = scan.amplitude(np.arange(37)).astype(float) ** 2
    # nphotons is the mean of the training scan, which this is
    counts *= 1e6 / counts.sum(axis=(1, 2)).mean()
    # float32 transforms; what a pixel lacks of light comes back as rounding of the brightest one
    np.testing.assert_allclose(
        result.photons.mean_predicted_pattern,
        rates.mean(axis=0),
        rtol=1e-5,
        atol=1e-6 * rates.max(),
    )
    np.testing.assert_allclose(result.photons.mean_measured_pattern, counts.mean(axis=0), rtol=1e-6)
    deviances = 2 * deviance_in_float64(rates, counts).mean(axis=(1, 2))
    assert result.photons.pattern_deviance_per_pixel.dtype == np.float32
    np.testing.assert_allclose(result.photons.pattern_deviance_per_pixel, deviances, rtol=1e-4)
    assert result.summary.deviance_per_pixel == pytest.approx(deviances.mean(), rel=1e-4)
    assert result.summary.mean_predicted_photons == pytest.approx(
        rates.sum(axis=(1, 2)).mean(), rel=1e-5
    )
    # The training scan itself: what was measured is nphotons, by the definition of the scale.
    assert result.summary.mean_measured_photons == pytest.approx(1e6, rel=1e-6)


def test_photons_do_not_depend_on_the_batches(
    bundle: Bundle, write_scan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = read(write_scan())
    whole = reconstruct(bundle, scan).photons
    monkeypatch.setattr(scan_patterns, "BATCH_PIXELS", FIVE_PATTERNS)
    batched = reconstruct(bundle, scan).photons
    # convolutions of another batch size round differently
    np.testing.assert_allclose(
        batched.pattern_deviance_per_pixel, whole.pattern_deviance_per_pixel, rtol=1e-3
    )
    np.testing.assert_allclose(
        batched.mean_measured_pattern, whole.mean_measured_pattern, rtol=1e-12
    )


def test_changing_the_stored_scale_changes_predicted_photons_by_its_square_and_nothing_else(
    bundle: Bundle, write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    scan = read(write_scan())
    changed = dataclasses.replace(
        bundle,
        calibration=dataclasses.replace(
            bundle.calibration, intensity_scale=3 * bundle.intensity_scale
        ),
    )
    save_bundle(tmp_path / "changed.zip", changed)
    before, after = (
        reconstruct(bundle, scan),
        reconstruct(load_bundle(tmp_path / "changed.zip"), scan),
    )
    assert np.array_equal(before.object, after.object)
    assert np.array_equal(before.valid, after.valid)
    ratio = after.summary.mean_predicted_photons / before.summary.mean_predicted_photons
    assert ratio == pytest.approx(9, rel=1e-6)  # float32 products
    summaries = [result.summary.to_dict() for result in (before, after)]
    differing = {key for key in summaries[0] if summaries[0][key] != summaries[1][key]}
    differing -= {"seconds"}
    assert differing == {
        "intensity_scale",
        "calibration",
        "mean_predicted_photons",
        "deviance_per_pixel",
    }


def test_units_are_their_definitions(bundle: Bundle) -> None:
    """Another factor than the stored one: photons of the same X do not depend on it."""
    trained, stored = dataclasses.replace(bundle, gain=1.25), bundle.calibration.rms_factor
    for factor in (stored, stored / 3):
        units = Units.of(trained, factor, 4 * (SIZE / 2) ** 2)
        in_counts = bundle.calibration.nphotons / bundle.calibration.mean_energy * stored**2
        assert units.measured_photons * factor**2 == pytest.approx(in_counts, rel=1e-12)
        # by the definition of s, which the gain multiplies
        assert units.predicted_photons == pytest.approx(1.25**2 * units.measured_photons, rel=1e-12)
        assert units.brightness == 2


def test_trained_gain_multiplies_the_predicted_amplitude(
    bundle: Bundle, write_scan: Callable[..., Path]
) -> None:
    scan = read(write_scan())
    before, after = (
        reconstruct(bundle, scan),
        reconstruct(dataclasses.replace(bundle, gain=1.1), scan),
    )
    assert (
        after.summary.mean_predicted_photons / before.summary.mean_predicted_photons
        == pytest.approx(1.21, rel=1e-6)
    )
    assert np.array_equal(before.object, after.object)


def test_scan_of_another_dose(bundle: Bundle, write_scan: Callable[..., Path]) -> None:
    """Four times the dose: its own normalisation gives the same object and four times the photons;
    the stored one twice the amplitude."""
    arrays = small_scan_arrays()
    plain, bright = (
        read(write_scan()),
        read(write_scan("bright.npz", diffraction=2 * arrays["diffraction"])),
    )
    reference = reconstruct(bundle, plain, normalization="scan")
    own, stored = reconstruct(bundle, bright, normalization="scan"), reconstruct(bundle, bright)
    # twice the amplitude is exact, and so is half the factor
    np.testing.assert_array_equal(own.object, reference.object)
    for key in ("mean_measured_photons", "mean_predicted_photons"):
        assert getattr(own.summary, key) / getattr(reference.summary, key) == pytest.approx(
            4, rel=1e-6
        )
    assert stored.summary.mean_measured_photons == pytest.approx(
        own.summary.mean_measured_photons, rel=1e-6
    )
    # The same light, but for how the roots of its energies were rounded; float32.
    np.testing.assert_allclose(stored.object, 2 * own.object, rtol=1e-3, atol=1e-4)
    assert own.summary.normalization == Normalization(
        source="scan", factor=bundle.calibration.rms_factor / 2
    )
    assert stored.summary.normalization == Normalization(
        source="bundle", factor=bundle.calibration.rms_factor
    )


@pytest.mark.parametrize("group_size", [1, 4])
def test_a_weak_scan_is_reconstructed_as_a_strong_one(
    bundle: Bundle,
    write_scan: Callable[..., Path],
    group_size: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A tenth of the amplitude: a tenth of the object's, and a hundredth of the photons."""
    bundle = with_data(bundle, group_size=group_size)
    strong, weak = (
        read(write_scan()),
        read(write_scan("weak.npz", diffraction=0.1 * small_scan_arrays()["diffraction"])),
    )
    caplog.set_level(logging.INFO, "ptycho_dist")
    plain, found = (reconstruct(bundle, scan) for scan in (strong, weak))
    assert (
        "the scan's light has 0.1 times the amplitude of that of the patterns trained on"
        in caplog.text
    )
    assert np.array_equal(found.valid, plain.valid)
    # float32 amplitudes and transforms, pass after pass
    np.testing.assert_allclose(
        found.object[plain.valid],
        0.1 * plain.object[plain.valid],
        atol=5e-4 * np.abs(plain.object).max(),
    )
    np.testing.assert_allclose(
        found.illumination, plain.illumination, atol=1e-5 * plain.illumination.max()
    )
    assert np.array_equal(found.probe, plain.probe)
    for photons in ("mean_predicted_photons", "mean_measured_photons"):
        assert getattr(found.summary, photons) == pytest.approx(
            0.01 * getattr(plain.summary, photons), rel=1e-3
        )


def test_dark_scan_is_refused(bundle: Bundle, write_scan: Callable[..., Path]) -> None:
    dark = read(
        write_scan("dark.npz", diffraction=np.zeros_like(small_scan_arrays()["diffraction"]))
    )
    with pytest.raises(
        ValueError, match=r"dark.npz: diffraction: found 37 patterns, all zero, expected some light"
    ):
        reconstruct(bundle, dark)


def test_patterns_of_another_size_are_refused(
    bundle: Bundle, write_scan: Callable[..., Path]
) -> None:
    scan = read(write_scan("large.npz", arrays=small_scan_arrays(pattern_size=32)))
    with pytest.raises(ValueError, match=r"large.npz: found patterns of 32 x 32, expected 16 x 16"):
        reconstruct(bundle, scan)


def test_probe_of_more_modes_than_in_training_works(
    bundle: Bundle, write_scan: Callable[..., Path]
) -> None:
    scan = read(write_scan("modes.npz", arrays=small_scan_arrays(modes=3)))
    assert np.isfinite(reconstruct(bundle, scan).object).all()


def with_refined_probe(bundle: Bundle, *scans: Scan) -> Bundle:
    """Each scan's probe refined to another one: two modes, curved differently."""
    y, x = np.indices((SIZE, SIZE)) - SIZE / 2
    refined = {
        scan.fingerprint: np.stack(
            [scan.probe[0] * np.exp(0.05j * (number + 1) * (y**2 + x**2)), 0.2 * scan.probe[0]]
        ).astype(np.complex64)
        for number, scan in enumerate(scans)
    }
    return dataclasses.replace(bundle, refined_probes=refined, probe=next(iter(refined.values())))


def test_refined_probe_of_the_scan_is_used(bundle: Bundle, write_scan: Callable[..., Path]) -> None:
    first, second = (
        read(write_scan()),
        read(write_scan("second.npz", arrays=small_scan_arrays(seed=1))),
    )
    trained = with_refined_probe(bundle, first, second)
    for scan in (first, second):
        expected = reconstruct(
            bundle, dataclasses.replace(scan, probe=trained.refined_probes[scan.fingerprint])
        )
        by_default, asked, own = (
            reconstruct(trained, scan, probe=probe) for probe in (None, "bundle", "scan")
        )
        assert np.array_equal(by_default.object, expected.object)
        assert np.array_equal(asked.object, expected.object)
        assert np.array_equal(own.object, reconstruct(bundle, scan).object)
        assert by_default.summary.deviance_per_pixel == expected.summary.deviance_per_pixel
        assert by_default.summary.probe == ProbeChoice(
            source="bundle", refined=True, of_this_scan=True, modes=2
        )
        assert own.summary.probe == ProbeChoice(
            source="scan", refined=False, of_this_scan=True, modes=1
        )
    assert not np.array_equal(
        trained.refined_probes[first.fingerprint], trained.refined_probes[second.fingerprint]
    )


def test_scan_that_was_not_trained_on_gets_the_first_refined_probe_or_its_own(
    bundle: Bundle, write_scan: Callable[..., Path]
) -> None:
    first, new = read(write_scan()), read(write_scan("new.npz", arrays=small_scan_arrays(seed=2)))
    trained = with_refined_probe(bundle, first)
    by_default = reconstruct(trained, new)
    assert np.array_equal(
        by_default.object, reconstruct(bundle, dataclasses.replace(new, probe=trained.probe)).object
    )
    assert by_default.summary.probe == ProbeChoice(
        source="bundle", refined=True, of_this_scan=False, modes=2
    )
    assert np.array_equal(
        reconstruct(trained, new, probe="scan").object, reconstruct(bundle, new).object
    )


def test_probe_that_was_not_refined_is_the_scans_own_unless_asked(
    bundle: Bundle, write_scan: Callable[..., Path]
) -> None:
    other = small_scan_arrays()["probeGuess"] * np.exp(0.3j * np.arange(SIZE))
    scan = read(write_scan(probeGuess=other.astype(np.complex64)))
    assert reconstruct(bundle, scan).summary.probe == ProbeChoice(
        source="scan", refined=False, of_this_scan=True, modes=1
    )
    asked = reconstruct(bundle, scan, probe="bundle")
    assert asked.summary.probe == ProbeChoice(
        source="bundle", refined=False, of_this_scan=False, modes=1
    )
    assert np.array_equal(
        asked.object, reconstruct(bundle, dataclasses.replace(scan, probe=bundle.probe)).object
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many patterns are read at a time."""
    asked: list[int] = []
    amplitude = Scan.amplitude
    monkeypatch.setattr(
        Scan,
        "amplitude",
        lambda self, patterns: (asked.append(len(patterns)), amplitude(self, patterns))[1],
    )
    return asked


def test_patterns_that_fit_are_read_once(
    bundle: Bundle, write_scan: Callable[..., Path], asked: list[int]
) -> None:
    scan = read(write_scan())
    reconstruct(bundle, scan, refine_iterations=2)
    assert sum(asked) == scan.num_patterns
    asked.clear()
    reconstruct(bundle, scan, normalization="scan")
    assert sum(asked) == 2 * scan.num_patterns


def test_patterns_that_do_not_fit_are_streamed(
    bundle: Bundle,
    write_scan: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    asked: list[int],
) -> None:
    scan = read(write_scan())
    monkeypatch.setattr(scan_patterns, "BATCH_PIXELS", FIVE_PATTERNS)
    held = reconstruct(bundle, scan, refine_iterations=4)
    asked.clear()
    monkeypatch.setattr(placement, "LARGEST_PART", 0.0)
    streamed = reconstruct(bundle, scan, refine_iterations=4)
    assert max(asked) == 5
    passes, kept = (
        streamed.summary.corrections.passes,
        streamed.summary.corrections.deviance_per_pixel,
    )
    assert passes == len(kept) - 1  # none was taken back, so each was judged once
    # Brightness, first estimate, passes of the network, judgements, start and iterations of the
    # refinement, photons.
    assert sum(asked) == (1 + 1 + passes + len(kept) + 5 + 1) * scan.num_patterns
    assert np.array_equal(streamed.object, held.object)
    assert np.array_equal(
        streamed.photons.pattern_deviance_per_pixel, held.photons.pattern_deviance_per_pixel
    )


@pytest.mark.parametrize(
    ("normalization", "gain", "mask"),
    [
        ("bundle", 1.0, None),
        ("bundle", 1.2, None),
        ("scan", 1.0, None),
        ("bundle", 1.0, dead_pixels(0)),
    ],
)
def test_refinement_goes_on_from_the_networks_object(
    bundle: Bundle,
    write_scan: Callable[..., Path],
    normalization: str,
    gain: float,
    mask: np.ndarray | None,
) -> None:
    """Its deviance is that of the summary, before and after, whatever the dose, the trained gain
    and the mask."""
    bright = read(write_scan(diffraction=1.5 * small_scan_arrays()["diffraction"]))
    bright = dataclasses.replace(bright, mask=mask)
    bundle = dataclasses.replace(bundle, gain=gain)
    plain = reconstruct(bundle, bright, normalization=normalization)
    refined = reconstruct(bundle, bright, normalization=normalization, refine_iterations=4)
    history = refined.summary.refinement.deviance_per_pixel
    assert len(history) == 5
    # float32 transforms
    assert history[0] == pytest.approx(plain.summary.deviance_per_pixel, rel=1e-5)
    assert history[-1] == pytest.approx(refined.summary.deviance_per_pixel, rel=1e-5)
    assert history[-1] < history[0] / 2
    assert np.array_equal(refined.probe, plain.probe)
    assert np.array_equal(refined.valid, plain.valid)


def test_nothing_is_refined_unless_asked(
    bundle: Bundle, write_scan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruct_module, "refine", None)
    monkeypatch.setattr(StitchedObject, "replace", None)
    result = reconstruct(bundle, read(write_scan()))
    assert result.summary.refinement is None
    assert np.array_equal(result.probe, result.initial_probe)


@pytest.mark.parametrize(
    ("iterations", "refine_probe", "message"),
    [(-1, False, "is -1, expected at least 0"), (0, True, "is 0, expected at least 1")],
)
def test_refinement_that_can_not_be_is_refused(
    bundle: Bundle,
    write_scan: Callable[..., Path],
    iterations: int,
    refine_probe: bool,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        reconstruct(
            bundle, read(write_scan()), refine_iterations=iterations, refine_probe=refine_probe
        )


@pytest.mark.usefixtures("drawn_figures")
def test_refined_probe_is_kept_and_shown(
    bundle: Bundle, write_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer_module, "report_reconstruction", lambda *_, **__: None)
    save_bundle(tmp_path / "bundle.zip", bundle)
    # another dose than in training: the probe that is kept has the energy (N/2)^2 all the same
    bright = write_scan(diffraction=1.5 * small_scan_arrays()["diffraction"])
    paths = (tmp_path / "bundle.zip", bright)
    infer(*paths, tmp_path / "plain")
    infer(*paths, tmp_path / "refined", refine_iterations=3, refine_probe=True)
    probes = [
        np.load(tmp_path / name / "reconstruction.npz")["probe"] for name in ("plain", "refined")
    ]
    assert not np.allclose(*probes, atol=1e-3)
    assert [np.sum(np.abs(probe) ** 2) for probe in probes] == pytest.approx(
        [(SIZE / 2) ** 2] * 2, rel=1e-6
    )
    summary = json.loads((tmp_path / "refined" / "summary.json").read_text())
    assert set(summary["refinement"]) == {
        "iterations",
        "refine_probe",
        "deviance_per_pixel",
        "seconds",
    }
    heights = [Image.open(tmp_path / name / "probe.png").height for name in ("plain", "refined")]
    assert heights[1] > 1.5 * heights[0]  # before, and below it after


def test_a_network_of_single_patterns_sees_each_alone(
    bundle: Bundle, write_scan: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = small_scan_arrays()["diffraction"].copy()
    changed[7] = changed[7].T
    found: dict[tuple[int, ...], np.ndarray] = {}
    add = AlignedPatches.add

    def note(
        self: AlignedPatches, patches: torch.Tensor, weights: torch.Tensor, corners: torch.Tensor
    ) -> None:
        found.update(
            {
                tuple(corner): patch
                for corner, patch in zip(corners.tolist(), patches.numpy(), strict=True)
            }
        )
        add(self, patches, weights, corners)

    monkeypatch.setattr(AlignedPatches, "add", note)
    reconstruct(with_data(bundle, group_size=1), scan := read(write_scan()))
    before = dict(found)
    reconstruct(
        with_data(bundle, group_size=1), read(write_scan("changed.npz", diffraction=changed))
    )
    corners = np.floor(scan.positions_px + 0.5).astype(int) - SIZE // 2
    corners -= corners.min(axis=0)
    assert [
        corner for corner in before if not np.allclose(before[corner], found[corner], atol=1e-5)
    ] == [tuple(corners[7].tolist())]


@pytest.mark.parametrize("largest_part", [0.0, 1.0])
def test_patches_of_single_patterns_come_in_the_order_of_stitching(
    bundle: Bundle,
    write_scan: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    largest_part: float,
) -> None:
    """Also across batches, and whether patterns are streamed or held."""
    monkeypatch.setattr(placement, "LARGEST_PART", largest_part)
    monkeypatch.setattr(scan_patterns, "BATCH_PIXELS", FIVE_PATTERNS)
    came: list[list[int]] = []
    add = AlignedPatches.add
    monkeypatch.setattr(
        AlignedPatches,
        "add",
        lambda self, *patches: (came.extend(patches[-1].tolist()), add(self, *patches)),
    )
    reconstruct(with_data(bundle, group_size=1), scan := read(write_scan()))
    corners = np.floor(scan.positions_px + 0.5).astype(int)
    corners -= corners.min(axis=0)
    assert came == corners[stitching_order(scan.positions_px, SIZE)].tolist()


def test_a_pattern_far_from_all_others_is_reconstructed_too(
    bundle: Bundle, write_scan: Callable[..., Path]
) -> None:
    arrays = small_scan_arrays()
    far = {"xcoords": arrays["xcoords"].copy(), "ycoords": arrays["ycoords"].copy()}
    far["xcoords"][5] = far["ycoords"][5] = 500.0
    result = reconstruct(bundle, read(write_scan("far.npz", **far)))
    assert np.isfinite(result.object).all()
    assert result.valid[-SIZE // 2, -SIZE // 2]


def test_a_scan_of_fewer_patterns_than_a_group(
    bundle: Bundle, write_scan: Callable[..., Path]
) -> None:
    scan = read(write_scan("two.npz", arrays=small_scan_arrays(num_patterns=2)))
    assert np.isfinite(reconstruct(bundle, scan).object).all()


def test_a_value_that_is_no_measurement_is_refused(
    bundle: Bundle, write_scan: Callable[..., Path]
) -> None:
    diffraction = small_scan_arrays()["diffraction"]
    diffraction[7, 3, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"scan.npz: diffraction: found nan at pixel \[3, 2\] of pattern 7"
    ):
        reconstruct(bundle, read(write_scan(diffraction=diffraction)))


def test_files_that_inference_leaves(
    bundle: Bundle, write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    save_bundle(tmp_path / "bundle.zip", bundle)
    scan_path = write_scan()
    digest = hashlib.sha256(scan_path.read_bytes()).digest()
    # the file does not say what it holds: the bundle's training scan does
    infer(tmp_path / "bundle.zip", scan_path, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "amplitude.png",
        "phase.png",
        "probe.png",
        "reconstruction.npz",
        "report.html",
        "summary.json",
    ]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["intensity_scale"] == bundle.intensity_scale
    assert summary["num_patterns"] == 37
    assert {"bundle", "data", "corrections", "probe", "versions"} <= set(summary)
    assert "refinement" not in summary
    stages = ["read", "normalize", "network_and_stitching", "photons", "write"]
    assert list(summary["seconds"]) == stages
    with np.load(tmp_path / "out" / "reconstruction.npz", allow_pickle=False) as arrays:
        assert arrays["object"].dtype == np.complex64
        assert arrays["object"].shape == arrays["valid"].shape == arrays["illumination"].shape
        assert arrays["illumination"].dtype == np.float32
        # All of the light, 37 probes of energy (N/2)^2 each.
        assert arrays["illumination"].sum() == pytest.approx(37 * (SIZE / 2) ** 2, rel=1e-4)
        assert arrays["positions_px"].shape == (37, 2)
        assert arrays["origin_px"].shape == (2,)
        assert arrays["probe"].dtype == np.complex64
        assert np.sum(np.abs(arrays["probe"]) ** 2) == pytest.approx((SIZE / 2) ** 2, rel=1e-6)
        assert arrays["pattern_deviance_per_pixel"].shape == (37,)
        # stored as float32
        assert arrays["pattern_deviance_per_pixel"].mean() == pytest.approx(
            summary["deviance_per_pixel"], rel=1e-5
        )
    assert hashlib.sha256(scan_path.read_bytes()).digest() == digest


def test_report_tells_what_the_files_tell(
    bundle: Bundle, write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    """To the last digit; and the stored scale is audited, whatever factor normalised the input."""
    save_bundle(
        tmp_path / "bundle.zip", dataclasses.replace(bundle, gain=1.1, versions={"torch": "2.4.0"})
    )
    bright = write_scan("<b>bright.npz", diffraction=2 * small_scan_arrays()["diffraction"])
    infer(tmp_path / "bundle.zip", bright, tmp_path / "out", normalization="scan")
    page, summary = (
        ReadPage(tmp_path / "out" / "report.html"),
        json.loads((tmp_path / "out" / "summary.json").read_text()),
    )
    assert_self_contained(page)
    assert len(page.images()) == 5
    shown = {
        "nphotons": summary["nphotons"],
        "r": summary["calibration"]["rms_factor"],
        "mean energy": summary["calibration"]["mean_energy"],
        "s (intensity_scale)": summary["intensity_scale"],
        "g (gain)": 1.1,
        "patterns counted": summary["calibration"]["num_patterns"],
    }
    assert {name: float(page.value(name)) for name in shown} == shown
    assert page.value("fingerprint") == summary["calibration"]["subset_fingerprint"] == "0" * 64
    assert page.value("scan") == str(bright)
    assert (
        page.value("normalization") == f"factor {summary['normalization']['factor']!r}, of the scan"
    )
    assert page.value("versions, training") == "torch 2.4.0"
    assert page.value("versions, this page").startswith(f"python {summary['versions']['python']}")
    assert "passes both checks" in page.text
    for key in ("mean_predicted_photons", "mean_measured_photons", "deviance_per_pixel"):
        assert f'"{key}": {summary[key]!r}' in page.text
    assert f"a deviance of {summary['deviance_per_pixel']:.4g} per pixel" in " ".join(
        page.text.split()
    )


# --- Masks


def masked(scan: Scan, seed: int = 0) -> Scan:
    return dataclasses.replace(scan, mask=dead_pixels(seed))


@pytest.mark.parametrize("group_size", [1, 4])
def test_photons_of_a_masked_scan_are_those_of_the_pixels_that_count(
    bundle: Bundle, write_scan: Callable[..., Path], group_size: int
) -> None:
    """The bundle is of the scan without a mask: what one pixel means does not change."""
    scan = masked(read(write_scan()))
    result = reconstruct(with_data(bundle, group_size=group_size), scan)
    rates = bundle.intensity_scale**2 * predicted_intensities(scan, result)
    whole = small_scan_arrays()["diffraction"].astype(float) ** 2
    counts = whole * (1e6 / whole.sum(axis=(1, 2)).mean())
    photons, mask = result.photons, scan.mask
    for pattern, expected in (
        (photons.mean_predicted_pattern, rates),
        (photons.mean_measured_pattern, counts),
    ):
        # float32 transforms
        np.testing.assert_allclose(
            pattern[mask], expected.mean(axis=0)[mask], rtol=1e-5, atol=1e-6 * expected.max()
        )
        assert np.isnan(pattern[~mask]).all()
    deviances = 2 * deviance_in_float64(rates, counts)[:, mask].mean(axis=1)
    np.testing.assert_allclose(photons.pattern_deviance_per_pixel, deviances, rtol=1e-4)
    assert result.summary.deviance_per_pixel == pytest.approx(deviances.mean(), rel=1e-4)
    assert result.summary.mean_predicted_photons == pytest.approx(
        rates[:, mask].sum(axis=1).mean(), rel=1e-5
    )
    assert result.summary.mean_measured_photons == pytest.approx(
        counts[:, mask].sum(axis=1).mean(), rel=1e-5
    )
    assert result.summary.masked_pixels == np.count_nonzero(~mask)


def test_bundle_of_a_masked_scan_on_a_scan_without_a_mask(
    bundle: Bundle, write_scan: Callable[..., Path]
) -> None:
    """Counts are the same function of what was measured; all pixels count."""
    scan = read(write_scan())
    amplitude = masked(scan).amplitude(np.arange(37))
    of_masked = dataclasses.replace(bundle, calibration=calibration_of(amplitude, 1e6))
    result = reconstruct(of_masked, scan)
    whole, counted = (
        np.square(each, dtype=float).sum(axis=(1, 2)).mean()
        for each in (scan.amplitude(np.arange(37)), amplitude)
    )
    assert result.summary.mean_measured_photons == pytest.approx(1e6 * whole / counted, rel=1e-6)
    assert result.summary.masked_pixels == 0
    assert np.isfinite(result.photons.mean_measured_pattern).all()
    rates = of_masked.intensity_scale**2 * predicted_intensities(scan, result)
    assert result.summary.mean_predicted_photons == pytest.approx(
        rates.sum(axis=(1, 2)).mean(), rel=1e-5
    )


@pytest.mark.parametrize("refine_iterations", [0, 3])
def test_mask_that_lets_everything_count_changes_no_bit(
    bundle: Bundle, write_scan: Callable[..., Path], refine_iterations: int
) -> None:
    scan = read(write_scan())
    results = [
        reconstruct(
            bundle, dataclasses.replace(scan, mask=mask), refine_iterations=refine_iterations
        )
        for mask in (None, np.ones((SIZE, SIZE), dtype=bool))
    ]
    assert np.array_equal(results[0].object, results[1].object)
    summaries = [result.summary.to_dict() for result in results]
    for summary in summaries:
        del summary["seconds"]
        summary.get("refinement", {}).pop("seconds", None)
    assert summaries[0] == summaries[1]


def test_files_of_a_masked_scan(
    bundle: Bundle, write_masked_scan: Callable[..., Path], tmp_path: Path
) -> None:
    save_bundle(tmp_path / "bundle.zip", with_data(bundle, hdf5=Hdf5Config(**MASKED_HDF5)))
    infer(
        tmp_path / "bundle.zip",
        write_masked_scan("scan.h5", dead_pixels(0), np.nan),
        tmp_path / "out",
        refine_iterations=1,
    )
    summary = json.loads(
        (tmp_path / "out" / "summary.json").read_text(),
        parse_constant=lambda name: pytest.fail(name),
    )
    assert summary["masked_pixels"] == np.count_nonzero(~dead_pixels(0))
    text = " ".join(ReadPage(tmp_path / "out" / "report.html").text.split())
    assert f"Grey: the {summary['masked_pixels']} masked pixels" in text
