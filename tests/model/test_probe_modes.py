"""Modes that are made are orthogonal, weak, and begin with the beam's small movements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_dist.model.probe_modes import SHARE_OF_A_NEW_MODE, add_modes
from ptycho_dist.physics.probe import centre_of_light
from tests.scans import small_scan_arrays


def probe(modes: int = 1, pattern_size: int = 16) -> torch.Tensor:
    return torch.from_numpy(
        small_scan_arrays(num_patterns=1, modes=modes, pattern_size=pattern_size)["probeGuess"]
    ).reshape(modes, pattern_size, pattern_size)


@pytest.mark.parametrize("num_modes", [1, 2, 3, 7, 20])
def test_modes_are_orthogonal_and_have_their_share(num_modes: int) -> None:
    own = probe()
    made = add_modes(own, num_modes)
    assert made.shape == (num_modes, 16, 16)
    assert made.dtype == torch.complex64
    assert torch.equal(made[:1], own)
    flat = made.numpy().reshape(num_modes, -1).astype(complex)
    overlap = flat.conj() @ flat.T
    strongest = overlap[0, 0].real
    # complex64
    np.testing.assert_allclose(
        np.diag(overlap)[1:].real, SHARE_OF_A_NEW_MODE * strongest, rtol=1e-5
    )
    np.testing.assert_allclose(overlap - np.diag(np.diag(overlap)), 0, atol=1e-6 * strongest)


def test_own_modes_stay_whatever_their_overlap() -> None:
    own = probe(modes=2)
    made = add_modes(own, 4).numpy()
    assert np.array_equal(made[:2], own.numpy())
    for mode in made[2:]:
        assert abs(np.vdot(mode, made[0])) < 1e-5 * np.vdot(made[0], made[0]).real


def test_first_modes_are_the_beams_movement() -> None:
    """Along y, then along x: proportional to (y - centre) P up to what lies in P itself."""
    own = probe()
    made = add_modes(own, 3).numpy().astype(complex)
    light = np.abs(own.numpy()[0].astype(complex)) ** 2
    y, x = np.indices(light.shape)
    for mode, axis in zip(made[1:], (y, x), strict=True):
        expected = (axis - (light * axis).sum() / light.sum()) * own.numpy()[0]
        cosine = abs(np.vdot(expected, mode)) / np.linalg.norm(expected) / np.linalg.norm(mode)
        assert cosine == pytest.approx(1, abs=1e-5)  # float32


def test_centre_of_light() -> None:
    modes = probe(modes=2)
    light = (np.abs(modes.numpy().astype(complex)) ** 2).sum(0)
    expected = [(light * axis).sum() / light.sum() for axis in np.indices(light.shape)]
    np.testing.assert_allclose(centre_of_light(modes), expected, rtol=1e-6)
