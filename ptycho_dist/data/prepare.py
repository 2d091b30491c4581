"""From a configuration to complete data: scans, subset, calibration, probes and masks.

Preparation is a list of named stages. `prepare` runs them from top to bottom; `--check` and
`inspect_scan` watch the same stages and print what each found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ptycho_dist.config import DataConfig
from ptycho_dist.data.pattern_source import PatternSource
from ptycho_dist.data.placement import Placement, choose_placement
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.readers.hdf5_patterns import Hdf5Patterns
from ptycho_dist.data.scan import Scan, ScanError, stack_masks
from ptycho_dist.data.subset import Subset, select_subset
from ptycho_dist.distributed import FailedTogether, rank, require_same, run_together, world_size
from ptycho_dist.scale.calibration import Calibration, brightness
from ptycho_dist.scale.exact_sum import ExactSum, exact_energy_sum
from ptycho_dist.scale.intensity_scale import derive_intensity_scale
from ptycho_dist.scale.normalization import normalize, rms_factor
from ptycho_dist.scale.nphotons import Nphotons, resolve_nphotons

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the preparation.

    Attributes
    ----------
    name
        What is prepared.
    fix
        What to do where it fails.
    """

    name: str
    fix: str


_REPAIR = "Repair the file, or leave it out."
SCANS = Stage(
    "data file",
    "Give --data.path files that every node sees, in a form that docs/file_formats.md describes.",
)
PROBES = Stage(
    "probe and size",
    "Give a probe of the patterns' size with --data.probe FILE; name each scan once, all of one "
    "size, with the same number of modes.",
)
SUBSET = Stage(
    "subset",
    "Change data.subset_size or whatever else data.sampling draws by, data.val_fraction or "
    "data.group_size; where ranks differ, give all nodes the same files.",
)
PATTERNS = Stage("patterns", "Start fewer ranks per node.")
NORMALIZATION = Stage(
    "normalization", f"{_REPAIR} --data.measurement says whether it holds amplitude or counts."
)
NPHOTONS = Stage(
    "nphotons",
    "Give the dose: --data.nphotons NUMBER, or measured where the file holds counts or their "
    "square root.",
)
SCALE = Stage("intensity scale", _REPAIR)
VALIDATION = Stage("validation", _REPAIR)
STAGES = (SCANS, PROBES, SUBSET, PATTERNS, NORMALIZATION, NPHOTONS, SCALE, VALIDATION)
"""In the order in which they run; each needs those before it."""

StageRunner = Callable[[Stage, Callable[[], Any]], Any]


def run_stage(stage: Stage, action: Callable[[], T]) -> T:
    """Return what a stage gives; its errors are raised."""
    return action()


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """RMS factor and brightness, from the energies of the measured amplitudes X.

    Attributes
    ----------
    rms_factor
        r, from all training patterns.
    mean_energy
        Mean energy of X: mean counts per pattern, where the files hold counts or their roots.
    num_patterns
        Patterns counted, over all ranks.
    scan_brightness
        `brightness` of each scan; 1 where none of its patterns is trained on.
    """

    rms_factor: float
    mean_energy: float
    num_patterns: int
    scan_brightness: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """Data that is ready to train on; the same on every rank.

    Attributes
    ----------
    config
        Which patterns, and what their numbers mean.
    scans
        In the order of `data.path`.
    source
        Their patterns by number.
    subset
        Which of them are trained on, and which validate.
    placement
        Whether each rank holds its patterns in memory.
    calibration
        r, s, nphotons and what they were derived from.
    probes
        complex64 (scans, modes, N, N), in any units.
    masks
        bool (scans, N, N), True where a pixel counts; None: all do.
    """

    config: DataConfig
    scans: tuple[Scan, ...]
    source: PatternSource
    subset: Subset
    placement: Placement
    calibration: Calibration
    probes: Tensor
    masks: Tensor | None


def prepare(config: DataConfig, run: StageRunner = run_stage) -> PreparedData:
    """Read the scans, draw the subset and derive its calibration. A collective.

    Parameters
    ----------
    config
        Which patterns, and what their numbers mean.
    run
        Runs a stage; a watcher may note what it gave.

    Raises
    ------
    ValueError
        A scan or the configuration can't be used. Every rank raises the same error.
    """
    scans = run(SCANS, lambda: tuple(read_scan(path, options=config) for path in config.paths))
    source = run(PROBES, lambda: _source_of_like_scans(scans))
    subset = run(SUBSET, lambda: _agreed_subset(scans, config))
    placement = run(PATTERNS, lambda: _placement_of(subset, scans))
    normalization = run(NORMALIZATION, lambda: _derive_normalization(source, subset))
    nphotons = run(
        NPHOTONS, lambda: run_together(lambda: _nphotons(source, subset, config, normalization))
    )
    calibration = run(SCALE, lambda: _calibrate(source, subset, normalization, nphotons))
    run(VALIDATION, lambda: run_together(lambda: _read_once(source, subset.validation)))
    masks = stack_masks(scans)
    data = PreparedData(
        config=config,
        scans=scans,
        source=source,
        subset=subset,
        placement=placement,
        calibration=calibration,
        probes=torch.from_numpy(np.stack([scan.probe for scan in scans])),
        masks=None if masks is None else torch.from_numpy(masks),
    )
    if rank() == 0:
        _log_what_was_found(data, normalization)
    return data


def _source_of_like_scans(scans: tuple[Scan, ...]) -> PatternSource:
    run_together(lambda: _require_like_scans(scans))
    require_same({f"content of {scan.path.name}": scan.fingerprint for scan in scans})
    return PatternSource(scans)


def _require_like_scans(scans: tuple[Scan, ...]) -> None:
    first = scans[0]
    seen: dict[str, Scan] = {}
    for scan in scans:
        scan.require_probe()
        if scan.pattern_size != first.pattern_size:
            found, expected = (
                f"{size} x {size}" for size in (scan.pattern_size, first.pattern_size)
            )
            expected += f", as {first.path} has: one network takes one size"
            raise ScanError(scan.path, scan.key, f"patterns of {found}", expected)
        if len(scan.probe) != len(first.probe):
            expected = f"{len(first.probe)}, as {first.path} has; save each scan with as many"
            raise ScanError(scan.path, "probe", f"{len(scan.probe)} mode(s)", expected)
        # The patterns of a scan listed twice would count twice, and some would validate what their
        # copies train.
        if scan.fingerprint in seen:
            found = f"the same as that of {seen[scan.fingerprint].path}"
            raise ScanError(scan.path, "content", found, "each scan once in data.path")
        seen[scan.fingerprint] = scan


def _agreed_subset(scans: tuple[Scan, ...], config: DataConfig) -> Subset:
    subset = run_together(lambda: select_subset(scans, config))
    # An index file may differ from node to node.
    require_same({f"the subset drawn by {config.sampling_mode}": subset.fingerprint})
    return subset


def _placement_of(subset: Subset, scans: tuple[Scan, ...]) -> Placement:
    num_patterns = len(subset.train) + len(subset.validation)
    return choose_placement(4 * num_patterns * scans[0].pattern_size ** 2)


def _derive_normalization(source: PatternSource, subset: Subset) -> Normalization:
    """Return r of all training patterns together, and the brightness of each scan."""
    pattern_size = source.scans[0].pattern_size
    scan_of_pattern = source.scan_of(subset.train)
    energies = [
        exact_energy_sum(source.chunks(_own_part(subset.train[scan_of_pattern == number])))
        for number in range(len(source.scans))
    ]
    energy = sum(energies, start=ExactSum(Fraction(0), 0))
    factor = rms_factor(energy, pattern_size)
    for scan, of_scan in zip(source.scans, energies, strict=True):
        if of_scan.count and not of_scan.total:  # its probe would have no photons
            raise FailedTogether(
                f"{scan.path}: {scan.key}: found {of_scan.count} training patterns, all zero, "
                "expected some light"
            )
    return Normalization(
        rms_factor=factor,
        mean_energy=float(energy.mean),
        num_patterns=energy.count,
        scan_brightness=tuple(
            brightness(of_scan.mean, energy.mean) if of_scan.count else 1.0 for of_scan in energies
        ),
    )


def _nphotons(
    source: PatternSource, subset: Subset, config: DataConfig, normalization: Normalization
) -> Nphotons:
    paths = [str(scan.path) for scan in source.scans]
    counts = np.bincount(source.scan_of(subset.train), minlength=len(paths)).tolist()
    return resolve_nphotons(
        {str(scan.path): scan.nphotons for scan in source.scans},
        config.nphotons,
        measured=lambda: normalization.mean_energy,
        num_patterns=dict(zip(paths, counts, strict=True)),
    )


def _calibrate(
    source: PatternSource, subset: Subset, normalization: Normalization, nphotons: Nphotons
) -> Calibration:
    amplitudes = source.chunks(_own_part(subset.train))
    x_norm = (normalize(amplitude, normalization.rms_factor) for amplitude in amplitudes)
    return Calibration.of(
        derive_intensity_scale(x_norm, nphotons.value),
        nphotons_source=nphotons.source,
        rms_factor=normalization.rms_factor,
        pattern_size=source.scans[0].pattern_size,
        subset_fingerprint=subset.fingerprint,
        scan_brightness=normalization.scan_brightness,
    )


def _read_once(source: PatternSource, patterns: np.ndarray) -> None:
    """Read this rank's share, so that a bad value is met before training, not an epoch later."""
    for _ in source.chunks(_own_part(patterns)):
        pass


def _own_part(patterns: np.ndarray) -> np.ndarray:
    """Return this rank's share of a pass over patterns: neighbours, which are read together."""
    return np.array_split(patterns, world_size())[rank()]


def reading_advice(scans: tuple[Scan, ...], placement: Placement) -> Iterator[str]:
    """Yield what would make training faster where it streams patterns from packed chunks."""
    for scan in () if placement.held else scans:
        together = scan.diffraction.chunk if isinstance(scan.diffraction, Hdf5Patterns) else 1
        if together > 1:
            yield (
                f"{scan.path}: {together} patterns are packed together, and reading one means "
                "reading all of them; ptycho-stage --repack writes a copy that is read one by one"
            )


def _log_what_was_found(data: PreparedData, normalization: Normalization) -> None:
    first, subset, calibration = data.scans[0], data.subset, data.calibration
    size = first.pattern_size
    logger.info(
        f"data: {', '.join(str(scan.path) for scan in data.scans)}: "
        f"{len(data.source.positions_px)} patterns of {size} x {size}, {len(first.probe)} probe "
        f"mode(s), {first.measurement}"
    )
    logger.info(
        f"subset: {subset.description}; {len(subset.train)} training patterns, "
        f"{len(subset.validation)} validation patterns, groups of {data.config.group_size}, "
        f"fingerprint {subset.fingerprint}"
    )
    if len(data.scans) > 1:
        _log_scans(data)
    logger.info("patterns: %s", data.placement)
    for advice in reading_advice(data.scans, data.placement):
        logger.warning("%s", advice)
    count = normalization.num_patterns
    logger.info(f"normalization: rms, factor r = {calibration.rms_factor!r} from {count} patterns")
    logger.info(f"nphotons: {calibration.nphotons!r} (source: {calibration.nphotons_source})")
    logger.info(
        f"intensity_scale: {calibration.intensity_scale!r} from {calibration.num_patterns} "
        f"patterns on {world_size()} rank(s)"
    )
    if not 0.5 < calibration.nphotons / normalization.mean_energy < 2:
        logger.info(
            f"note: the file's numbers add up to {normalization.mean_energy:.6g} per pattern on "
            f"average, nphotons is {calibration.nphotons:.6g}"
        )


def _log_scans(data: PreparedData) -> None:
    sides = (data.subset.train, data.subset.validation)
    counts = [np.bincount(data.source.scan_of(side), minlength=len(data.scans)) for side in sides]
    for scan, train, validation, bright in zip(
        data.scans, *counts, data.calibration.scan_brightness, strict=True
    ):
        given = "no nphotons" if scan.nphotons is None else f"nphotons {float(scan.nphotons)!r}"
        logger.info(
            f"scan: {scan.path}: {train} training patterns, {validation} validation patterns; its "
            f"metadata give {given}; its incident amplitude is {bright:.4g} times the mean"
        )
