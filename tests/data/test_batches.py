"""Batches that are streamed and batches that are gathered from held patterns: the same bits, in the
sampler's order."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from ptycho_dist.config import DataConfig, Hdf5Config, TrainConfig
from ptycho_dist.data import placement
from ptycho_dist.data.batches import (
    BATCHES_AHEAD,
    HeldBatches,
    HeldPatterns,
    Samples,
    StreamedBatches,
    make_batches,
)
from ptycho_dist.data.pattern_source import PatternSource
from ptycho_dist.data.prepare import PreparedData, prepare
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.scan import ScanError
from ptycho_dist.distributed import rank
from tests.scans import small_scan_arrays

WriteScan = Callable[..., Path]
FACTOR = 0.0123
N = 16


@pytest.fixture
def source(write_scan: WriteScan) -> PatternSource:
    second = small_scan_arrays(seed=1)
    second["ycoords"] = second["ycoords"] + 1000
    paths = [write_scan("one.npz"), write_scan("two.npz", arrays=second, compressed=True)]
    return PatternSource([read_scan(path, "amplitude") for path in paths])


GROUPS = np.array([[3, 70, 3], [0, 1, 2], [40, 41, 39], [73, 5, 60], [12, 11, 10]])
BATCHES = [[4, 0], [], [2, 1, 3], [1]]


def held(source: PatternSource) -> HeldBatches:
    patterns = HeldPatterns(source, np.unique(GROUPS), FACTOR, torch.device("cpu"))
    return HeldBatches(patterns, source, GROUPS, BATCHES)  # type: ignore[arg-type]


def streamed(source: PatternSource, sampler: Any = BATCHES) -> StreamedBatches:
    return StreamedBatches(source, GROUPS, FACTOR, sampler)


@pytest.mark.parametrize("make", [held, streamed])
def test_batches_are_the_samplers(
    source: PatternSource, make: Callable[[PatternSource], Any]
) -> None:
    amplitude = np.concatenate([small_scan_arrays(seed=seed)["diffraction"] for seed in (0, 1)])
    loader = make(source)
    assert len(loader) == 4
    for _ in range(2):  # every epoch anew
        for batch, samples in zip(loader, BATCHES, strict=True):
            groups = GROUPS[np.array(samples, dtype=int)]
            expected = (FACTOR * amplitude[groups].astype(np.float64)).astype(np.float32)
            assert batch.x_norm.numpy().tobytes() == expected.tobytes()
            assert torch.equal(batch.positions_px, torch.from_numpy(source.positions_px[groups]))
            assert batch.scan.tolist() == [int(group[0] >= 37) for group in groups]
            assert [field.dtype for field in batch] == [torch.float32, torch.float64, torch.int64]
            assert [tuple(field.shape) for field in batch] == [
                (len(samples), 3, N, N),
                (len(samples), 3, 2),
                (len(samples),),
            ]


def test_patterns_are_held_in_pieces(
    source: PatternSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = HeldPatterns(source, np.arange(74), FACTOR, torch.device("cpu")).x_norm
    monkeypatch.setattr("ptycho_dist.data.pattern_source.CHUNK_PIXELS", 5 * N**2)
    assert torch.equal(
        HeldPatterns(source, np.arange(74), FACTOR, torch.device("cpu")).x_norm, whole
    )


def test_reading_overlaps_with_the_step_and_is_never_far_ahead(
    source: PatternSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def sampler() -> Any:
        for number in range(20):
            asked.append(number)
            yield [number % 5]

    threads: list[str] = []
    read = StreamedBatches._read

    def watched(self: StreamedBatches, samples: list[int], pin: bool) -> Samples:
        threads.append(threading.current_thread().name)
        return read(self, samples, pin)

    monkeypatch.setattr(StreamedBatches, "_read", watched)
    for number, _ in enumerate(streamed(source, sampler())):
        deadline = time.monotonic() + 10
        while len(threads) < min(20, number + 1 + BATCHES_AHEAD):  # while this batch is in use
            assert time.monotonic() < deadline, "nothing is read ahead"
            time.sleep(0.001)
        assert len(asked) <= number + 1 + BATCHES_AHEAD
    assert not any(name == threading.main_thread().name for name in threads)


def test_iteration_that_is_given_up_reads_no_more_and_leaves_no_thread(
    source: PatternSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    given_up = threading.Event()
    reads: list[list[int]] = []
    read = StreamedBatches._read

    def held_up(self: StreamedBatches, samples: list[int], pin: bool) -> Samples:
        reads.append(samples)
        if len(reads) > 1:
            given_up.wait(10)
        return read(self, samples, pin)

    monkeypatch.setattr(StreamedBatches, "_read", held_up)
    iterator = iter(streamed(source))
    next(iterator)
    iterator.close()
    given_up.set()
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)
    assert len(reads) <= 2  # the one that was taken, and one that had begun


def test_error_of_the_thread_is_raised_where_the_batch_is_taken(source: PatternSource) -> None:
    path = source.scans[0].path
    iterator = iter(streamed(source, [[4]] * 20))  # more than are read ahead
    for _ in range(3):
        next(iterator)
    os.truncate(path, 5000)
    with pytest.raises(
        ScanError,
        match=rf"{path}: diffraction: found 5000 bytes, which end within patterns 10 to 12, expected 37 patterns",
    ):
        for _ in iterator:
            pass


# --- Which of the two


def ready(path: Path, **settings: Any) -> tuple[PreparedData, Any, Any]:
    """The data, and the batches of training and validation."""
    config = DataConfig(
        path=str(path), measurement="amplitude", nphotons=1e4, val_fraction=0.2, **settings
    )
    data = prepare(config)
    return data, *make_batches(data, TrainConfig(global_batch_size=8))


def _placements(path: Path, left_of_rank: dict[int, int]) -> tuple[str, str]:
    placement.host_bytes_left = lambda supplies: (left_of_rank[rank()], "the test")  # type: ignore[assignment]
    data, train, _ = ready(path)
    return str(data.placement), type(train).__name__


def test_what_fits_into_its_part_of_memory_is_held(
    write_scan: WriteScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scan()
    needed = 37 * 4 * N**2
    for left, kind in ((4 * needed, HeldBatches), (4 * needed - 1, StreamedBatches)):
        monkeypatch.setattr(
            placement, "host_bytes_left", lambda supplies, left=left: (left, "the test")
        )
        data, train, validation = ready(path)
        assert data.placement.num_bytes == needed
        assert type(train) is type(validation) is kind
    # nobody knows: nothing is taken
    monkeypatch.setattr(placement, "host_bytes_left", lambda supplies: None)
    assert type(ready(path)[1]) is StreamedBatches


def test_ranks_of_a_node_share_its_memory_and_choose_the_same(
    on_ranks: Callable[..., list[Any]], write_scan: WriteScan
) -> None:
    path = write_scan()
    needed = 37 * 4 * N**2
    assert {
        kind for _, kind in on_ranks(2, _placements, path, dict.fromkeys(range(2), 8 * needed))
    } == {"HeldBatches"}
    streamed_on_both = on_ranks(2, _placements, path, dict.fromkeys(range(2), 8 * needed - 1))
    assert {kind for _, kind in streamed_on_both} == {"StreamedBatches"}
    first, second = on_ranks(2, _placements, path, {0: 8 * needed, 1: 1})
    assert (first[1], second[1]) == ("StreamedBatches", "StreamedBatches")
    assert first[0] == (
        "streamed from disk: 37.9 kB of normalised patterns a rank, 2 rank(s) on the node, at "
        "most 0.25 of the 303 kB that the test has "
        "left, but not on every rank"
    )


# --- Patterns that are packed together


@pytest.mark.parametrize("together", [1, 5])
def test_hdf5_gives_the_same_bits_held_and_streamed_and_says_what_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, together: int
) -> None:
    arrays = small_scan_arrays()
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset(
            "patterns", data=arrays["diffraction"], chunks=(together, N, N), compression="gzip"
        )
        file["positions"] = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
        file["probe"] = arrays["probeGuess"]
    names = Hdf5Config(
        diffraction="patterns", positions="positions", positions_unit="px", probe="probe"
    )
    found = {}
    for part in (0.0, 0.25):
        monkeypatch.setattr(placement, "LARGEST_PART", part)
        caplog.clear()
        with caplog.at_level("INFO"):
            _, train, _ = ready(tmp_path / "scan.h5", hdf5=names)
        found[part] = [[batch.x_norm.numpy().tobytes() for batch in train] for _ in range(2)]
        advice = (
            f"scan.h5: {together} patterns are packed together, and reading one means "
            "reading all of them; ptycho-stage --repack"
        )
        assert (advice in caplog.text) == (together > 1 and part == 0)
    assert found[0.0] == found[0.25]
