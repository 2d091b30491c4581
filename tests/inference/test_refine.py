"""Refinement against a known truth, against NumPy in float64, and against what an ePIE left of a
measured scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho_dist import load_bundle, read_scan, reconstruct, train
from ptycho_dist.config import Config, DataConfig, ModelConfig, TrainConfig
from ptycho_dist.data.scan import Scan
from ptycho_dist.inference import refine as refine_module
from ptycho_dist.inference.records import Units
from ptycho_dist.inference.refine import Refinement, refine
from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.model.loss import RATE_FLOOR
from ptycho_dist.physics.probe import normalize_probe
from ptycho_dist.physics.simulated_objects import make_object
from ptycho_dist.physics.simulated_probes import make_probe
from ptycho_dist.physics.simulation import (
    canvas_shape,
    expected_intensity,
    noisy_diffraction,
    raster_positions,
    scale_probe,
)
from tests.scans import dead_pixels

SIZE = 32
PHOTONS = 1e5


@dataclasses.dataclass(kw_only=True)
class KnownScan:
    """A simulated scan at subpixel positions, its truth on the canvas of the stitched object, and
    photons from either."""

    positions_px: np.ndarray
    counts: np.ndarray
    true_probe: torch.Tensor
    true_object: torch.Tensor
    photons_per_intensity: float
    batch_patterns: int = 16
    mask: torch.Tensor | None = None

    def stitched(self, object_: torch.Tensor, probe: torch.Tensor) -> StitchedObject:
        start = StitchedObject(self.positions_px, probe)
        start.replace(object_, probe, torch.from_numpy(self.positions_px))
        return start

    @property
    def num_patterns(self) -> int:
        return len(self.counts)

    @property
    def units(self) -> Units:
        """Patterns are in sqrt(counts)."""
        return Units(
            predicted_amplitude=np.sqrt(self.photons_per_intensity),
            measured_photons=1.0,
            brightness=1.0,
        )

    def batches(self, order: None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        counts = self.counts if self.mask is None else self.counts * self.mask.numpy()
        for first in range(0, len(self.counts), self.batch_patterns):
            batch = slice(first, first + self.batch_patterns)
            x_norm = torch.from_numpy(np.sqrt(counts[batch]))
            yield torch.from_numpy(self.positions_px[batch]), x_norm

    def refined(
        self,
        object_: torch.Tensor,
        probe: torch.Tensor,
        iterations: int,
        *,
        refine_probe: bool = False,
    ) -> Refinement:
        start = self.stitched(object_, probe)
        return refine(start, self, self.units, iterations=iterations, refine_probe=refine_probe)

    def deviance(self, object_: torch.Tensor, probe: torch.Tensor) -> float:
        return self.refined(object_, probe, 0).deviance_per_pixel[0]


def simulate(*, modes: int = 1, defocus_rad: float = 4.0) -> KnownScan:
    rng = np.random.default_rng(0)
    probe = make_probe("defocused", SIZE, 14.0, defocus_rad)
    slope = np.linspace(-1, 1, SIZE)
    probe = np.concatenate(
        [probe * factor for factor in (1, 0.6 * slope, 0.6 * slope[:, None])[:modes]]
    )
    positions_px = raster_positions((9, 8), 3.0, 1.0, SIZE, rng)
    object_ = make_object(
        "dead_leaves", canvas_shape(positions_px, SIZE), (0.6, 1.0), (-0.8, 0.8), rng
    )
    photon_probe = scale_probe(probe, object_, positions_px, PHOTONS)
    counts = noisy_diffraction(photon_probe, object_, positions_px, rng) ** 2
    # Photons an intensity: what the probe has in photons, over what it has in normalised units.
    photons_per_intensity = np.sum(np.abs(photon_probe) ** 2) / (SIZE / 2) ** 2
    true_probe = normalize_probe(torch.from_numpy(probe))
    empty = StitchedObject(positions_px, true_probe)
    y, x = empty.origin_px.astype(int)
    height, width = empty.light.shape[1:]
    return KnownScan(
        positions_px=positions_px,
        counts=np.rint(counts),
        true_probe=true_probe,
        true_object=torch.from_numpy(object_[y : y + height, x : x + width]).to(torch.complex64),
        photons_per_intensity=photons_per_intensity,
    )


@pytest.fixture(scope="module")
def scan() -> KnownScan:
    return simulate()


def spoilt(object_: torch.Tensor) -> torch.Tensor:
    """Blurred over 3 x 3 pixels, and noisy."""
    parts = [
        torch.nn.functional.avg_pool2d(part[None, None], 3, stride=1, padding=1)[0, 0]
        for part in (object_.real, object_.imag)
    ]
    noise = torch.randn(
        object_.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)
    )
    return torch.complex(*parts) + 0.1 * noise


def defocused(probe: torch.Tensor, *, rad: float) -> torch.Tensor:
    """The probe with a quadratic phase in its far field, `rad` at the radius that half of its
    spectrum's energy lies within."""
    spectrum = torch.fft.fft2(probe)
    frequency = torch.fft.fftfreq(SIZE)
    square = frequency[:, None] ** 2 + frequency**2
    mean_square = (spectrum.abs() ** 2 * square).sum() / (spectrum.abs() ** 2).sum()
    return normalize_probe(
        torch.fft.ifft2(spectrum * torch.polar(torch.ones_like(square), rad * square / mean_square))
    )


def float64_deviance(scan: KnownScan, object_: np.ndarray, probe: np.ndarray) -> float:
    """The sum of d, by the simulator's own forward model."""
    origin = np.floor(scan.positions_px + 0.5).min(axis=0) - SIZE // 2
    scaled_probe = probe * np.sqrt(scan.photons_per_intensity)
    rate = expected_intensity(scaled_probe, object_, scan.positions_px - origin)
    lit, counts = np.maximum(rate, RATE_FLOOR), scan.counts
    at_floor = lit - counts - counts * np.log(lit / np.where(counts > 0, counts, 1))
    d = at_floor + (rate - lit) * (1 - counts / lit)
    return float(np.sum(d if scan.mask is None else d[:, scan.mask.numpy()]))


def test_object_comes_back_from_a_spoilt_one(scan: KnownScan) -> None:
    of_truth = scan.deviance(scan.true_object, scan.true_probe)
    start = spoilt(scan.true_object)
    refined = scan.refined(start, scan.true_probe, 20)
    first, *_, last = refined.deviance_per_pixel
    assert first > 5 * of_truth
    assert last < of_truth  # the truth is not the maximum of the likelihood: noise is fitted too
    lit = scan.stitched(start, scan.true_probe).light[0] > 20
    error = [
        float((found - scan.true_object)[lit].abs().square().mean().sqrt())
        for found in (start, refined.object)
    ]
    assert error[1] < error[0] / 4


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("modes", [1, 3])
def test_deviance_and_gradient_are_those_of_float64_numpy(modes: int, is_masked: bool) -> None:
    scan = simulate(modes=modes)
    scan.mask = torch.from_numpy(dead_pixels(0, pattern_size=SIZE)) if is_masked else None
    object_, probe = spoilt(scan.true_object), defocused(scan.true_probe, rad=0.3)
    stitched = scan.stitched(object_, probe)
    total, gradients = refine_module._deviance_and_gradient(
        [object_, probe], stitched, scan, scan.units, scan.mask
    )
    arrays = [object_.numpy().astype(complex), probe.numpy().astype(complex)]
    assert total == pytest.approx(float64_deviance(scan, *arrays), rel=1e-5)  # float32 transforms
    random = np.random.default_rng(1)
    for number, gradient in enumerate(gradients):
        # Towards the gradient there is no cancellation; towards noise, all pixels count.
        noise = random.normal(size=(*gradient.shape, 2)) @ [1, 1j]
        for towards in (gradient.numpy() / np.linalg.norm(gradient), noise / np.linalg.norm(noise)):
            moved = [
                [a + sign * 1e-5 * towards if i == number else a for i, a in enumerate(arrays)]
                for sign in (1, -1)
            ]
            slope = (float64_deviance(scan, *moved[0]) - float64_deviance(scan, *moved[1])) / 2e-5
            found = np.sum((gradient.numpy().conj() * towards).real)
            # float32 gradient
            assert found == pytest.approx(slope, abs=1e-4 * float(np.linalg.norm(gradient)))


def test_object_comes_back_behind_a_mask(scan: KnownScan) -> None:
    """A tenth of the pixels, two columns and the beam's centre are not seen; the deviance is that
    of a pixel that counts."""
    masked = dataclasses.replace(scan, mask=torch.from_numpy(dead_pixels(0, pattern_size=SIZE)))
    start = spoilt(scan.true_object)
    refined = masked.refined(start, scan.true_probe, 20)
    first, *_, last = refined.deviance_per_pixel
    expected = 2 * float64_deviance(
        masked, start.numpy().astype(complex), scan.true_probe.numpy().astype(complex)
    )
    # float32 transforms
    assert first == pytest.approx(
        expected / len(scan.counts) / np.count_nonzero(masked.mask.numpy()), rel=1e-5
    )
    assert last < masked.deviance(scan.true_object, scan.true_probe)
    lit = scan.stitched(start, scan.true_probe).light[0] > 20
    error = [
        float((found - scan.true_object)[lit].abs().square().mean().sqrt())
        for found in (start, refined.object)
    ]
    assert error[1] < error[0] / 4


@pytest.mark.parametrize("modes", [1, 2])
def test_wrong_probe_comes_right(modes: int) -> None:
    scan = simulate(modes=modes)
    empty, wrong = torch.ones_like(scan.true_object), defocused(scan.true_probe, rad=1.0)
    kept = scan.refined(empty, wrong, 40)
    refined = scan.refined(empty, wrong, 40, refine_probe=True)
    assert torch.equal(kept.probe, wrong)
    assert refined.deviance_per_pixel[-1] < kept.deviance_per_pixel[-1] / 4
    assert float(refined.probe.abs().square().sum()) == pytest.approx((SIZE / 2) ** 2, rel=1e-5)
    overlaps = [overlap(probe, scan.true_probe) for probe in (wrong, refined.probe)]
    assert overlaps[1] > overlaps[0]


def overlap(probe: torch.Tensor, other: torch.Tensor) -> float:
    """Fidelity of two probes as incoherent mixtures, 0 to 1: the nuclear norm of their modes'
    overlaps."""
    return (
        float(torch.linalg.svdvals(torch.einsum("iyx,jyx->ij", probe.conj(), other)).sum())
        / (SIZE / 2) ** 2
    )


def test_deviance_never_rises_and_every_value_is_true(scan: KnownScan) -> None:
    wrong = defocused(scan.true_probe, rad=3.0)
    refined = scan.refined(torch.ones_like(scan.true_object), wrong, 15, refine_probe=True)
    history = refined.deviance_per_pixel
    assert len(history) == 16
    assert np.all(np.diff(history) <= 0)
    assert scan.deviance(refined.object, refined.probe) == history[-1]


@pytest.mark.parametrize("factor", [1e6, -30.0, float("nan")])
def test_a_step_that_diverges_is_never_returned(
    scan: KnownScan, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps a million times too long, uphill, or not numbers."""
    moved = refine_module._moved

    def go_astray(
        unknowns: list[torch.Tensor], direction: list[torch.Tensor], length: float
    ) -> list[torch.Tensor]:
        return moved(unknowns, direction, factor * length)

    monkeypatch.setattr(refine_module, "_moved", go_astray)
    start = spoilt(scan.true_object)
    refined = scan.refined(start, scan.true_probe, 4, refine_probe=True)
    history = refined.deviance_per_pixel
    assert np.isfinite(history).all()
    assert max(history) == history[0]
    assert torch.isfinite(refined.object.abs()).all()
    assert torch.isfinite(refined.probe.abs()).all()
    if not factor > 0:  # nothing to take
        assert torch.equal(
            refined.object, torch.from_numpy(scan.stitched(start, scan.true_probe).object())
        )


def test_a_step_taken_back_is_tried_again_shorter(
    scan: KnownScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # far too little: the step is far too long
    monkeypatch.setattr(refine_module, "_rough_curvature", lambda *_: [torch.tensor(20.0)])
    history = scan.refined(spoilt(scan.true_object), scan.true_probe, 12).deviance_per_pixel
    assert history[1] == history[0]
    assert history[-1] < history[0] / 4


def test_dark_patterns_and_an_opaque_object_stay_finite(scan: KnownScan) -> None:
    """Predicted rates of zero where photons were counted, and the other way round."""
    dark = dataclasses.replace(
        scan, counts=np.where(np.arange(len(scan.counts))[:, None, None] % 2, scan.counts, 0.0)
    )
    for start in (torch.zeros_like(scan.true_object), torch.full_like(scan.true_object, 1e-12)):
        refined = dark.refined(start, scan.true_probe, 5, refine_probe=True)
        history = refined.deviance_per_pixel
        assert np.isfinite(history).all()
        assert history[-1] <= history[0]
        assert torch.isfinite(refined.object.abs()).all()


def test_regions_without_light_keep_what_they_had(scan: KnownScan) -> None:
    probe = scan.true_probe.clone()
    probe[:, :4], probe[:, -4:] = 0, 0
    # the shift of a cut probe would ring
    whole = dataclasses.replace(scan, positions_px=np.floor(scan.positions_px + 0.5))
    start = spoilt(scan.true_object)
    stitched = whole.stitched(start, probe)
    stitched.light += 1e-3  # so that the dark has a value of its own
    stitched.hold(start)
    result = refine(stitched, whole, whole.units, iterations=3)
    moved = (result.object - start).abs()
    assert moved[:4].max() < 1e-5  # transforms leave some rounding where the probe is dark
    assert moved[-4:].max() < 1e-5
    assert moved.max() > 0.1


def test_same_bits_twice_and_start_left_alone(scan: KnownScan) -> None:
    stitched = scan.stitched(spoilt(scan.true_object), scan.true_probe)
    before, probe_before = stitched.object(), stitched.probe.clone()
    results = [
        refine(stitched, scan, scan.units, iterations=3, refine_probe=True) for _ in range(2)
    ]
    assert torch.equal(results[0].object, results[1].object)
    assert torch.equal(results[0].probe, results[1].probe)
    assert np.array_equal(stitched.object(), before)
    assert torch.equal(stitched.probe, probe_before)


def test_batches_do_not_matter(scan: KnownScan) -> None:
    start = spoilt(scan.true_object)
    one, other = (
        dataclasses.replace(scan, batch_patterns=batch)
        .refined(start, scan.true_probe, 3)
        .deviance_per_pixel
        for batch in (5, 72)
    )
    assert one == pytest.approx(other, rel=1e-4)  # float32 sums in another order


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("pattern_size", [64, 128])
def test_measured_scan_reaches_what_epie_left_and_sooner_than_from_an_empty_object(
    realdata: Path, pattern_size: int, tmp_path: Path
) -> None:
    path = realdata / f"siemens_velociprobe_N{pattern_size}.npz"
    data = DataConfig(
        path=str(path), measurement="amplitude", nphotons="measured", group_size=4, subset_size=256
    )
    train_config = TrainConfig(
        run_dir=str(tmp_path / "run"), epochs=2, global_batch_size=4, learning_rate=5e-3
    )
    bundle = load_bundle(
        train(Config(data=data, model=ModelConfig(base_width=16), train=train_config))
    )
    scan = read_scan(path, "amplitude")

    result = reconstruct(bundle, scan, refine_iterations=10)
    from_network = result.summary.refinement.deviance_per_pixel
    assert result.summary.deviance_per_pixel == pytest.approx(from_network[-1], rel=1e-5)
    untrained = dataclasses.replace(
        bundle, weights={name: 0 * weight for name, weight in bundle.weights.items()}
    )
    from_empty = reconstruct(
        untrained, scan, refine_iterations=10
    ).summary.refinement.deviance_per_pixel

    epie = deviance_of_the_files_own_object(scan)
    reached = [int(np.argmax(np.array(history) <= epie)) for history in (from_network, from_empty)]
    assert min(from_network) <= epie
    assert min(from_empty) <= epie
    assert reached[0] < reached[1]


def deviance_of_the_files_own_object(scan: Scan) -> float:
    """By NumPy in float64. The file's probe and object are in sqrt(counts), and cover the scan."""
    counts = scan.amplitude(np.arange(scan.num_patterns)).astype(float) ** 2
    size = scan.pattern_size
    object_ = np.pad(scan.object_guess.astype(complex), size, constant_values=1)
    total = 0.0
    for first in range(0, scan.num_patterns, 64):
        batch = slice(first, first + 64)
        rate = np.maximum(
            expected_intensity(
                scan.probe.astype(complex), object_, scan.positions_px[batch] + size
            ),
            RATE_FLOOR,
        )
        measured = counts[batch]
        total += np.sum(
            rate - measured - measured * np.log(rate / np.where(measured > 0, measured, 1))
        )
    return 2 * total / counts.size
