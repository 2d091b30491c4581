"""Where a step's time goes, in metrics.csv."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptycho_dist.distributed import StepSplit, rank
from ptycho_dist.model.lightning_module import PtychographyModule
from ptycho_dist.model.loss import ScaledPoissonLoss
from ptycho_dist.training import callbacks, step_clock
from ptycho_dist.training.run_directory import read_metrics
from ptycho_dist.training.step_clock import is_timed
from tests.training.runs import settings, stop_after_three_steps, train_one

SPLIT = ("load_ms", "compute_ms", "communicate_ms", "wait_ms")


def train_with_delays(
    concerns: dict[str, Any],
    before_loss_s: tuple[float, float],
    before_backward_s: tuple[float, float],
    loading_s: float,
) -> list[dict[str, str]]:
    """Every rank takes its time before the loss, before the gradients, and to load a batch; rows
    every four steps, three of them timed."""
    callbacks.STEPS_BETWEEN_ROWS = step_clock.STEPS_BETWEEN_ROWS = 4
    forward, batch_start = ScaledPoissonLoss.forward, step_clock.StepClock.on_train_batch_start

    def slow_forward(self: ScaledPoissonLoss, *arguments: Any) -> Any:
        time.sleep(before_loss_s[rank()])
        return forward(self, *arguments)

    def after_slow_loading(self: step_clock.StepClock, *arguments: Any) -> None:
        time.sleep(loading_s)
        batch_start(self, *arguments)

    PtychographyModule.on_before_backward = lambda self, loss: time.sleep(before_backward_s[rank()])  # type: ignore[method-assign]
    ScaledPoissonLoss.forward = slow_forward  # type: ignore[method-assign]
    step_clock.StepClock.on_train_batch_start = after_slow_loading  # type: ignore[method-assign]
    train_one(concerns)
    return [row for row in read_metrics(Path(concerns["train"]["run_dir"])) if row["load_ms"]]


@pytest.mark.parametrize(
    ("before_loss_s", "before_backward_s", "loading_s", "expected_ms"),
    [
        # rank 0 waits for rank 1: the mean of 400 and 0, both times
        ((0.0, 0.4), (0.0, 0.0), 0.0, {"wait_ms": 200, "compute_ms": 200}),
        ((0.0, 0.0), (0.4, 0.0), 0.0, {"wait_ms": 200, "compute_ms": 200}),
        ((0.0, 0.4), (0.4, 0.0), 0.0, {"wait_ms": 400, "compute_ms": 400}),
        ((0.4, 0.4), (0.0, 0.0), 0.0, {"compute_ms": 400}),
        ((0.0, 0.0), (0.0, 0.0), 0.4, {"load_ms": 400}),
    ],
    ids=["one to the loss", "one to the gradients", "each in its turn", "both", "loading"],
)
def test_split_finds_who_is_slow(
    before_loss_s: tuple[float, float],
    before_backward_s: tuple[float, float],
    loading_s: float,
    expected_ms: dict[str, float],
    on_ranks: Callable[..., list[Any]],
    write_scan: Callable[..., Path],
    tmp_path: Path,
) -> None:
    concerns = settings(write_scan(), tmp_path / "run", train__epochs=4)
    rows, _ = on_ranks(2, train_with_delays, concerns, before_loss_s, before_backward_s, loading_s)
    assert rows
    medians = {name: sorted(float(row[name]) for row in rows)[len(rows) // 2] for name in SPLIT}
    for name in SPLIT:
        # The rest of a step of this small network, and its jitter on a busy machine, take less than
        # what was added.
        assert expected_ms.get(name, 0) - 15 <= medians[name] <= expected_ms.get(name, 0) + 180, (
            medians
        )


def test_run_goes_on_with_a_step_that_is_timed(
    write_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, whose start the clock does not see."""
    for module in (callbacks, step_clock):
        monkeypatch.setattr(module, "STEPS_BETWEEN_ROWS", 4)
    concerns = settings(write_scan(), tmp_path / "run")
    stop_after_three_steps(concerns, monkeypatch)
    assert is_timed(3)
    concerns["train"]["resume"] = "auto"
    train_one(concerns)
    timed = [row for row in read_metrics(tmp_path / "run") if row["step"] == "3"]
    assert [float(row["compute_ms"]) > 0 for row in timed] == [True]


def test_nobody_waits_for_one_rank_alone(
    write_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (callbacks, step_clock):
        monkeypatch.setattr(module, "STEPS_BETWEEN_ROWS", 4)
    train_one(settings(write_scan(), tmp_path / "run", train__epochs=2))
    (row, *_) = [row for row in read_metrics(tmp_path / "run") if row["load_ms"]]
    assert (float(row["communicate_ms"]), float(row["wait_ms"])) == (0, 0)
    assert 0 < float(row["load_ms"]) < float(row["compute_ms"])


def _split_of(total_s: float, load_s: float, collectives_s: list[float]) -> StepSplit:
    return StepSplit.of_all_ranks(
        num_steps=2, total_s=total_s, load_s=load_s, collectives_s=collectives_s
    )


def split_of_rank() -> StepSplit:
    return _split_of(*[(1.0, 0.1, [0.3, 0.05]), (1.1, 0.2, [0.1, 0.25])][rank()])


def test_parts_are_those_of_the_definition(on_ranks: Callable[..., list[Any]]) -> None:
    """Two collectives; rank 1 comes last to the first, rank 0 to the second: 0.1 s and 0.05 s of
    communication."""
    for split in on_ranks(2, split_of_rank):
        assert (split.load_ms, split.communicate_ms) == pytest.approx((75, 75))
        assert split.wait_ms == pytest.approx(1e3 / 2 * ((0.35 + 0.35) / 2 - 0.15))
        assert (
            split.load_ms + split.compute_ms + split.communicate_ms + split.wait_ms
            == pytest.approx(1e3 / 2 * 1.05)
        )


def test_last_steps_before_a_row_are_timed() -> None:
    assert [step for step in range(100) if is_timed(step)] == [47, 48, 49, 97, 98, 99]
