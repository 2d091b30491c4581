"""Rows of the table that `--check` prints, and how ranks fill them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from ptycho_dist.distributed import Outcome, describe, on_every_rank, world_size

WIDTH_OF_A_LOG = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    what
        What was looked at.
    found
        What there is.
    verdict
        `-` where an earlier row's failure leaves nothing to look at.
    fix
        What to do about a failure, in a sentence.
    """

    what: str
    found: str
    verdict: Literal["ok", "FAIL", "-"] = "ok"
    fix: str = ""


def not_looked_at(what: str) -> Row:
    return Row(what=what, found="needs what failed above", verdict="-")


def row_of_outcomes(what: str, outcomes: Sequence[Outcome[str]], *, fix: str) -> Row:
    """Return the row of what each rank found for itself."""
    failures = {
        rank: outcome.failure
        for rank, outcome in enumerate(outcomes)
        if outcome.failure is not None
    }
    if not failures:
        return Row(what=what, found=str(outcomes[0].value))
    first, message = next(iter(failures.items()))
    others = f" (and {len(failures) - 1} other ranks)" if len(failures) > 1 else ""
    found = f"rank {first}{others}: {message}" if len(outcomes) > 1 else str(message)
    return Row(what=what, found=found, verdict="FAIL", fix=fix)


def row_of_every_rank(what: str, look: Callable[[], str], *, fix: str) -> Row:
    """Look on every rank, and return the row of all outcomes. A collective."""
    return row_of_outcomes(what, on_every_rank(look), fix=fix)


def row_found_together(what: str, look: Callable[[], str], *, fix: str) -> Row:
    """Return the row of a collective that raises the same error on all ranks."""
    try:
        return Row(what=what, found=look())
    except Exception as error:
        return Row(what=what, found=failure_of_all(error), verdict="FAIL", fix=fix)


def failure_of_all(error: Exception) -> str:
    """Return the message of an error that every rank has; raise any other error."""
    if world_size() > 1 and not isinstance(error, ValueError):
        raise error
    return describe(error)


def show(rows: Sequence[Row]) -> None:
    """Print the table: in colour on a terminal, plain text of a fixed width in a file."""
    console = Console(
        width=None if sys.stdout.isatty() else WIDTH_OF_A_LOG,
        markup=False,
        highlight=False,
        emoji=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("found", overflow="fold")
    styles = {"FAIL": "red", "-": "dim"}
    for row in rows:
        table.add_row(row.what, row.verdict, row.found, style=styles.get(row.verdict))
        if row.fix and row.verdict == "FAIL":
            table.add_row("", "", Padding(f"fix: {row.fix}", (0, 0, 0, 2)))
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)
