"""`Config`: everything that a run is configured by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ptycho_dist.config.data import DataConfig
from ptycho_dist.config.model import ModelConfig
from ptycho_dist.config.record import Record
from ptycho_dist.config.simulation import SimulationConfig
from ptycho_dist.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config(Record):
    """The configuration of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    """Scan files, how they are read, and which of their patterns are used."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network and the loss."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The fit of the network, and where the run is kept."""
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    """A synthetic scan."""

    def to_dict(self) -> dict[str, Any]:
        """Return a nested dict of YAML scalars and lists; `parse_mapping` reads it back."""
        return _without_tuples(dataclasses.asdict(self))


parse_mapping = Config.from_mapping


def flat_keys(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested dict's values by dotted key: `{"train": {"epochs": 3}}` as
    `{"train.epochs": 3}`."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        is_nested = isinstance(value, dict)
        flat |= flat_keys(value, f"{prefix}{key}.") if is_nested else {f"{prefix}{key}": value}
    return flat


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tuples(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
