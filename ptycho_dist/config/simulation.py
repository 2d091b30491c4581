"""`simulation`: a synthetic scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from ptycho_dist.config.record import (
    EvenInteger,
    Listed,
    NonNegativeInteger,
    NonNegativeNumber,
    Number,
    PositiveInteger,
    PositiveNumber,
    Record,
)


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("two numbers, smaller first")
    return pair


@dataclass(frozen=True, kw_only=True)
class SimulationConfig(Record, prefix="simulation"):
    """A synthetic scan (`ptycho-simulate`)."""

    object: str = "dead_leaves"
    """`dead_leaves` (overlapping discs), `lines`, or an image file (PNG, JPEG, TIFF, .npy) that
    gives amplitude and phase their contrast."""
    amplitude_range: Annotated[
        Listed[tuple[NonNegativeNumber, NonNegativeNumber]],
        AfterValidator(_ascending),
        "two numbers of at least 0, smaller first",
    ] = (0.5, 1.0)
    """Smallest and largest amplitude of the object, both reached; 1 is transparent."""
    phase_range_rad: Annotated[
        Listed[tuple[Number, Number]], AfterValidator(_ascending), "two numbers, smaller first"
    ] = (-1.0, 1.0)
    """Smallest and largest phase of the object, radians, both reached."""
    probe: str = "defocused"
    """`disk` (ideal, soft edge), `defocused` (a lens's beam, off focus by `probe_defocus_rad`), or
    a file: .npz (`probeGuess`) or .npy."""
    probe_diameter_px: PositiveNumber = 28.0
    """Diameter of the disk at half its amplitude, or of the area that the defocused beam
    illuminates (second moment), pixels; a file has its own."""
    probe_defocus_rad: Number = 8.0
    """Quadratic phase at the edge of the lens's aperture, radians; of the defocused beam only."""
    pattern_size: EvenInteger = 64
    """N, pixels along each side of a pattern."""
    scan_shape: Annotated[
        Listed[tuple[PositiveInteger, PositiveInteger]], "at least one row and one column"
    ] = (32, 32)
    """Rows and columns of the raster."""
    step_px: PositiveNumber = 5.0
    """Distance between neighbouring scan positions, pixels."""
    jitter_px: NonNegativeNumber = 1.0
    """Largest random offset of each position, either way along y and x, uniformly distributed,
    pixels."""
    nphotons: PositiveNumber = 1e6
    """Mean photons per pattern, before Poisson noise."""
    seed: NonNegativeInteger = 0
    """Seed of object, jitter and noise."""
