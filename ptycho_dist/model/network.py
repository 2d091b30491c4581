"""Which network a configuration asks for: the one place where it is made."""

from __future__ import annotations

from torch import nn

from ptycho_dist.config import ModelConfig
from ptycho_dist.model.autoencoder import PtychoAutoencoder


def build_network(config: ModelConfig, pattern_size: int) -> nn.Module:
    """A new network for patterns of N = `pattern_size` pixels a side, called as
    `PtychoAutoencoder.forward` is."""
    return PtychoAutoencoder(pattern_size=pattern_size, base_width=config.base_width)
