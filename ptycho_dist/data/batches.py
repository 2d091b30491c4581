"""This rank's batches of normalised amplitudes: read while the step before is computed, or gathered
from patterns that the device holds.

Both give the same bits in the same order; which one it is decides `placement`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_dist.config import TrainConfig
from ptycho_dist.data.pattern_source import PatternSource
from ptycho_dist.data.prepare import PreparedData
from ptycho_dist.data.sampler import BlockSampler, GlobalBatchSampler
from ptycho_dist.data.subset import Subset
from ptycho_dist.distributed import rank, run_together, world_size
from ptycho_dist.scale.normalization import normalize

BATCHES_AHEAD = 2
"""How many batches are read before they are asked for."""


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


class StreamedBatches:
    """Groups of patterns (groups, C), read and normalised a batch at a time, by a thread that is
    some batches ahead.

    What goes wrong in the thread is raised where the batch is taken.
    """

    def __init__(
        self,
        source: PatternSource,
        groups: np.ndarray,
        rms_factor: float,
        batch_sampler: GlobalBatchSampler | BlockSampler,
    ) -> None:
        self.batch_sampler = batch_sampler
        self._source = source
        self._groups = groups
        self._rms_factor = rms_factor

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Samples]:
        # A page-locked batch is copied to the GPU while the GPU computes. A thread has to be told
        # which GPU is this rank's.
        on_gpu = torch.cuda.is_available()
        enter = (torch.cuda.set_device, (torch.cuda.current_device(),)) if on_gpu else (None, ())
        reader = ThreadPoolExecutor(1, "read patterns", *enter)
        ahead: deque[Future[Samples]] = deque()
        try:
            for samples in self.batch_sampler:
                ahead.append(reader.submit(self._read, samples, on_gpu))
                if len(ahead) > BATCHES_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            reader.shutdown(wait=False, cancel_futures=True)

    def _read(self, samples: list[int], pin: bool) -> Samples:
        groups = self._groups[np.asarray(samples, dtype=np.int64)]
        amplitude = self._source.amplitude(groups.reshape(-1))
        x_norm = normalize(amplitude, self._rms_factor).reshape(*groups.shape, *amplitude.shape[1:])
        batch = Samples(
            x_norm=torch.from_numpy(x_norm),
            positions_px=torch.from_numpy(self._source.positions_px[groups]),
            scan=torch.from_numpy(self._source.scan_of(groups[:, 0])),
        )
        return Samples(*(field.pin_memory() for field in batch)) if pin else batch


class HeldPatterns:
    """Normalised amplitudes that a device holds, all that a rank draws from: since every epoch
    deals all of them anew, that is the subset.

    Parameters
    ----------
    source
        To read from.
    patterns
        Which ones, ascending: int64 (k,).
    rms_factor
        r.
    device
        Where they shall lie.
    """

    def __init__(
        self, source: PatternSource, patterns: np.ndarray, rms_factor: float, device: torch.device
    ) -> None:
        pattern_size = source.scans[0].pattern_size
        self.patterns = patterns
        self.x_norm = torch.empty(len(patterns), pattern_size, pattern_size, device=device)
        done = 0
        for amplitude in source.chunks(patterns, "reading patterns to hold them in memory"):
            self.x_norm[done : done + len(amplitude)] = torch.from_numpy(
                normalize(amplitude, rms_factor)
            )
            done += len(amplitude)


class HeldBatches:
    """Groups of patterns (groups, C), gathered on the device that holds the patterns."""

    def __init__(
        self,
        held: HeldPatterns,
        source: PatternSource,
        groups: np.ndarray,
        batch_sampler: GlobalBatchSampler | BlockSampler,
    ) -> None:
        self.batch_sampler = batch_sampler
        device = held.x_norm.device
        self._x_norm = held.x_norm
        self._places = torch.from_numpy(np.searchsorted(held.patterns, groups)).to(device)
        self._positions_px = torch.from_numpy(source.positions_px[groups]).to(device)
        self._scan = torch.from_numpy(source.scan_of(groups[:, 0])).to(device)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Samples]:
        for samples in self.batch_sampler:
            groups = torch.tensor(samples, dtype=torch.int64, device=self._x_norm.device)
            yield Samples(
                x_norm=self._x_norm[self._places[groups]],
                positions_px=self._positions_px[groups],
                scan=self._scan[groups],
            )


Batches = StreamedBatches | HeldBatches


def make_batches(
    data: PreparedData, config: TrainConfig
) -> tuple[Batches, Batches | list[Samples]]:
    """Return this rank's training and validation batches. A collective.

    Where the patterns are held in memory they are read here, once for both.
    """
    train, validation = data.subset.train_groups, data.subset.validation_groups
    sampler = train_sampler(data.source, data.subset, config)
    blocks = BlockSampler(
        len(validation), block_size=VALIDATION_BLOCK, rank=rank(), world_size=world_size()
    )
    factor = data.calibration.rms_factor
    if not data.placement.held:
        return (
            StreamedBatches(data.source, train, factor, sampler),
            StreamedBatches(data.source, validation, factor, blocks) if len(validation) else [],
        )
    patterns = np.union1d(data.subset.train, data.subset.validation)
    device = data.placement.device
    held = run_together(lambda: HeldPatterns(data.source, patterns, factor, device))
    return (
        HeldBatches(held, data.source, train, sampler),
        HeldBatches(held, data.source, validation, blocks) if len(validation) else [],
    )


def train_sampler(source: PatternSource, subset: Subset, config: TrainConfig) -> GlobalBatchSampler:
    """Return this rank's part of each global batch of training groups."""
    unmasked = np.array([scan.num_counted for scan in source.scans])
    weights = unmasked[source.scan_of(subset.train_groups[:, 0])]
    return GlobalBatchSampler(
        len(subset.train_groups),
        global_batch_size=config.global_batch_size,
        rank=rank(),
        world_size=world_size(),
        shuffle_seed=config.seed,
        num_micro_batches=config.accumulate_grad_batches,
        # None where every pattern brings as many pixels to the mean.
        weights=None if (unmasked == unmasked[0]).all() else weights,
    )
