"""Faults that strike a rank of a torchrun job before one of its optimiser steps.

`sitecustomize.py` calls `arm` when a rank's Python starts, so the job strikes itself: nobody has to
wait for a step, and the runs can be short.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable

from torch.optim.optimizer import register_optimizer_step_pre_hook

STEP = 25
"""In the second of three epochs of 17 steps."""

SITECUSTOMIZE = """
import os
if "RANK" in os.environ and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    from tests.launch import faults
    faults.arm(os.environ["FAULT"])
"""


def before_step(step: int, action: Callable[[], None]) -> None:
    """Call `action` before this process's optimiser step of this number, counted from one."""
    steps = itertools.count(1)
    register_optimizer_step_pre_hook(
        lambda *_: action() if next(steps) == step else None  # type: ignore[arg-type]
    )


def kill_one_rank() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_agent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def terminate_agent() -> None:
    os.kill(os.getppid(), signal.SIGTERM)  # torchrun passes it on to its ranks


def ctrl_c() -> None:
    os.killpg(os.getppid(), signal.SIGINT)  # as a terminal does


def raise_error() -> None:
    raise RuntimeError("the detector is on fire")


def truncate_scan() -> None:
    os.truncate(os.environ["SCAN"], 5000)


def arm(fault: str) -> None:
    """Let rank 1 meet the fault. Rank 0 can not say anything before the launcher ends it."""
    if os.environ["RANK"] == "1":
        before_step(STEP, globals()[fault])
    elif fault == raise_error.__name__ and os.environ["RANK"] == "0":
        from ptycho_dist import distributed

        distributed.first_failure = lambda own: time.sleep(60)  # type: ignore[assignment]
