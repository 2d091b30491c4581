"""Mean photons a pattern: the dataset's metadata first, then the config, never a default."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Nphotons:
    """Mean photons a pattern, and who said so."""

    value: float
    source: str


def resolve_nphotons(
    metadata: Mapping[str, float | None], configured: float | Literal["measured"] | None, measured: Callable[[], float] | None = None
) -> Nphotons:
    """Decide on nphotons.

    Parameters
    ----------
    metadata
        For each scan file what its metadata says, None where it says nothing.
    configured
        `data.nphotons` of the config.
    measured
        Gives the mean counts of the finalised training subset; asked only where the config says `measured`.

    Raises
    ------
    ValueError
        Files disagree, only some of them say, a value is not a positive number, or nobody says.
    """
    said = {file: value for file, value in metadata.items() if value is not None}
    for file, value in said.items():
        require_photons(value, f"{file}: _metadata physics_parameters.nphotons")
    if len(set(said.values())) > 1:
        raise ValueError("nphotons: the files' metadata disagree: " + ", ".join(f"{file} says {value!r}" for file, value in said.items()))
    if said and len(said) < len(metadata):
        silent = ", ".join(file for file in metadata if file not in said)
        file, value = next(iter(said.items()))
        raise ValueError(f"nphotons: {file} says {value!r} in its metadata, but {silent} says nothing; give them the same metadata")
    if said:
        file, value = next(iter(said.items()))
        return Nphotons(value=float(value), source="metadata")
    if configured == "measured" and measured is not None:
        return Nphotons(value=measured(), source="measured")
    if configured is None or isinstance(configured, str):
        raise ValueError(
            f"nphotons: {', '.join(metadata) or 'the dataset'} has no _metadata physics_parameters.nphotons, and data.nphotons is "
            f"{configured!r}; set data.nphotons to the mean photons a pattern, or to 'measured' where the file holds counts"
        )
    require_photons(configured, "config: data.nphotons")
    return Nphotons(value=float(configured), source="config")


def require_photons(value: object, name: str) -> None:
    """Refuse, by name, what can't be a mean number of photons."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} is {value!r}, expected a positive number")
