"""`model`: the network and the loss."""

from __future__ import annotations

from dataclasses import dataclass

from ptycho_dist.config.record import PositiveInteger, Record


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Record, prefix="model"):
    """The network and the loss."""

    base_width: PositiveInteger = 16
    """Channels of the network's first level."""
    intensity_scale_trainable: bool = False
    """Multiply the prediction by a trainable factor that starts at exactly 1."""
    probe_trainable: bool = False
    """Refine each scan's probe with the network: for an approximate probe, or a partially coherent
    beam."""
    probe_modes: PositiveInteger | None = None
    """Incoherent modes of a trainable probe, at least as many as the file has; null: as many."""
