"""Global batches do not depend on the number of ranks."""

from __future__ import annotations

import itertools

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ptycho_dist.data.sampler import BlockSampler, GlobalBatchSampler

WORLD_SIZES = [1, 2, 3, 4, 7]
SIZES = [(37, 8), (37, 5), (8, 8), (5, 8), (16, 4), (10, 3), (1, 4), (12, 1)]
"""Samples, and samples a global batch: whole and uneven last batches, a single short one, fewer
samples a step than ranks."""


def parts_of_all_ranks(
    num_samples: int,
    global_batch_size: int,
    world_size: int,
    *,
    shuffle_seed: int = 3,
    epoch: int = 0,
) -> list[list[list[int]]]:
    """[rank][step] -> samples."""
    parts = []
    for rank in range(world_size):
        sampler = GlobalBatchSampler(
            num_samples,
            global_batch_size=global_batch_size,
            rank=rank,
            world_size=world_size,
            shuffle_seed=shuffle_seed,
        )
        sampler.set_epoch(epoch)
        parts.append(list(sampler))
    return parts


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}-by-{size[1]}")
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ranks_together_take_the_global_batches_of_one_rank(
    size: tuple[int, int], world_size: int, epoch: int
) -> None:
    (alone,) = parts_of_all_ranks(*size, 1, epoch=epoch)
    together = parts_of_all_ranks(*size, world_size, epoch=epoch)
    for step, global_batch in enumerate(alone):
        assert sorted(itertools.chain.from_iterable(part[step] for part in together)) == sorted(
            global_batch
        )


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_no_sample_comes_twice_and_none_is_left_out(size: tuple[int, int], world_size: int) -> None:
    parts = parts_of_all_ranks(*size, world_size)
    assert sorted(sample for rank in parts for step in rank for sample in step) == list(
        range(size[0])
    )


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ranks_take_the_same_number_of_steps(size: tuple[int, int], world_size: int) -> None:
    num_samples, global_batch_size = size
    expected = len(range(0, num_samples, global_batch_size))
    assert {len(rank) for rank in parts_of_all_ranks(*size, world_size)} == {expected}
    sampler = GlobalBatchSampler(
        num_samples,
        global_batch_size=global_batch_size,
        rank=0,
        world_size=world_size,
        shuffle_seed=0,
    )
    assert len(sampler) == expected


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_parts_of_a_step_differ_by_one_sample_at_most(
    size: tuple[int, int], world_size: int
) -> None:
    for step in zip(*parts_of_all_ranks(*size, world_size), strict=True):
        lengths = [len(part) for part in step]
        assert max(lengths) - min(lengths) <= 1


def test_only_the_last_global_batch_is_smaller(size: tuple[int, int]) -> None:
    num_samples, global_batch_size = size
    (steps,) = parts_of_all_ranks(*size, 1)
    assert all(len(step) == global_batch_size for step in steps[:-1])
    assert len(steps[-1]) == num_samples - global_batch_size * (len(steps) - 1)


def test_rank_without_samples_still_takes_the_step() -> None:
    parts = parts_of_all_ranks(10, 3, 7)
    assert parts[6] == [[], [], [], []]
    assert parts[0] != [[], [], [], []]


def test_epoch_changes_the_order_and_nothing_else_does() -> None:
    (first,) = parts_of_all_ranks(37, 8, 1, epoch=0)
    (again,) = parts_of_all_ranks(37, 8, 1, epoch=0)
    (second,) = parts_of_all_ranks(37, 8, 1, epoch=1)
    assert first == again
    assert first != second


def test_epochs_of_one_seed_are_not_those_of_the_next() -> None:
    """A seed of seed + epoch would repeat epoch 1 of seed 0 as epoch 0 of seed 1."""
    assert parts_of_all_ranks(37, 8, 1, shuffle_seed=0, epoch=1) != parts_of_all_ranks(
        37, 8, 1, shuffle_seed=1, epoch=0
    )


def test_seed_changes_the_order() -> None:
    assert parts_of_all_ranks(37, 8, 1, shuffle_seed=0) != parts_of_all_ranks(
        37, 8, 1, shuffle_seed=1
    )


def test_global_random_state_neither_decides_nor_is_touched() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = parts_of_all_ranks(37, 8, 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert parts_of_all_ranks(37, 8, 2) == first


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("num_samples", [0, 1, 8, 37, 64])
def test_validation_deals_whole_blocks_each_once(num_samples: int, world_size: int) -> None:
    parts = [
        list(BlockSampler(num_samples, block_size=8, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    in_turn = [block for turn in zip(*parts, strict=True) for block in turn]
    alone = list(BlockSampler(num_samples, block_size=8, rank=0, world_size=1))
    # the same samples together, at any number of ranks
    assert [block for block in in_turn if block] == alone
    assert [sample for block in alone for sample in block] == list(range(num_samples))
    assert {
        len(BlockSampler(num_samples, block_size=8, rank=rank, world_size=world_size))
        for rank in range(world_size)
    } == {len(parts[0])}


def test_samples_are_python_integers() -> None:
    assert {type(sample) for step in parts_of_all_ranks(37, 8, 1)[0] for sample in step} == {int}


class Recorder(L.LightningModule):
    """Writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: list[list[int]] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.epochs[-1].extend(batch.tolist())
        return self.weight * batch.float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_trainer_tells_the_sampler_its_epoch() -> None:
    sampler = GlobalBatchSampler(20, global_batch_size=8, rank=0, world_size=1, shuffle_seed=0)
    recorder = Recorder()
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recorder, DataLoader(range(20), batch_sampler=sampler))
    expected = [
        [
            sample
            for step in parts_of_all_ranks(20, 8, 1, shuffle_seed=0, epoch=epoch)[0]
            for sample in step
        ]
        for epoch in range(3)
    ]
    assert recorder.epochs == expected
    assert expected[0] != expected[1] != expected[2]
