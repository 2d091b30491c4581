"""What the patterns alone tell of the patches, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ptycho_dist.model.first_estimate import DIM_LIGHT, back_propagate, first_estimate
from ptycho_dist.physics.patches import GroupCanvas
from ptycho_dist.physics.probe import normalize_probe
from ptycho_dist.physics.propagation import diffracted_intensity

SIZE = 32


def disk_probe(modes: int = 1, curvature: float = 0.02) -> torch.Tensor:
    """(modes, N, N), with light at all frequencies; the second mode is the strongest where there
    are several. Flat it is real and even."""
    y, x = torch.meshgrid(
        torch.arange(SIZE) - (SIZE - 1) / 2, torch.arange(SIZE) - (SIZE - 1) / 2, indexing="ij"
    )
    disk = torch.sigmoid(3 * (9 - torch.hypot(y, x))) * torch.exp(1j * curvature * (y**2 + x**2))
    tilt = 0.7 * (curvature != 0)  # no far field is exactly zero, and without a phase
    modes_of_disk = [
        disk * (1 + 2 * (mode == 1)) * torch.exp(1j * (tilt + mode) * (0.2 * y + 0.1 * x))
        for mode in range(modes)
    ]
    return normalize_probe(torch.stack(modes_of_disk))


def some_object(height: int, width: int) -> torch.Tensor:
    """Amplitude and phase of blurred noise."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(2, height, width)), (0, 1.5, 1.5))
    return torch.from_numpy(np.exp(noise[0] + 1j * noise[1]).astype(np.complex64))


@pytest.mark.parametrize("modes", [1, 3])
def test_an_estimate_that_explains_the_pattern_is_left_alone(modes: int) -> None:
    probe, patch = disk_probe(modes), some_object(SIZE, SIZE)
    b, _ = back_propagate(diffracted_intensity(patch[None], probe).sqrt(), probe[None], patch[None])
    assert b.abs().max() < 1e-5  # float32 transforms


def test_weak_object_back_propagates_to_itself_and_its_twin() -> None:
    """b is about half of (O - 1) |P|^2 / max |P|^2 plus its twin; for an object that is its own
    twin the two add up."""
    y, x = torch.meshgrid(
        torch.arange(SIZE) - SIZE / 2, torch.arange(SIZE) - SIZE / 2, indexing="ij"
    )
    # real and even
    probe = normalize_probe(torch.exp(-(y**2 + x**2) / 50).to(torch.complex64)[None])
    absorber = 1 - 1e-2 * torch.exp(-(y**2 + x**2) / 200)  # real and even, smoother than the probe
    x_norm = diffracted_intensity(absorber.to(torch.complex64)[None], probe).sqrt()
    expected_light = probe[0].abs().square() / probe[0].abs().square().max()
    b, light = back_propagate(x_norm, probe[None], torch.ones(1, SIZE, SIZE))
    # second order in 1e-2
    torch.testing.assert_close(b[0].real, (absorber - 1) * expected_light, rtol=0, atol=2e-4)
    torch.testing.assert_close(light[0], expected_light)


@pytest.mark.parametrize("modes", [1, 3])
def test_first_estimate_agrees_with_numpy(modes: int) -> None:
    probe, canvas = disk_probe(modes), some_object(SIZE + 6, SIZE + 5)
    corners = np.array([[2, 5], [0, 1], [6, 0]])
    patches = torch.stack([canvas[y : y + SIZE, x : x + SIZE] for y, x in corners])
    x_norm = diffracted_intensity(patches, probe).sqrt()
    shifted = corners - np.array([3, 40])  # any common origin
    estimate = first_estimate(
        x_norm[None],
        probe.expand(1, 3, modes, SIZE, SIZE),
        GroupCanvas(torch.from_numpy(shifted)[None], SIZE),
    )[0].numpy()

    p = probe.numpy().astype(np.complex128)
    strongest = p[min(modes - 1, 1)]
    peak = (np.abs(strongest) ** 2).max()
    far_fields = np.fft.fftshift(np.fft.fft2(p, norm="ortho"), axes=(-2, -1))
    far_field = np.fft.fftshift(np.fft.fft2(strongest, norm="ortho"))
    change, light = np.zeros((2, SIZE + 6, SIZE + 5), dtype=np.complex128)
    for (y, x), measured in zip(corners, x_norm.numpy().astype(np.float64), strict=True):
        exit_wave = (
            (measured - np.sqrt((np.abs(far_fields) ** 2).sum(axis=0)))
            * far_field
            / np.abs(far_field)
        )
        change[y : y + SIZE, x : x + SIZE] += (
            np.fft.ifft2(np.fft.ifftshift(exit_wave), norm="ortho") * strongest.conj() / peak
        )
        light[y : y + SIZE, x : x + SIZE] += np.abs(strongest) ** 2 / peak + DIM_LIGHT
    for found, (y, x) in zip(estimate, corners, strict=True):
        window = np.s_[y : y + SIZE, x : x + SIZE]
        # float32 transforms, and sgn of faint far fields
        np.testing.assert_allclose(found, 1 + change[window] / light[window], atol=1e-4)


def test_a_group_tells_an_object_from_its_twin_where_one_pattern_cannot() -> None:
    """Real object, real symmetric probe: a pattern is that of the patch and of the patch turned
    round."""
    probe = disk_probe(curvature=0.0)
    canvas = some_object(SIZE + 8, SIZE + 8).abs().to(torch.complex64)
    corners = torch.tensor([[4, 4], [0, 4], [4, 0], [8, 4], [4, 8]])
    patches = torch.stack([canvas[y : y + SIZE, x : x + SIZE] for y, x in corners.tolist()])
    x_norm = diffracted_intensity(patches, probe).sqrt()
    lit = probe[0].abs() > 0.3 * probe[0].abs().max()

    def likeness(estimate: torch.Tensor) -> tuple[float, float]:
        """Correlation with the patch and with its twin, where it is lit."""
        images = [image.real[lit] for image in (estimate, patches[0], patches[0].flip(-2, -1))]
        found = torch.corrcoef(torch.stack(images))
        return float(found[0, 1]), float(found[0, 2])

    alone, alone_twin = likeness(
        first_estimate(
            x_norm[:1, None], probe[None, None], GroupCanvas(torch.zeros(1, 1, 2).long(), SIZE)
        )[0, 0]
    )
    together, together_twin = likeness(
        first_estimate(
            x_norm[None], probe.expand(1, 5, 1, SIZE, SIZE), GroupCanvas(corners[None], SIZE)
        )[0, 0]
    )
    assert alone == pytest.approx(alone_twin, abs=1e-3)
    assert together > together_twin + 0.3


def test_no_pattern_gives_no_estimate() -> None:
    estimate = first_estimate(
        torch.zeros(0, 4, SIZE, SIZE),
        disk_probe().expand(0, 4, 1, SIZE, SIZE),
        GroupCanvas(torch.zeros(0, 4, 2).long(), SIZE),
    )
    assert estimate.shape == (0, 4, SIZE, SIZE)
    assert estimate.dtype == torch.complex64


@pytest.mark.parametrize("modes", [1, 3])
def test_a_pixel_that_does_not_count_asks_for_no_change(modes: int) -> None:
    """As if it had measured just what the estimate predicts; whatever it did measure."""
    probe, patch, estimate = (
        disk_probe(modes),
        some_object(SIZE, SIZE),
        some_object(SIZE + 8, SIZE)[8:],
    )
    mask = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) > 0.2
    x_norm = diffracted_intensity(patch[None], probe).sqrt()
    as_predicted = torch.where(mask, x_norm, diffracted_intensity(estimate[None], probe).sqrt())
    expected, _ = back_propagate(as_predicted, probe[None], estimate[None])
    for garbage in (0.0, torch.nan, 4e9):
        b, _ = back_propagate(torch.where(mask, x_norm, garbage), probe[None], estimate[None], mask)
        torch.testing.assert_close(b, expected, rtol=0, atol=1e-5)  # float32 transforms
    ignored, _ = back_propagate(torch.where(mask, x_norm, 0), probe[None], estimate[None])
    assert (ignored - expected).abs().max() > 1e-2


def test_first_estimate_of_patterns_with_masks_of_their_own() -> None:
    probe, corners = disk_probe(), torch.zeros(2, 3, 2).long()
    x_norm = (
        diffracted_intensity(torch.stack([some_object(SIZE, SIZE)] * 6), probe)
        .sqrt()
        .view(2, 3, SIZE, SIZE)
    )
    masks = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) > 0.2
    together = first_estimate(
        torch.where(masks, x_norm, torch.nan),
        probe.expand(2, 3, 1, SIZE, SIZE),
        GroupCanvas(corners, SIZE),
        masks,
    )
    for number in range(2):
        alone = first_estimate(
            x_norm[number : number + 1],
            probe.expand(1, 3, 1, SIZE, SIZE),
            GroupCanvas(corners[:1], SIZE),
            masks[number, 0],
        )
        torch.testing.assert_close(together[number], alone[0], rtol=0, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-2
