"""Which samples each rank takes at each step: the same global batches at any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class GlobalBatchSampler(Sampler[list[int]]):
    """This rank's part of each global batch.

    The order of the samples depends on seed and epoch alone. It is cut into global batches, the last one possibly smaller, and each
    global batch is dealt to the ranks in turn: no sample twice, none left out, parts that differ by one sample at most. A part may be
    empty; every rank takes the same number of steps.

    Parameters
    ----------
    num_samples
        Samples of the whole dataset.
    global_batch_size
        Samples a step over all ranks.
    rank, world_size
        Which part is this rank's.
    shuffle_seed
        Seed of the order, together with the epoch; None keeps the dataset's order (validation).
    """

    def __init__(self, num_samples: int, *, global_batch_size: int, rank: int, world_size: int, shuffle_seed: int | None) -> None:
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.rank = rank
        self.world_size = world_size
        self.shuffle_seed = shuffle_seed
        self.epoch = 0

    @property
    def sampler(self) -> GlobalBatchSampler:
        """Where Lightning's trainer looks for the `set_epoch` of a DataLoader's batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_samples // self.global_batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.num_samples)
        if self.shuffle_seed is not None:
            np.random.default_rng([self.shuffle_seed, self.epoch]).shuffle(order)
        for start in range(0, self.num_samples, self.global_batch_size):
            global_batch = order[start : start + self.global_batch_size]
            yield global_batch[self.rank :: self.world_size].tolist()
