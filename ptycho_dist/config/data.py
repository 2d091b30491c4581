"""`data`: how scan files are read, and which patterns are used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from ptycho_dist.config.record import (
    EvenInteger,
    Listed,
    NonNegativeInteger,
    Number,
    PositiveInteger,
    PositiveNumber,
    Record,
    require,
)

Sampling = Literal["full", "random", "central_block", "every", "poisson_disc", "index_file"]

_SAMPLING_KEYS: dict[Sampling, tuple[str, ...]] = {
    "full": (),
    "random": ("subset_size",),
    "central_block": ("subset_size",),
    "every": ("every",),
    "poisson_disc": ("subset_size", "min_distance_px"),
    "index_file": ("index_file",),
}
"""The keys of which a sampling mode needs exactly one."""


@dataclass(frozen=True, kw_only=True)
class Hdf5Config(Record, prefix="data.hdf5"):
    """Names of the datasets, such as `/entry/data/data`, of an HDF5 file in no known format."""

    diffraction: str | None = None
    """Patterns (n, rows, columns). Where it is given, the file is read as plain HDF5; null: by its
    format."""
    positions: str | None = None
    """(n, 2) as (y, x) = (row, column): where the beam was on the object. Or give `positions_y` and
    `positions_x`."""
    positions_y: str | None = None
    """(n,): the position along y, which grows with the rows of the object."""
    positions_x: str | None = None
    """(n,): the position along x, which grows with the columns of the object."""
    positions_unit: Literal["px", "m", "mm", "um", "nm"] | None = None
    """Unit of the positions: `m`, `mm`, `um`, `nm`, or `px`: pixels of the object, wavelength *
    distance / (N * detector pixel), with N after `data.crop`."""
    probe: str | None = None
    """Complex (N, N) or (modes, N, N); a probe in another file is `data.probe`."""
    mask: str | None = None
    """(rows, columns): true or 1 where a pixel is valid, 0 where it is masked; a mask in another
    file is `data.mask`."""
    object: str | None = None
    """Complex (rows, columns): a reference to compare with; position (0, 0) lies on its pixel
    [0, 0]."""
    energy_eV: str | None = None
    """One number, the photon energy in eV; or give the number itself as `data.energy_eV`."""
    distance_m: str | None = None
    """One number, from the object to the detector in metres; or give the number itself as
    `data.detector_distance_m`."""
    detector_pixel_m: str | None = None
    """One number, the detector's pixel pitch in metres; or give the number itself as
    `data.detector_pixel_m`."""


@dataclass(frozen=True, kw_only=True)
class ScanConfig(Record, prefix="data"):
    """What a scan file does not say itself; docs/file_formats.md lists what each format says."""

    measurement: Literal["amplitude", "counts"] | None = None
    """What the file's diffraction array holds: `amplitude` (sqrt of counts) or `counts`. Needed
    unless the file or its format says it."""
    energy_eV: PositiveNumber | None = None
    """Photon energy in eV, where the file lacks it."""
    detector_distance_m: PositiveNumber | None = None
    """Distance from the object to the detector in metres, where the file lacks it."""
    detector_pixel_m: PositiveNumber | None = None
    """The detector's pixel pitch in metres, where the file lacks it."""
    probe: str | None = None
    """File of the probe, complex (N, N) or (modes, N, N), which takes precedence over the scan
    file's: .npy, .npz (`probeGuess` or `probe`), or HDF5 as `file.h5:/dataset`."""
    mask: str | None = None
    """File of the detector's mask, like `probe`: true or 1 where a pixel is valid, 0 where it is
    masked. It is combined with the scan file's own."""
    diffraction: str | None = None
    """File of the patterns of a ptychodus product: HDF5, `file.h5` or `file.h5:/dataset`. Not
    needed for `x_para.hdf5` with `x_dp.hdf5`."""
    crop: EvenInteger | None = None
    """N: use the central N x N pixels of the detector; the object's pixel grows accordingly. null:
    use all."""
    centre_px: (
        Annotated[
            Listed[tuple[NonNegativeInteger, NonNegativeInteger]],
            "a row and a column of at least 0",
        ]
        | None
    ) = None
    """Row and column of the direct beam on the detector, pixels: what `crop` puts at [N/2, N/2].
    null: the file's, else the middle."""
    transpose: bool | None = None
    """True if the file stores patterns with rows and columns exchanged, as MATLAB does. null: true
    for files with MATLAB's header."""
    hdf5: Hdf5Config = field(default_factory=Hdf5Config)
    """Datasets of a plain HDF5 file."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(ScanConfig, prefix="data"):
    """Scan files, how they are read, and which of their patterns are used."""

    path: list[str] | str | None = None
    """Scan file, or a list of scan files that are trained on together."""
    nphotons: PositiveNumber | Literal["measured"] | None = None
    """Mean photons per pattern, or `measured`: the mean counts of the finalised training subset.
    The dataset's metadata takes precedence."""
    sampling: Sampling | None = None
    """Which patterns to use, training and validation together: `full` (all), `random`,
    `central_block` (those nearest to the middle of their scan: a contiguous region, as densely
    sampled as the whole), `every` (k-th, in scan order), `poisson_disc` (thinned by position, as
    evenly as possible), `index_file` (a list). null: `random` with data.subset_size, else
    `full`."""
    subset_size: PositiveInteger | None = None
    """Number of patterns that `random`, `central_block` and `poisson_disc` draw."""
    every: PositiveInteger | None = None
    """k of `every`: the first pattern of each scan, and each k-th after it."""
    min_distance_px: PositiveNumber | None = None
    """Instead of a size for `poisson_disc`: as many patterns as can lie at least this far from each
    other, pixels."""
    index_file: str | None = None
    """`.npy` file of integers, or text with one number per line: patterns counted from 0 through
    all scans in the order of data.path."""
    subset_seed: NonNegativeInteger = 0
    """Seed of the subset and of its split; nothing else depends on it."""
    val_fraction: Annotated[Number, Ge(0), Lt(1), "a number in [0, 1)"] = 0.05
    """Fraction of the used patterns kept for validation, in [0, 1)."""
    group_size: PositiveInteger = 4
    """Patterns per sample (C). With C > 1 a sample is a pattern and its C - 1 nearest neighbours,
    whose patches share one object."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.diffraction is None or not isinstance(self.path, list) or len(self.path) < 2,
            "data.diffraction",
            self.diffraction,
            "one scan in data.path: it names the patterns of one; several are found by name, "
            "x_dp.hdf5 beside x_para.hdf5",
        )
        mode = self.sampling_mode
        needed = _SAMPLING_KEYS[mode]
        for key in ("subset_size", "every", "min_distance_px", "index_file"):
            value = getattr(self, key)
            modes = " or ".join(other for other, keys in _SAMPLING_KEYS.items() if key in keys)
            expected = f"null where data.sampling is {mode}, not {modes}"
            require(value is None or key in needed, f"data.{key}", value, expected)
        num_given = sum(getattr(self, key) is not None for key in needed)
        expected = " or ".join(f"data.{key}" for key in needed) + " with it"
        expected += ", not both" if num_given > 1 else ""
        require(num_given == min(1, len(needed)), "data.sampling", mode, expected)

    @property
    def sampling_mode(self) -> Sampling:
        """`sampling`, or what its null stands for."""
        return self.sampling or ("full" if self.subset_size is None else "random")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The scan files, one or several."""
        expected = "a scan file or a list of scan files (--data.path scan.npz)"
        require(bool(self.path), "data.path", self.path, expected)
        return tuple(map(Path, [self.path] if isinstance(self.path, str) else self.path or ()))
