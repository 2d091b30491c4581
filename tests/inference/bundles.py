"""Bundles of untrained networks for tests of inference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ptycho_dist.bundle import Bundle
from ptycho_dist.config import Config, DataConfig, ModelConfig
from ptycho_dist.model.autoencoder import PtychoAutoencoder
from tests.calibrations import calibration_of

SIZE = 16


def untrained_bundle(
    amplitude: np.ndarray, probe: np.ndarray, nphotons: float, **data: Any
) -> Bundle:
    """A network with weights that make its patches differ from one, and the records of a real
    derivation from amplitudes (n, N, N)."""
    torch.manual_seed(0)
    network = PtychoAutoencoder(pattern_size=SIZE, base_width=4)
    for parameter in network.head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return Bundle(
        config=Config(data=DataConfig(**data), model=ModelConfig(base_width=4)),
        calibration=calibration_of(amplitude, nphotons),
        probe=probe.astype(np.complex64),
        weights=network.state_dict(),
        versions={},
    )
