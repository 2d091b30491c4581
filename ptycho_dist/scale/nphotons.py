"""Mean photons a pattern: the dataset's metadata first, then the config, never a default."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Nphotons:
    """Mean photons a pattern, and who said so."""

    value: float
    source: str


def resolve_nphotons(
    metadata: Mapping[str, float | None],
    configured: float | Literal["measured"] | None,
    measured: Callable[[], float] | None = None,
    *,
    num_patterns: Mapping[str, int] | None = None,
) -> Nphotons:
    """Decide on nphotons.

    Where the metadata of several files differ, each speaks for its own patterns: nphotons is then
    the mean over the training patterns, sum(n_f * nphotons_f) / sum(n_f) over the files f,
    correctly rounded. Files that agree give their value to the last bit.

    Parameters
    ----------
    metadata
        For each scan file what its metadata says, None where it says nothing.
    configured
        `data.nphotons` of the config.
    measured
        Gives the mean counts of the finalised training subset; asked only where the config says
        `measured`.
    num_patterns
        n_f, how many patterns of each file are in the finalised training subset; without it files
        must agree.

    Raises
    ------
    ValueError
        Files disagree and nobody says how many patterns of each are trained on, only some of them
        say, a value is not a positive number, or nobody says.
    """
    said = {file: value for file, value in metadata.items() if value is not None}
    for file, value in said.items():
        require_photons(value, f"{file}: _metadata physics_parameters.nphotons")
    if said and len(said) < len(metadata):
        silent = ", ".join(file for file in metadata if file not in said)
        file, value = next(iter(said.items()))
        raise ValueError(
            f"nphotons: {file} says {value!r} in its metadata, but {silent} says nothing; give "
            "them the same metadata"
        )
    if len(set(said.values())) > 1:
        return _mean_over_patterns(said, num_patterns)
    if said:
        return Nphotons(value=float(next(iter(said.values()))), source="metadata")
    if configured == "measured" and measured is not None:
        return Nphotons(value=measured(), source="measured")
    if configured is None or isinstance(configured, str):
        raise ValueError(
            f"nphotons: {', '.join(metadata) or 'the dataset'} has no _metadata "
            "physics_parameters.nphotons, and data.nphotons is "
            f"{configured!r}; set data.nphotons to the mean photons a pattern, or to 'measured' "
            "where the file holds counts"
        )
    require_photons(configured, "config: data.nphotons")
    return Nphotons(value=float(configured), source="config")


def _mean_over_patterns(
    said: Mapping[str, float], num_patterns: Mapping[str, int] | None
) -> Nphotons:
    if num_patterns is None:
        raise ValueError(
            "nphotons: the files' metadata disagree: "
            + ", ".join(f"{file} says {value!r}" for file, value in said.items())
        )
    # exact: no order, no overflow
    photons = sum(num_patterns[file] * Fraction(float(value)) for file, value in said.items())
    return Nphotons(
        value=float(photons / sum(num_patterns[file] for file in said)),
        source="metadata, mean over the training patterns of all scans",
    )


def require_photons(value: object, name: str) -> None:
    """Refuse, by name, what can't be a mean number of photons."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.number)
        or not 0 < value <= sys.float_info.max
    ):
        raise ValueError(f"{name} is {value!r}, expected a positive number")
