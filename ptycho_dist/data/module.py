"""The data wing, put together: scans, subset, normalisation, scale, and this rank's batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ptycho_dist.config import DataConfig
from ptycho_dist.data.normalization import RmsNormalization, derive_rms_normalization, normalize
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.sampler import BlockSampler, GlobalBatchSampler
from ptycho_dist.data.scan import Scan, ScanError
from ptycho_dist.data.subset import Subset, select_subset
from ptycho_dist.distributed import rank, require_same, run_together, world_size
from ptycho_dist.progress import Progress
from ptycho_dist.scale.intensity_scale import IntensityScale, derive_intensity_scale
from ptycho_dist.scale.nphotons import Nphotons, resolve_nphotons

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 25
"""How much of a shard is held at a time while its energy is added up."""


VALIDATION_BLOCK = 8
"""Groups that validation computes together."""


class Samples(NamedTuple):
    """A batch of groups.

    Attributes
    ----------
    x_norm
        float32 (B, C, N, N).
    positions_px
        float64 (B, C, 2) as (y, x).
    scan
        int64 (B,): which scan, and so which probe, a group belongs to.
    """

    x_norm: Tensor
    positions_px: Tensor
    scan: Tensor


class PatternSource:
    """Patterns of several scans by number, counted through all scans in their order."""

    def __init__(self, scans: Sequence[Scan]) -> None:
        self.scans = tuple(scans)
        self.first_pattern = np.cumsum([0, *(scan.num_patterns for scan in scans)])
        self.positions_px = np.concatenate([scan.positions_px for scan in scans])

    def scan_of(self, patterns: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.first_pattern, patterns, side="right") - 1

    def amplitude(self, patterns: np.ndarray) -> np.ndarray:
        """Measured amplitude of `patterns` (k,): float32 (k, N, N)."""
        pattern_size = self.scans[0].pattern_size
        amplitude = np.empty((len(patterns), pattern_size, pattern_size), dtype=np.float32)
        scan_of_pattern = self.scan_of(patterns)
        for number in np.unique(scan_of_pattern):
            belongs = scan_of_pattern == number
            amplitude[belongs] = self.scans[number].amplitude(patterns[belongs] - self.first_pattern[number])
        return amplitude

    def chunks(self, patterns: np.ndarray) -> Iterator[np.ndarray]:
        """The amplitudes of `patterns` in pieces of bounded memory."""
        chunk_size = max(1, CHUNK_BYTES // (8 * self.scans[0].pattern_size ** 2))
        progress = Progress("reading this rank's shard")
        for start in range(0, len(patterns), chunk_size):
            yield self.amplitude(patterns[start : start + chunk_size])
            progress(start + chunk_size, len(patterns))


class GroupDataset(Dataset[Samples]):
    """Groups of patterns (groups, C), read and normalised a batch at a time."""

    def __init__(self, source: PatternSource, groups: np.ndarray, rms_factor: float) -> None:
        self.source = source
        self.groups = groups
        self.rms_factor = rms_factor

    def __len__(self) -> int:
        return len(self.groups)

    def __getitems__(self, samples: list[int]) -> Samples:
        groups = self.groups[np.asarray(samples, dtype=np.int64)]
        amplitude = self.source.amplitude(groups.reshape(-1))
        x_norm = normalize(amplitude, self.rms_factor).reshape(*groups.shape, *amplitude.shape[1:])
        return Samples(
            x_norm=torch.from_numpy(x_norm),
            positions_px=torch.from_numpy(self.source.positions_px[groups]),
            scan=torch.from_numpy(self.source.scan_of(groups[:, 0])),
        )


class ScanDataModule(L.LightningDataModule):
    """Scans to batches.

    After `setup`, which is a collective: `scans`, `subset`, `normalization` (r), `nphotons` and `intensity_scale` (s), the same on every
    rank.

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
    normalization: RmsNormalization
    nphotons: Nphotons
    intensity_scale: IntensityScale

    def __init__(self, config: DataConfig, *, global_batch_size: int, num_micro_batches: int = 1, seed: int) -> None:
        super().__init__()
        self.config = config
        self.global_batch_size = global_batch_size
        self.num_micro_batches = num_micro_batches
        self.seed = seed

    def setup(self, stage: str) -> None:
        self.scans = tuple(read_scan(path, options=self.config) for path in self.config.paths)
        run_together(self._require_like_scans)
        require_same({f"content of {scan.path.name}": scan.fingerprint for scan in self.scans})
        self.source = PatternSource(self.scans)
        subset = run_together(lambda: select_subset(self.scans, self.config))
        require_same({f"the subset drawn by {self.config.sampling_mode}": subset.fingerprint})  # an index file may differ from node to node
        self.subset = subset
        shard = self.subset.train[rank() :: world_size()]
        self.normalization = derive_rms_normalization(self.source.chunks(shard), self.scans[0].pattern_size)
        num_patterns = np.bincount(self.source.scan_of(self.subset.train), minlength=len(self.scans))
        self.nphotons = run_together(
            lambda: resolve_nphotons(
                {str(scan.path): scan.nphotons for scan in self.scans},
                self.config.nphotons,
                measured=lambda: self.normalization.mean_energy,
                num_patterns={str(scan.path): int(count) for scan, count in zip(self.scans, num_patterns, strict=True)},
            )
        )
        x_norm = (normalize(amplitude, self.normalization.factor) for amplitude in self.source.chunks(shard))
        self.intensity_scale = derive_intensity_scale(x_norm, self.nphotons.value)
        run_together(self._check_validation_patterns)
        if rank() == 0:
            self._log_what_was_found()

    def train_dataloader(self) -> DataLoader[Samples]:
        groups = self.subset.train_groups
        sampler = GlobalBatchSampler(
            len(groups),
            global_batch_size=self.global_batch_size,
            rank=rank(),
            world_size=world_size(),
            shuffle_seed=self.seed,
            num_micro_batches=self.num_micro_batches,
            weights=self._pixels_that_count(),
        )
        return self._dataloader(groups, sampler)

    def val_dataloader(self) -> DataLoader[Samples] | list[DataLoader[Samples]]:
        groups = self.subset.validation_groups
        sampler = BlockSampler(len(groups), block_size=VALIDATION_BLOCK, rank=rank(), world_size=world_size())
        return self._dataloader(groups, sampler) if len(groups) else []

    def _dataloader(self, groups: np.ndarray, sampler: GlobalBatchSampler | BlockSampler) -> DataLoader[Samples]:
        return DataLoader(
            GroupDataset(self.source, groups, self.normalization.factor),
            batch_sampler=sampler,
            collate_fn=_already_a_batch,
            pin_memory=torch.cuda.is_available(),
        )

    def _pixels_that_count(self) -> np.ndarray | None:
        """Of each training group, a pattern; None where all scans have as many."""
        of_scan = np.array([scan.num_counted for scan in self.scans])
        return None if (of_scan == of_scan[0]).all() else of_scan[self.source.scan_of(self.subset.train_groups[:, 0])]

    def _require_like_scans(self) -> None:
        first = self.scans[0]
        same: dict[str, Scan] = {}
        for scan in self.scans:
            scan.require_probe()
            if scan.pattern_size != first.pattern_size:
                found, expected = (f"{size} x {size}" for size in (scan.pattern_size, first.pattern_size))
                raise ScanError(scan.path, scan.key, f"patterns of {found}", f"{expected}, as {first.path} has: one network takes one size")
            if len(scan.probe) != len(first.probe):
                found, expected = f"{len(scan.probe)} mode(s)", f"{len(first.probe)}, as {first.path} has"
                raise ScanError(scan.path, "probe", found, f"{expected}; save each scan with as many")
            if scan.fingerprint in same:  # its patterns would count twice, and some validate what their copies train
                raise ScanError(scan.path, "content", f"the same as that of {same[scan.fingerprint].path}", "each scan once in data.path")
            same[scan.fingerprint] = scan

    def _check_validation_patterns(self) -> None:
        """Read this rank's share once, so that a bad value is met before training, not at the end of the first epoch."""
        for _ in self.source.chunks(self.subset.validation[rank() :: world_size()]):
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
            "subset: %s; %d training patterns, %d validation patterns, groups of %d, fingerprint %s",
            self.subset.description,
            len(self.subset.train),
            len(self.subset.validation),
            self.config.group_size,
            self.subset.fingerprint,
        )
        for number, scan in enumerate(self.scans if len(self.scans) > 1 else ()):
            train, validation = (int((self.source.scan_of(side) == number).sum()) for side in (self.subset.train, self.subset.validation))
            says = "nothing of nphotons" if scan.nphotons is None else f"nphotons {float(scan.nphotons)!r}"
            logger.info("scan: %s: %d training patterns, %d validation patterns; its metadata say %s", scan.path, train, validation, says)
        logger.info("normalization: rms, factor r = %r from %d patterns", self.normalization.factor, self.normalization.num_patterns)
        logger.info("nphotons: %r (source: %s)", self.nphotons.value, self.nphotons.source)
        logger.info("intensity_scale: %r from %d patterns on %d rank(s)", scale.value, scale.num_patterns, world_size())
        measured = self.normalization.mean_energy
        if not 0.5 < self.nphotons.value / measured < 2:
            logger.info("note: the file's numbers add up to %.6g a pattern in the mean, nphotons is %.6g", measured, self.nphotons.value)


def _already_a_batch(samples: Any) -> Any:
    return samples
