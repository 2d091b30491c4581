"""What training and inference rely on in the network."""

from __future__ import annotations

import pytest
import torch

from ptycho_dist.model.autoencoder import PtychoAutoencoder
from ptycho_dist.physics.probe import normalize_probe
from ptycho_dist.physics.propagation import diffracted_intensity
from tests.model.networks import trained_like


def probe_and_amplitude(
    num_patterns: int, size: int, modes: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(
        torch.arange(size) - size / 2, torch.arange(size) - size / 2, indexing="ij"
    )
    envelope = torch.exp(-(y**2 + x**2) / (2 * (size / 6) ** 2) + 0.02j * (y**2 + x**2))
    probe = normalize_probe(torch.stack([envelope * (y / size) ** mode for mode in range(modes)]))
    patches = torch.polar(
        1 + 0.1 * torch.rand(num_patterns, size, size, generator=generator),
        torch.rand(num_patterns, size, size),
    )
    return probe, diffracted_intensity(patches, probe).sqrt()


@pytest.mark.parametrize("size", [16, 64, 128, 256])
def test_training_starts_at_the_estimate(size: int) -> None:
    probe, x_norm = probe_and_amplitude(2, size)
    estimate = torch.polar(torch.rand(2, size, size) + 0.5, 6 * torch.rand(2, size, size))
    patches = PtychoAutoencoder(pattern_size=size, base_width=4)(x_norm, probe[None], estimate)
    assert patches.dtype == torch.complex64
    # float32, through a logarithm and back
    torch.testing.assert_close(patches, estimate, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [0, 8, 48, 100])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"power of two and at least 16, not {size}"):
        PtychoAutoencoder(pattern_size=size, base_width=4)


def test_amplitudes_above_one_and_any_phase_can_be_represented() -> None:
    network = PtychoAutoencoder(pattern_size=16, base_width=4)
    probe, x_norm = probe_and_amplitude(1, 16)
    bias = network.head[1].bias.data
    bias[:4], bias[4:] = 1.0, 7.0
    patches = network(x_norm, probe[None], torch.ones(1, 16, 16, dtype=torch.complex64))
    torch.testing.assert_close(
        patches, torch.polar(torch.tensor(1.0).exp(), torch.tensor(7.0)).expand(1, 16, 16)
    )


def test_a_patch_depends_on_its_own_pattern_alone() -> None:
    network, (probe, x_norm) = trained_like(32), probe_and_amplitude(6, 32)
    together = network(x_norm, probe[None], torch.ones_like(x_norm, dtype=torch.complex64))
    for number in range(6):
        # convolutions of another batch size may round differently
        torch.testing.assert_close(
            network(
                x_norm[number : number + 1],
                probe[None],
                torch.ones(1, 32, 32, dtype=torch.complex64),
            )[0],
            together[number],
            rtol=1e-4,
            atol=1e-5,
        )


def test_groups_and_their_own_probes() -> None:
    network, (probe, x_norm) = trained_like(16), probe_and_amplitude(8, 16)
    probes = probe * torch.polar(torch.ones(8), torch.linspace(0, 3, 8))[:, None, None, None]
    grouped = network(
        x_norm.view(2, 4, 16, 16),
        probes.view(2, 4, 1, 16, 16),
        torch.ones(2, 4, 16, 16, dtype=torch.complex64),
    )
    torch.testing.assert_close(
        grouped.flatten(0, 1),
        network(x_norm, probes, torch.ones_like(x_norm, dtype=torch.complex64)),
    )


def test_probe_axes_that_could_pair_with_the_wrong_ones_are_refused() -> None:
    network, (probe, x_norm) = trained_like(16), probe_and_amplitude(16, 16)
    with pytest.raises(ValueError, match=r"expected \(..., modes, N, N\)"):
        network(
            x_norm.view(4, 4, 16, 16),
            probe.expand(4, 1, 16, 16),
            torch.ones(4, 4, 16, 16, dtype=torch.complex64),
        )


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_empty_batch_gives_every_weight_a_zero_gradient(precision: torch.dtype) -> None:
    network, (probe, _) = trained_like(16), probe_and_amplitude(1, 16)
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        patches = network(
            torch.zeros(0, 4, 16, 16),
            probe[None, None].expand(0, 4, 1, 16, 16),
            torch.ones(0, 4, 16, 16, dtype=torch.complex64),
        )
    assert patches.shape == (0, 4, 16, 16)
    patches.abs().sum().backward()
    assert all(
        parameter.grad is not None and not parameter.grad.any()
        for parameter in network.parameters()
    )


def test_weights_follow_the_seed() -> None:
    first, second = trained_like(16).state_dict(), trained_like(16).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_masked_pixels_hold_does_not_matter() -> None:
    network, (probe, x_norm) = trained_like(16), probe_and_amplitude(4, 16)
    x_norm = x_norm.view(2, 2, 16, 16)
    estimate = torch.polar(torch.ones(2, 2, 16, 16), torch.rand(2, 2, 16, 16))
    masks = torch.rand(2, 1, 16, 16) > 0.1
    found = [
        network(torch.where(masks, x_norm, garbage), probe[None, None], estimate, masks)
        for garbage in (0.0, torch.nan, torch.inf, 4e9)
    ]
    assert torch.isfinite(found[0].abs()).all()
    assert all(torch.equal(found[0], other) for other in found[1:])
    seen_whole = network(x_norm, probe[None, None], estimate)
    assert not torch.allclose(found[0], seen_whole, atol=1e-3)
    torch.testing.assert_close(
        network(x_norm, probe[None, None], estimate, masks[0, 0])[0],
        found[0][0],
        rtol=1e-4,
        atol=1e-5,
    )
    whole = torch.ones(16, 16, dtype=torch.bool)
    assert torch.equal(network(x_norm, probe[None, None], estimate, whole), seen_whole)


def test_an_empty_batch_may_have_masks() -> None:
    network, (probe, x_norm) = trained_like(16), probe_and_amplitude(1, 16)
    patches = network(
        x_norm[:0, None],
        probe[None, None],
        torch.ones(0, 1, 16, 16, dtype=torch.complex64),
        torch.ones(0, 1, 16, 16, dtype=torch.bool),
    )
    assert patches.shape == (0, 1, 16, 16)
