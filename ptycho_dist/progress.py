"""A long pass says how far it is."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Log how much of a pass over patterns (or another unit) is done, at most every ten seconds; a
    short pass says nothing."""

    def __init__(self, what: str, unit: str = "patterns") -> None:
        self.what = what
        self.unit = unit
        self._last_line = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            logger.info("%s: %d of %d %s", self.what, done, total, self.unit)
