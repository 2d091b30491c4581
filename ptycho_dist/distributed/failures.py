"""Failures that every rank raises together."""

from __future__ import annotations

from argparse import ArgumentError

from torch.distributed import ProcessGroup

from ptycho_dist.distributed.process_group import gather


class FailedTogether(ValueError):
    """At least one rank failed. Every rank raises this with the same message, which names the
    first rank that failed and its cause."""


class Interrupted(Exception):
    """All ranks stopped on request after the same step; the run can be resumed from there.

    Attributes
    ----------
    exit_status
        Exit status for the process: 128 + the signal's number.
    """

    def __init__(self, message: str, *, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def describe(error: BaseException) -> str:
    """Return a message for a person: without the type, where the text was written for one."""
    if "Connection closed by peer" in str(error):
        return "lost the connection to another rank: its process was killed, or its node failed"
    if isinstance(error, ValueError | OSError | Interrupted | ArgumentError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def raise_on_every_rank(
    local_error: Exception | None, process_group: ProcessGroup | None = None
) -> None:
    """Raise `FailedTogether` on every rank; a collective, for when some rank has an error."""
    messages = gather(None if local_error is None else describe(local_error), process_group)
    failed = [number for number, message in enumerate(messages) if message is not None]
    others = f" (and {len(failed) - 1} other ranks)" if len(failed) > 1 else ""
    raise FailedTogether(f"rank {failed[0]}{others}: {messages[failed[0]]}") from local_error
