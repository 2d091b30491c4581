"""What every script in `launch/` shares: the log, and an error that a person can act on."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable

from torch.distributed.elastic.multiprocessing.errors import record

from ptycho_dist.config import ConfigError
from ptycho_dist.distributed import FailedTogether, leave_together

logger = logging.getLogger("ptycho_dist")


def run(main: Callable[[], None]) -> None:
    """Call `main`; turn an error into one message on stderr and exit status 1. With `--debug`, let the traceback through.

    An error that all ranks raise together is said once, by rank 0; one that a single rank met is said by that rank, with its number.
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
        said_by_all = isinstance(error, ArgumentError | ConfigError | FailedTogether)
        if rank == 0 or not said_by_all:
            where = "" if rank == 0 or said_by_all else f" on rank {rank}"
            kind = "" if isinstance(error, ValueError | OSError | ArgumentError) else f"{type(error).__name__}: "
            print(f"error{where}: {kind}{error}", file=sys.stderr, flush=True)
            if kind:
                print("This was not foreseen; --debug shows where it happened.", file=sys.stderr, flush=True)
        # Not sys.exit: a rank that still waits in a collective must not keep this one from ending.
        sys.stdout.flush()
        os._exit(1)


def show_log_on_stderr(rank: int) -> None:
    """Log INFO lines of rank 0 and warnings of every rank to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(message)s" if rank == 0 else f"%(asctime)s [rank {rank}] %(message)s", "%H:%M:%S")
    )
    handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
