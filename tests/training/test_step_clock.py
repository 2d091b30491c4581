"""Where a step's time goes, in metrics.csv."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptycho_dist.distributed import largest, rank, timing
from ptycho_dist.model.lightning_module import PtychographyModule
from ptycho_dist.model.loss import ScaledPoissonLoss
from ptycho_dist.training import callbacks, step_clock
from ptycho_dist.training.metrics import STEP_SPLIT
from ptycho_dist.training.run_directory import read_metrics
from ptycho_dist.training.step_clock import is_timed, step_split
from tests.training.runs import settings, stop_after_three_steps, train_one


def train_with_delays(
    concerns: dict[str, Any],
    before_loss_s: tuple[float, float],
    before_backward_s: tuple[float, float],
    loading_s: float,
) -> list[dict[str, str]]:
    """Train by a clock that stands still but for each rank's delays, and that waits for the latest
    rank at each collective. Rows every four steps, three of them timed."""
    callbacks.STEPS_BETWEEN_ROWS = step_clock.STEPS_BETWEEN_ROWS = 4
    now = [0.0]
    timing.time_when_done = step_clock.time_when_done = lambda: now[0]

    def delayed(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            now[0] += seconds
            return function(*arguments)

        return call

    def end_together(self: timing.CollectiveTimer) -> None:
        now[:] = largest(now)
        end(self)

    end, timing.CollectiveTimer.end = timing.CollectiveTimer.end, end_together  # type: ignore[method-assign]
    for owner, name, seconds in (
        (ScaledPoissonLoss, "forward", before_loss_s[rank()]),
        (PtychographyModule, "on_before_backward", before_backward_s[rank()]),
        (step_clock.StepClock, "on_train_batch_start", loading_s),
    ):
        setattr(owner, name, delayed(getattr(owner, name), seconds))
    train_one(concerns)
    return [row for row in read_metrics(Path(concerns["train"]["run_dir"])) if row["load_ms"]]


@pytest.mark.parametrize(
    ("before_loss_s", "before_backward_s", "loading_s", "expected_ms"),
    [
        # rank 0 waits for rank 1: the mean of 400 and 0, both times
        ((0.0, 0.4), (0.0, 0.0), 0.0, {"wait_ms": 200, "compute_ms": 200}),
        ((0.0, 0.4), (0.4, 0.0), 0.0, {"wait_ms": 400, "compute_ms": 400}),
        ((0.4, 0.4), (0.0, 0.0), 0.1, {"compute_ms": 400, "load_ms": 100}),
    ],
    ids=["one to the loss", "each in its turn", "both, and loading"],
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
    concerns = settings(write_scan(), tmp_path / "run", train__epochs=2)
    rows, _ = on_ranks(2, train_with_delays, concerns, before_loss_s, before_backward_s, loading_s)
    assert len(rows) == 2
    expected = dict.fromkeys(STEP_SPLIT, 0.0) | expected_ms
    for row in rows:
        assert {name: float(row[name]) for name in STEP_SPLIT} == pytest.approx(
            expected, rel=1e-6, abs=1e-6
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
    assert float(row["load_ms"]) > 0
    assert float(row["compute_ms"]) > 0


def split_of_rank() -> dict[str, float]:
    return step_split(2, *[(1.0, 0.1, [0.3, 0.05]), (1.1, 0.2, [0.1, 0.25])][rank()])


def test_parts_are_those_of_the_definition(on_ranks: Callable[..., list[Any]]) -> None:
    """Two collectives; rank 1 comes last to the first, rank 0 to the second: 0.1 s and 0.05 s of
    communication."""
    for split in on_ranks(2, split_of_rank):
        assert split == pytest.approx(
            {
                "load_ms": 75,
                "compute_ms": 500 * (1.05 - 0.15 - 0.35),
                "communicate_ms": 75,
                "wait_ms": 500 * (0.35 - 0.15),
            }
        )


def test_last_steps_before_a_row_are_timed() -> None:
    assert [step for step in range(100) if is_timed(step)] == [47, 48, 49, 97, 98, 99]
