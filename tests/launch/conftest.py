"""Scripts of launch/, run as a user would."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from tests.scripts import ROOT, run_script, torchrun


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`launch("train.py", *arguments, nproc=N)` runs a script of launch/; stdout holds stderr too.

    Without `nproc` it runs in a forked process, with it under torchrun.
    """

    def run(
        script: str, *arguments: object, nproc: int | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        words = [ROOT / "launch" / script, *arguments]
        if nproc is None:
            return run_script(words, timeout=timeout)
        return subprocess.run(
            [*torchrun(nproc), *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    return run
