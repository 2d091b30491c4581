"""Long passes say how far they are; short ones nothing."""

from __future__ import annotations

import logging
import time

import pytest

from ptycho_dist.progress import Progress


def test_a_line_every_ten_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO, "ptycho_dist"):
        progress = Progress("reading")
        for done in range(1, 26):
            now += 1.0
            progress(done, 25)
    assert caplog.messages == ["reading: 10 of 25 patterns", "reading: 20 of 25 patterns"]
