"""What every command shares: the log on stderr, and errors that a person can act on."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Callable

from ptycho_dist.config import ConfigError

logger = logging.getLogger("ptycho_dist")

SECONDS_TO_HEAR_RANK_ZERO = 10.0


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Make `main` a command that ends as `run` does, also where a script made by pip calls it."""
    return functools.wraps(main)(functools.partial(run, main))


def run(main: Callable[[], None]) -> None:
    """Call `main`; turn an error into one message on stderr and exit status 1. With `--debug`, let
    the traceback through."""
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


# Below, `distributed` and with it PyTorch is imported where it is needed: --help, and commands that
# do without PyTorch, do not wait for it.


def leave() -> None:
    """End the process group, if anything was imported that could have made one."""
    if "ptycho_dist.distributed" in sys.modules:
        from ptycho_dist.distributed import leave_together

        leave_together()


def end_after(error: Exception, rank: int) -> None:
    """Report an error once for all ranks, and end this process.

    The launcher ends all ranks as soon as one is gone, so the rank that knows must speak before any
    leaves. Torchrun's own reports (`record`) are per rank and absent under srun, and two ranks can
    fail by themselves at once: `first_failure` decides whose cause is told.
    """
    from ptycho_dist.distributed import (
        FailedTogether,
        Interrupted,
        describe,
        first_failure,
        wait_for_all,
        world_size,
    )

    message = describe(error)
    if isinstance(error, FailedTogether | Interrupted):  # every rank has this error
        if rank == 0:
            report(error, message)
        wait_for_all()
    elif isinstance(error, ConfigError) and rank > 0:
        # Probably all ranks have it, and rank 0's exit ends this process; they have not met yet.
        time.sleep(SECONDS_TO_HEAR_RANK_ZERO)
        report(error, f"rank {rank} alone: {message}")
    elif isinstance(error, ConfigError) or world_size() == 1:
        report(error, message)
    else:
        own = f"rank {rank}: {message}"
        first = first_failure(own)
        if rank == 0 or first == own:
            report(error, first, in_log=first == own)
    sys.stdout.flush()
    sys.stderr.flush()
    status = error.exit_status if isinstance(error, Interrupted) else 1
    if world_size() > 1:
        os._exit(status)  # threads of the process group could keep the process alive
    sys.exit(status)


def report(error: Exception, message: str, *, in_log: bool = True) -> None:
    """Write an error's message to `train.log`, and to stderr for a person."""
    from ptycho_dist.distributed import Interrupted

    if in_log:
        with contextlib.suppress(OSError):  # a node that does not see the run directory
            logger.error("%s", message)
    print(f"error: {message}", file=sys.stderr)
    if not isinstance(error, ValueError | OSError | Interrupted):
        print("This was not foreseen; --debug shows where it happened.", file=sys.stderr)


def show_log_on_stderr(rank: int) -> None:
    """Log INFO lines of rank 0 and warnings of every rank to stderr."""
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
    handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    handler.addFilter(lambda record: record.levelno < logging.ERROR)  # `report` prints errors
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
