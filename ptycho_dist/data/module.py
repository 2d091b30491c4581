"""The data wing, put together: scans, subset, normalisation, scale, and this rank's batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import lightning as L
import numpy as np

from ptycho_dist.config import DataConfig
from ptycho_dist.data.batches import HeldBatches, HeldPatterns, StreamedBatches
from ptycho_dist.data.normalization import RmsNormalization, normalize, rms_normalization
from ptycho_dist.data.pattern_source import PatternSource
from ptycho_dist.data.placement import Placement, choose_placement
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.readers.hdf5_patterns import Hdf5Patterns
from ptycho_dist.data.sampler import BlockSampler, GlobalBatchSampler
from ptycho_dist.data.scan import Scan, ScanError
from ptycho_dist.data.subset import Subset, select_subset
from ptycho_dist.distributed import FailedTogether, rank, require_same, run_together, world_size
from ptycho_dist.scale.exact_sum import exact_energy_sum
from ptycho_dist.scale.intensity_scale import IntensityScale, derive_intensity_scale
from ptycho_dist.scale.nphotons import Nphotons, resolve_nphotons

logger = logging.getLogger(__name__)

VALIDATION_BLOCK = 8
"""Groups that validation computes together."""


class ScanDataModule(L.LightningDataModule):
    """Scans to batches.

    After `setup`, which is a collective: `scans`, `subset`, `placement`, `normalization` (r),
    `brightness`, `nphotons` and `intensity_scale` (s), the same on every rank. `brightness` is
    float64 (scans,): the amplitude of each scan's light, 1 where its training patterns have the
    mean energy of all. To make a loader is a collective too: the first one reads the patterns,
    where they are held.

    Parameters
    ----------
    config
        Which patterns, and what their numbers mean.
    global_batch_size
        Groups an optimiser step over all ranks.
    num_micro_batches
        Parts that a step is computed in, one after the other.
    seed
        Seed of the batches' order.
    """

    scans: tuple[Scan, ...]
    subset: Subset
    placement: Placement
    normalization: RmsNormalization
    brightness: np.ndarray
    nphotons: Nphotons
    intensity_scale: IntensityScale

    def __init__(
        self, config: DataConfig, *, global_batch_size: int, num_micro_batches: int = 1, seed: int
    ) -> None:
        super().__init__()
        self.config = config
        self.global_batch_size = global_batch_size
        self.num_micro_batches = num_micro_batches
        self.seed = seed
        self._held: HeldPatterns | None = None

    def setup(self, stage: str) -> None:
        self._held = None
        self.scans = tuple(read_scan(path, options=self.config) for path in self.config.paths)
        run_together(self._require_like_scans)
        require_same({f"content of {scan.path.name}": scan.fingerprint for scan in self.scans})
        self.source = PatternSource(self.scans)
        subset = run_together(lambda: select_subset(self.scans, self.config))
        # an index file may differ from node to node
        require_same({f"the subset drawn by {self.config.sampling_mode}": subset.fingerprint})
        self.subset = subset
        pattern_bytes = 4 * self.scans[0].pattern_size ** 2
        self.placement = choose_placement(
            (len(self.subset.train) + len(self.subset.validation)) * pattern_bytes
        )
        shard = self._own_part(self.subset.train)
        self._find_normalization()
        num_patterns = np.bincount(
            self.source.scan_of(self.subset.train), minlength=len(self.scans)
        )
        self.nphotons = run_together(
            lambda: resolve_nphotons(
                {str(scan.path): scan.nphotons for scan in self.scans},
                self.config.nphotons,
                measured=lambda: self.normalization.mean_energy,
                num_patterns={
                    str(scan.path): int(count)
                    for scan, count in zip(self.scans, num_patterns, strict=True)
                },
            )
        )
        x_norm = (
            normalize(amplitude, self.normalization.factor)
            for amplitude in self.source.chunks(shard)
        )
        self.intensity_scale = derive_intensity_scale(x_norm, self.nphotons.value)
        run_together(self._check_validation_patterns)
        if rank() == 0:
            self._log_what_was_found()

    def train_sampler(self) -> GlobalBatchSampler:
        return GlobalBatchSampler(
            len(self.subset.train_groups),
            global_batch_size=self.global_batch_size,
            rank=rank(),
            world_size=world_size(),
            shuffle_seed=self.seed,
            num_micro_batches=self.num_micro_batches,
            weights=self._pixels_that_count(),
        )

    def train_dataloader(self) -> StreamedBatches | HeldBatches:
        return self._batches(self.subset.train_groups, self.train_sampler())

    def val_dataloader(self) -> StreamedBatches | HeldBatches | list[StreamedBatches]:
        groups = self.subset.validation_groups
        sampler = BlockSampler(
            len(groups), block_size=VALIDATION_BLOCK, rank=rank(), world_size=world_size()
        )
        return self._batches(groups, sampler) if len(groups) else []

    def _batches(
        self, groups: np.ndarray, sampler: GlobalBatchSampler | BlockSampler
    ) -> StreamedBatches | HeldBatches:
        factor = self.normalization.factor
        if not self.placement.held:
            return StreamedBatches(self.source, groups, factor, sampler)
        if self._held is None:
            patterns = np.union1d(self.subset.train, self.subset.validation)
            self._held = run_together(
                lambda: HeldPatterns(self.source, patterns, factor, self.placement.device)
            )
        return HeldBatches(self._held, self.source, groups, sampler)

    def reading_advice(self) -> Iterator[str]:
        """What would make training faster, where it streams patterns that can't be had one by
        one."""
        for scan in self.scans if not self.placement.held else ():
            together = scan.diffraction.chunk if isinstance(scan.diffraction, Hdf5Patterns) else 1
            if together > 1:
                yield (
                    f"{scan.path}: {together} patterns are packed together, and to read one costs "
                    "the reading of all of them; "
                    "ptycho-stage --repack writes a copy that is read one by one"
                )

    def _find_normalization(self) -> None:
        """r of all training patterns together, and how bright each scan is in its units."""
        scan_of_pattern = self.source.scan_of(self.subset.train)
        energies = [
            exact_energy_sum(
                self.source.chunks(self._own_part(self.subset.train[scan_of_pattern == number]))
            )
            for number in range(len(self.scans))
        ]
        pattern_size = self.scans[0].pattern_size
        self.normalization = rms_normalization(sum(energies[1:], start=energies[0]), pattern_size)
        for scan, energy in zip(self.scans, energies, strict=True):
            if energy.count and not energy.total:  # its object would be seen in no light
                raise FailedTogether(
                    f"{scan.path}: {scan.key}: found {energy.count} training patterns, all zero, "
                    "expected some light"
                )
        self.brightness = np.array(
            [
                self.normalization.factor / rms_normalization(energy, pattern_size).factor
                if energy.count
                else 1.0
                for energy in energies
            ]
        )

    def _own_part(self, patterns: np.ndarray) -> np.ndarray:
        """This rank's share of a pass over patterns: neighbours, which are read together."""
        return np.array_split(patterns, world_size())[rank()]

    def _pixels_that_count(self) -> np.ndarray | None:
        """Of each training group, a pattern; None where all scans have as many."""
        of_scan = np.array([scan.num_counted for scan in self.scans])
        return (
            None
            if (of_scan == of_scan[0]).all()
            else of_scan[self.source.scan_of(self.subset.train_groups[:, 0])]
        )

    def _require_like_scans(self) -> None:
        first = self.scans[0]
        same: dict[str, Scan] = {}
        for scan in self.scans:
            scan.require_probe()
            if scan.pattern_size != first.pattern_size:
                found, expected = (
                    f"{size} x {size}" for size in (scan.pattern_size, first.pattern_size)
                )
                raise ScanError(
                    scan.path,
                    scan.key,
                    f"patterns of {found}",
                    f"{expected}, as {first.path} has: one network takes one size",
                )
            if len(scan.probe) != len(first.probe):
                found, expected = (
                    f"{len(scan.probe)} mode(s)",
                    f"{len(first.probe)}, as {first.path} has",
                )
                raise ScanError(
                    scan.path, "probe", found, f"{expected}; save each scan with as many"
                )
            # its patterns would count twice, and some validate what their copies train
            if scan.fingerprint in same:
                raise ScanError(
                    scan.path,
                    "content",
                    f"the same as that of {same[scan.fingerprint].path}",
                    "each scan once in data.path",
                )
            same[scan.fingerprint] = scan

    def _check_validation_patterns(self) -> None:
        """Read this rank's share once, so that a bad value is met before training, not at the end
        of the first epoch."""
        for _ in self.source.chunks(self._own_part(self.subset.validation)):
            pass

    def _log_what_was_found(self) -> None:
        scale = self.intensity_scale
        first = self.scans[0]
        logger.info(
            "data: %s: %d patterns of %d x %d, %d probe mode(s), %s",
            ", ".join(str(scan.path) for scan in self.scans),
            len(self.source.positions_px),
            first.pattern_size,
            first.pattern_size,
            len(first.probe),
            first.measurement,
        )
        logger.info(
            "subset: %s; %d training patterns, %d validation patterns, groups of %d, fingerprint "
            "%s",
            self.subset.description,
            len(self.subset.train),
            len(self.subset.validation),
            self.config.group_size,
            self.subset.fingerprint,
        )
        for number, scan in enumerate(self.scans if len(self.scans) > 1 else ()):
            train, validation = (
                int((self.source.scan_of(side) == number).sum())
                for side in (self.subset.train, self.subset.validation)
            )
            says = (
                "nothing of nphotons"
                if scan.nphotons is None
                else f"nphotons {float(scan.nphotons)!r}"
            )
            logger.info(
                "scan: %s: %d training patterns, %d validation patterns; its metadata say %s; its "
                "light has %.4g times the mean amplitude",
                *(scan.path, train, validation, says, self.brightness[number]),
            )
        logger.info("patterns: %s", self.placement)
        for advice in self.reading_advice():
            logger.warning("%s", advice)
        logger.info(
            "normalization: rms, factor r = %r from %d patterns",
            self.normalization.factor,
            self.normalization.num_patterns,
        )
        logger.info("nphotons: %r (source: %s)", self.nphotons.value, self.nphotons.source)
        logger.info(
            "intensity_scale: %r from %d patterns on %d rank(s)",
            scale.value,
            scale.num_patterns,
            world_size(),
        )
        measured = self.normalization.mean_energy
        if not 0.5 < self.nphotons.value / measured < 2:
            logger.info(
                "note: the file's numbers add up to %.6g a pattern in the mean, nphotons is %.6g",
                measured,
                self.nphotons.value,
            )
