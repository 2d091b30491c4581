"""Networks to test with."""

from __future__ import annotations

import torch

from ptycho_dist.model.autoencoder import PtychoAutoencoder


def trained_like(size: int, width: int = 4) -> PtychoAutoencoder:
    """Weights as some training might leave them: the head is not zero."""
    torch.manual_seed(0)
    network = PtychoAutoencoder(pattern_size=size, base_width=width)
    for parameter in network.head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network
