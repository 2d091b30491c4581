"""What every script in `launch/` shares: the log, and an error that a person can act on."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable

from torch.distributed.elastic.multiprocessing.errors import record

from ptycho_dist.config import ConfigError
from ptycho_dist.distributed import FailedTogether, Interrupted, describe, first_failure, leave_together, world_size

logger = logging.getLogger("ptycho_dist")


def run(main: Callable[[], None]) -> None:
    """Call `main`; turn an error into one message on stderr and exit status 1. With `--debug`, let the traceback through.

    Where several ranks stop, all of them name the one that was stopped first and its cause; rank 0 says it, and the rank that met it.
    """
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    show_log_on_stderr(rank)
    if "--debug" in sys.argv:
        record(main)()  # torchrun's closing report then shows the traceback too
        leave_together()
        return
    try:
        main()
        leave_together()
    except Exception as error:
        if isinstance(error, ArgumentError | ConfigError | FailedTogether | Interrupted):
            message, is_mine = describe(error), rank == 0  # every rank has the same one
        elif world_size() == 1:
            message, is_mine = describe(error), True  # alone, or not yet met the others: nobody else may know
        else:
            own = f"rank {rank}: {describe(error)}"
            message = first_failure(own)
            is_mine = rank == 0 or message == own
        if is_mine:
            print(f"error: {message}", file=sys.stderr)
            logger.error("%s", message)  # for train.log
            if not isinstance(error, ValueError | OSError | ArgumentError | Interrupted):
                print("This was not foreseen; --debug shows where it happened.", file=sys.stderr)
        exit_now(error.exit_status if isinstance(error, Interrupted) else 1)


def exit_now(status: int) -> None:
    """End this process. Where a process group is up not by unwinding: its threads could keep the process, and so the others, waiting."""
    sys.stdout.flush()
    sys.stderr.flush()
    if world_size() > 1:
        os._exit(status)
    sys.exit(status)


def show_log_on_stderr(rank: int) -> None:
    """Log INFO lines of rank 0 and warnings of every rank to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(message)s" if rank == 0 else f"%(asctime)s [rank {rank}] %(message)s", "%H:%M:%S")
    )
    handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    handler.addFilter(lambda record: record.levelno < logging.ERROR)  # `run` says errors
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
