"""What every command shares: the log, and an error that a person can act on."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import time
from argparse import ArgumentError
from collections.abc import Callable

from ptycho_dist.config import ConfigError

logger = logging.getLogger("ptycho_dist")

SECONDS_TO_HEAR_RANK_ZERO = 10.0


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Let `run` call a `main` that is called as it is: by a script that pip makes, say."""
    return functools.wraps(main)(functools.partial(run, main))


def run(main: Callable[[], None]) -> None:
    """Call `main`; turn an error into one message on stderr and exit status 1. With `--debug`, let
    the traceback through.

    Where several ranks stop, all of them name the one that was stopped first and its cause; rank 0
    says it, and the rank that met it, which alone writes it to the log: the launcher ends the other
    ranks once one is gone, so no other is sure to come to it.
    """
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    show_log_on_stderr(rank)
    if "--debug" in sys.argv:
        from torch.distributed.elastic.multiprocessing.errors import record

        record(main)()  # torchrun's closing report then shows the traceback too
        leave()
        return
    try:
        main()
        leave()
    except Exception as error:
        end_after(error, rank)


# What follows imports `distributed`, and so PyTorch, where it is needed: --help, and commands that
# do without, don't wait for it.


def leave() -> None:
    """End the process group, if there is one: none is where nobody has loaded what could make
    it."""
    if "ptycho_dist.distributed" in sys.modules:
        from ptycho_dist.distributed import leave_together

        leave_together()


def end_after(error: Exception, rank: int) -> None:
    """Say what went wrong, or let another rank say it, and end this process."""
    from ptycho_dist.distributed import (
        FailedTogether,
        Interrupted,
        describe,
        first_failure,
        wait_for_all,
        world_size,
    )

    if isinstance(error, FailedTogether | Interrupted):  # every rank has the same one
        if rank == 0:
            say(error, describe(error))
        wait_for_all()  # the launcher ends all ranks once one is gone, so rank 0 speaks first
    elif isinstance(
        error, ArgumentError | ConfigError
    ):  # every rank should have the same one, but none has met the others yet
        if rank > 0:
            # in which the launcher ends this process, if rank 0 has it too
            time.sleep(SECONDS_TO_HEAR_RANK_ZERO)
        say(error, describe(error) if rank == 0 else f"rank {rank} alone: {describe(error)}")
    elif world_size() == 1:
        say(error, describe(error))  # alone, or not yet met the others: nobody else may know
    else:
        own = f"rank {rank}: {describe(error)}"
        message = first_failure(own)
        if message == own:
            say(error, message)
        elif rank == 0:
            show(error, message)
    exit_now(error.exit_status if isinstance(error, Interrupted) else 1)


def say(error: Exception, message: str) -> None:
    """The message, for `train.log` and for a person on stderr."""
    with contextlib.suppress(OSError):  # a node that does not see the run directory
        logger.error("%s", message)
    show(error, message)


def show(error: Exception, message: str) -> None:
    """The message, for a person on stderr."""
    from ptycho_dist.distributed import Interrupted

    print(f"error: {message}", file=sys.stderr)
    if not isinstance(error, ValueError | OSError | ArgumentError | Interrupted):
        print("This was not foreseen; --debug shows where it happened.", file=sys.stderr)


def exit_now(status: int) -> None:
    """End this process. Where a process group is up not by unwinding: its threads could keep the
    process, and so the others, waiting."""
    from ptycho_dist.distributed import world_size

    sys.stdout.flush()
    sys.stderr.flush()
    if world_size() > 1:
        os._exit(status)
    sys.exit(status)


def show_log_on_stderr(rank: int) -> None:
    """Log INFO lines of rank 0 and warnings of every rank to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter(
            "%(asctime)s %(message)s" if rank == 0 else f"%(asctime)s [rank {rank}] %(message)s",
            "%H:%M:%S",
        )
    )
    handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    handler.addFilter(lambda record: record.levelno < logging.ERROR)  # `run` says errors
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
