"""Figures that are composed but not drawn: drawing takes nine tenths of a small run's time."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)

_draw = Figure.savefig


def _write_one_pixel(figure: Figure, target: Any, **options: Any) -> None:
    if hasattr(target, "write"):
        target.write(ONE_PIXEL)
    else:
        Path(target).write_bytes(ONE_PIXEL)


def skip_drawing() -> None:
    """Let this process write a picture of one pixel in place of every figure."""
    Figure.savefig = _write_one_pixel


@contextmanager
def drawing() -> Iterator[None]:
    """Draw figures as usual."""
    Figure.savefig = _draw
    try:
        yield
    finally:
        skip_drawing()
