"""The network's passes over a scan, with networks whose answer is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy.special import xlogy
from torch import Tensor

from ptycho_dist.inference.passes import (
    LEAST_GAIN,
    MOST_PASSES,
    correct_together,
    first_estimate_of_scan,
)
from ptycho_dist.inference.records import Corrections
from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.model.first_estimate import first_estimate
from ptycho_dist.physics.patches import GroupCanvas, extract_patches
from ptycho_dist.physics.probe import normalize_probe
from ptycho_dist.physics.propagation import diffracted_intensity
from tests.scans import dead_pixels

SIZE = 16
PHOTONS = 1e4

Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def positions_px() -> np.ndarray:
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(5), indexing="ij"), -1).reshape(
        -1, 2
    ) * 3.0 + [40.0, -20.0]
    return grid + np.random.default_rng(0).uniform(-0.5, 0.5, grid.shape)


def beam() -> Tensor:
    y, x = np.indices((SIZE, SIZE)) - SIZE / 2
    return normalize_probe(
        torch.from_numpy(np.exp(-(y**2 + x**2) / 20 + 0.05j * (y**2 + x**2))[None])
    )


class Known:
    """A scan of a known object, with `network` in the place of a trained one."""

    def __init__(self, mask: np.ndarray | None = None) -> None:
        self.mask = None if mask is None else torch.from_numpy(mask)
        self.pixels = np.ones((SIZE, SIZE), dtype=bool) if mask is None else mask
        self.positions_px, self.num_patterns = positions_px(), len(positions_px())
        self.stitched = StitchedObject(positions_px(), beam())
        height, width = self.stitched.light.shape[1:]
        y, x = np.indices((height, width))
        truth = (1 + 0.2 * np.sin(0.3 * y)) * np.exp(1j * np.cos(0.25 * x + 0.1 * y))
        self.truth = torch.from_numpy(truth).to(torch.complex64)
        self.intensity = self.predict(self.truth)

    def predict(self, object_: Tensor) -> Tensor:
        corners, probe = self.stitched.place(torch.from_numpy(positions_px()))
        return diffracted_intensity(extract_patches(object_[None], corners[None], SIZE)[0], probe)

    def batches(self, order: None = None) -> Iterator[tuple[Tensor, Tensor]]:
        seen = self.intensity * torch.from_numpy(self.pixels)
        for part in np.array_split(np.arange(len(positions_px())), 4):
            yield torch.from_numpy(positions_px()[part]), seen[part].sqrt()

    def correct(self, network: Network) -> Corrections:
        return correct_together(network, self.stitched, self, PHOTONS)  # type: ignore[arg-type]

    def deviance_per_pixel(self, object_: Tensor) -> float:
        """In float64, of the pixels that count, with the factor that suits their counts best."""
        rate, counts = (
            self.predict(object_).double().numpy()[:, self.pixels],
            PHOTONS * self.intensity.double().numpy()[:, self.pixels],
        )
        rate *= counts.sum() / rate.sum()
        return 2 * float(np.mean(rate - counts + xlogy(counts, counts) - xlogy(counts, rate)))

    def towards_truth(self, part: float, times: float = 1.0) -> Network:
        """A network that goes a part of the way to the true patches, brightness times some
        factor."""
        seen = iter(())

        def network(x_norm: Tensor, probe: Tensor, estimate: Tensor, mask: Tensor | None) -> Tensor:
            nonlocal seen
            corners = next(seen, None)
            if corners is None:
                seen = iter([self.stitched.place(positions)[0] for positions, _ in self.batches()])
                corners = next(seen)
            truth = extract_patches(times * self.truth[None], corners[None], SIZE)[0]
            return estimate + part * (truth - estimate)

        return network


@pytest.fixture
def known() -> Known:
    return Known()


def lit(known: Known) -> np.ndarray:
    return known.stitched.valid()


def test_first_estimate_is_that_of_all_patterns_as_one_group(known: Known) -> None:
    corners, probe = known.stitched.place(torch.from_numpy(positions_px()))
    expected = first_estimate(
        known.intensity.sqrt()[None], probe[None], GroupCanvas(corners[None], SIZE)
    )[0]
    found = extract_patches(
        first_estimate_of_scan(known.stitched, known)[None], corners[None], SIZE
    )[0]
    # float32 sums in another order
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_passes_reach_what_the_network_knows_and_end_there(known: Known) -> None:
    summary = known.correct(known.towards_truth(0.8))
    np.testing.assert_allclose(
        known.stitched.object()[lit(known)], known.truth.numpy()[lit(known)], atol=0.01
    )
    assert summary.passes <= MOST_PASSES
    assert summary.deviance_per_pixel[-1] < 1e-3 * summary.deviance_per_pixel[0]


def test_deviance_is_that_of_the_object_and_never_rises(known: Known) -> None:
    kept = known.correct(known.towards_truth(0.2)).deviance_per_pixel
    # float32 rates
    assert kept[-1] == pytest.approx(
        known.deviance_per_pixel(torch.from_numpy(known.stitched.object())), rel=1e-3
    )
    assert list(kept) == sorted(kept, reverse=True)
    assert len(kept) > 3


def test_brightness_does_not_enter_the_judgement(known: Known) -> None:
    """Whatever the gain that was trained with the network, twice as bright an object explains the
    scan as well."""
    summary = known.correct(known.towards_truth(0.8, times=2.0))
    assert summary.deviance_per_pixel[-1] < 1e-2 * summary.deviance_per_pixel[0]
    np.testing.assert_allclose(
        known.stitched.object()[lit(known)],
        2 * known.truth.numpy()[lit(known)],
        rtol=0.05,
        atol=0.02,
    )


def test_a_network_that_only_does_harm_changes_nothing(
    known: Known, caplog: pytest.LogCaptureFixture
) -> None:
    first = first_estimate_of_scan(StitchedObject(positions_px(), beam()), known)
    summary = known.correct(
        lambda x_norm, probe, estimate, mask: estimate * torch.polar(torch.tensor(1.0), 3 * x_norm)
    )
    assert len(summary.deviance_per_pixel) == 1
    np.testing.assert_allclose(
        known.stitched.object()[lit(known)], first.numpy()[lit(known)], rtol=1e-5
    )
    assert summary.passes == 1  # asked again, it would answer the same
    assert not summary.helped
    assert "does not improve the first estimate" in caplog.text
    assert "train.learning_rate" in caplog.text


def test_a_network_that_died_is_told_of(known: Known, caplog: pytest.LogCaptureFixture) -> None:
    """Its last layer sees zeros, so that it gives all pixels of all patches the same factor."""
    assert not known.correct(lambda x_norm, probe, estimate, mask: estimate * (0.9 + 0.1j)).helped
    assert "does not improve the first estimate" in caplog.text


def test_nothing_is_said_of_a_network_that_helps(
    known: Known, caplog: pytest.LogCaptureFixture
) -> None:
    assert known.correct(known.towards_truth(0.8)).helped
    assert "does not improve" not in caplog.text


def test_a_correction_that_goes_too_far_is_taken_in_part(known: Known) -> None:
    # beyond the truth, and further from it than before
    summary = known.correct(known.towards_truth(2.2))
    kept = summary.deviance_per_pixel
    assert kept[-1] < 0.1 * kept[0]
    assert summary.passes == len(kept) - 1  # whole or in part, each was kept


def test_passes_end_where_they_gain_little(known: Known) -> None:
    summary = known.correct(known.towards_truth(1e-3))
    kept = summary.deviance_per_pixel
    assert summary.passes == 1
    assert kept[1] > (1 - LEAST_GAIN) * kept[0]


def test_a_network_that_answers_nan_leaves_the_first_estimate(known: Known) -> None:
    known.correct(lambda x_norm, probe, estimate, mask: estimate * float("nan"))
    assert np.isfinite(known.stitched.object()[lit(known)]).all()


def test_pixels_that_do_not_count_are_not_judged() -> None:
    known = Known(dead_pixels(0))
    kept = known.correct(known.towards_truth(0.3)).deviance_per_pixel
    # float32 rates
    assert kept[-1] == pytest.approx(
        known.deviance_per_pixel(torch.from_numpy(known.stitched.object())), rel=1e-3
    )
    assert kept[-1] < 0.1 * kept[0]


def test_first_estimate_of_a_masked_scan_is_that_of_all_patterns_as_one_group() -> None:
    known = Known(dead_pixels(0))
    corners, probe = known.stitched.place(torch.from_numpy(positions_px()))
    expected = first_estimate(
        known.intensity.sqrt()[None], probe[None], GroupCanvas(corners[None], SIZE), known.mask
    )[0]
    estimate = first_estimate_of_scan(known.stitched, known)
    torch.testing.assert_close(
        extract_patches(estimate[None], corners[None], SIZE)[0], expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("part", [0.2, 0.8, 2.2])
def test_the_network_sees_no_object_that_is_not_corrected(known: Known, part: float) -> None:
    """Neither the last one nor one that is taken back: each of its passes leads to an object that
    is kept."""
    seen = 0
    towards_truth = known.towards_truth(part)

    def network(x_norm: Tensor, *others: Tensor) -> Tensor:
        nonlocal seen
        seen += len(x_norm)
        return towards_truth(x_norm, *others)

    summary = known.correct(network)  # type: ignore[arg-type]
    assert seen == summary.passes * len(positions_px())
    assert summary.passes == len(summary.deviance_per_pixel) - 1
