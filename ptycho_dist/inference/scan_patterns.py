"""Normalised patterns of a scan, pass after pass, on the device that reconstructs it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ptycho_dist.data.batches import HeldBatches, HeldPatterns, StreamedBatches
from ptycho_dist.data.pattern_source import PatternSource
from ptycho_dist.data.placement import choose_placement_alone
from ptycho_dist.data.sampler import BlockSampler
from ptycho_dist.data.scan import Scan, ScanError
from ptycho_dist.progress import Progress

logger = logging.getLogger(__name__)

BATCH_PIXELS = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Pixels of a batch: enough to keep a GPU busy, few enough for a core's cache."""


class Patterns(Protocol):
    """A scan that can be passed over again and again; see `ScanPatterns`."""

    num_patterns: int
    positions_px: np.ndarray
    mask: Tensor | None

    def batches(self, order: np.ndarray | None = None) -> Iterator[tuple[Tensor, Tensor]]: ...


class ScanPatterns:
    """Patterns of a scan, read once if they can be held as in training (`placement`), else anew for
    each pass, ahead of the computation.

    Parameters
    ----------
    scan
        The scan to read.
    rms_factor
        Factor r of X_norm = r X.

    Attributes
    ----------
    device
        Device of the batches.
    mask
        bool (N, N), True at unmasked pixels, or None if there is no mask. Patterns hold 0 at masked
        pixels.
    """

    def __init__(self, scan: Scan, rms_factor: float) -> None:
        self.num_patterns = scan.num_patterns
        self.positions_px = scan.positions_px
        self._scan = scan
        self._rms_factor = rms_factor
        self._source = PatternSource([scan])
        placement = choose_placement_alone(4 * math.prod(scan.diffraction.shape))
        logger.info("patterns: %s", placement)
        self.device = placement.device
        self.mask = None if scan.mask is None else torch.from_numpy(scan.mask).to(self.device)
        self._held = (
            HeldPatterns(self._source, np.arange(scan.num_patterns), rms_factor, self.device)
            if placement.held
            else None
        )

    def mean_energy(self) -> float:
        """Return the mean over the patterns of sum X_norm**2, in one pass.

        Raises
        ------
        ScanError
            It is zero.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for _, x_norm in self.batches():
            total += x_norm.double().square().sum()
        if not total:
            raise ScanError(
                self._scan.path,
                self._scan.key,
                f"{self.num_patterns} patterns, all zero",
                "some light",
            )
        return float(total) / self.num_patterns

    def batches(self, order: np.ndarray | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of positions float64 (k, 2) as (y, x), pixels, and X_norm (k, N, N). A long
        pass logs its progress.

        Parameters
        ----------
        order
            Pattern numbers int64 (n,); that of the scan by default.
        """
        groups = (np.arange(self.num_patterns) if order is None else order)[:, None]
        block_size = max(1, BATCH_PIXELS[self.device.type] // self._scan.pattern_size**2)
        blocks = BlockSampler(self.num_patterns, block_size=block_size, rank=0, world_size=1)
        batches: HeldBatches | StreamedBatches
        if self._held is None:
            batches = StreamedBatches(self._source, groups, self._rms_factor, blocks)
        else:
            batches = HeldBatches(self._held, self._source, groups, blocks)
        progress, done = Progress(self._scan.path.name), 0
        for samples in batches:
            positions_px, x_norm = (
                field.to(self.device, non_blocking=True)
                for field in (samples.positions_px, samples.x_norm)
            )
            yield positions_px[:, 0], x_norm[:, 0]
            done += len(samples.x_norm)
            progress(done, self.num_patterns)
