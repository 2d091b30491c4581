"""Deal samples to ranks: the same global batches, and the same validation blocks, at any number of
ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Sampler


@dataclass(eq=False)
class GlobalBatchSampler(Sampler[list[int]]):
    """Sample this rank's part of each global batch.

    The order of the samples depends on seed and epoch alone. It is cut into global batches, the
    last one possibly smaller, and each is dealt to the ranks in turn: no sample twice, none left
    out, parts that differ by one sample at most. A part may be empty; every rank takes the same
    number of steps. With gradient accumulation each global batch is first dealt to
    `num_micro_batches` consecutive micro-batches.

    Attributes
    ----------
    num_samples
        Samples of the whole dataset.
    global_batch_size
        Samples per step over all ranks.
    rank, world_size
        Select this rank's part.
    shuffle_seed
        Seed of the order, together with the epoch.
    num_micro_batches
        Micro-batches per step.
    weights
        int64 (num_samples,): terms of each sample in a mean over a step, e.g. unmasked pixels; None
        if all have the same.
    epoch
        Set by the trainer.
    """

    num_samples: int
    global_batch_size: int
    rank: int
    world_size: int
    shuffle_seed: int
    num_micro_batches: int = 1
    weights: np.ndarray | None = None
    epoch: int = field(default=0, init=False)
    _batches_done: int = field(default=0, init=False)
    _kept_order: tuple[int, np.ndarray] | None = field(default=None, init=False)

    @property
    def sampler(self) -> GlobalBatchSampler:
        """Lightning's trainer looks here for the `set_epoch` of a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def go_on_after(self, num_steps: int) -> None:
        """Start the next pass after `num_steps` steps of its epoch, where a run was interrupted."""
        self._batches_done = num_steps * self.num_micro_batches

    def weight_in(self, batch: int) -> tuple[int, int]:
        """Return the number of samples, or their weights, over all ranks: in micro-batch `batch` of
        an epoch, and in its whole step."""
        step, micro_batch = divmod(batch, self.num_micro_batches)
        in_step = min(self.global_batch_size, self.num_samples - step * self.global_batch_size)
        if self.weights is None:
            return len(range(micro_batch, in_step, self.num_micro_batches)), in_step
        start = step * self.global_batch_size
        weights = self.weights[self._order()[start : start + in_step]]
        return int(weights[micro_batch :: self.num_micro_batches].sum()), int(weights.sum())

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_samples // self.global_batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.num_micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        first, self._batches_done = self._batches_done, 0
        for batch in range(first, len(self)):
            step, micro_batch = divmod(batch, self.num_micro_batches)
            global_batch = order[step * self.global_batch_size :][: self.global_batch_size]
            of_ranks = global_batch[micro_batch :: self.num_micro_batches]
            yield of_ranks[self.rank :: self.world_size].tolist()

    def _order(self) -> np.ndarray:
        """Return this epoch's order of the samples; the last one is kept."""
        if self._kept_order is None or self._kept_order[0] != self.epoch:
            order = np.arange(self.num_samples)
            np.random.default_rng([self.shuffle_seed, self.epoch]).shuffle(order)
            self._kept_order = (self.epoch, order)
        return self._kept_order[1]


@dataclass(eq=False)
class BlockSampler(Sampler[list[int]]):
    """Deal whole blocks of neighbouring samples to the ranks in turn, each sample once.

    A sample's last bits depend on its batch (convolutions round differently in batches of other
    sizes). A block's samples stay together, so a metric summed over blocks does not depend on the
    number of ranks. Every rank takes the same number of steps; the last may be empty.
    """

    num_samples: int
    block_size: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return -(-self.num_samples // (self.block_size * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        for turn in range(len(self)):
            start = (turn * self.world_size + self.rank) * self.block_size
            yield list(range(start, min(start + self.block_size, self.num_samples)))
