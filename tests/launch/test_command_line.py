"""How a script ends: who says what went wrong, also where the ranks don't get there at the same
time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import os, time
from ptycho_dist import command_line
from ptycho_dist.config import ConfigError
from ptycho_dist.distributed import run_together
from ptycho_dist.training.processes import Processes

rank = int(os.environ["RANK"])
"""

SLOW_RANK_ZERO_AFTER_MEETING = """
report = command_line.report

def slowly(*arguments, **options):
    time.sleep(2)  # torchrun looks every 0.1 s whether a rank has gone
    report(*arguments, **options)

command_line.report = slowly

def main():
    Processes.of_launcher().join()
    raise_for_all()

def raise_for_all():
    def fail():
        raise ValueError("no light")
    run_together(fail)
"""

SLOW_RANK_ZERO_BEFORE_MEETING = """
def main():
    time.sleep(2 if rank == 0 else 0)
    raise ConfigError("no light")
"""

ONE_RANK_BEFORE_MEETING = """
command_line.SECONDS_TO_HEAR_RANK_ZERO = 1

def main():
    if rank == 1:
        raise ConfigError("no light")
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (SLOW_RANK_ZERO_AFTER_MEETING, "error: rank 0 (and 1 other ranks): no light"),
        (SLOW_RANK_ZERO_BEFORE_MEETING, "error: no light"),
        (ONE_RANK_BEFORE_MEETING, "error: rank 1 alone: no light"),
    ],
    ids=["after meeting", "before meeting", "one rank before meeting"],
)
def test_what_went_wrong_is_said_once_however_slow_a_rank_is(
    program: str, message: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(HEAD + program + "\ncommand_line.run(main)\n")
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(script),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert [line for line in ended.stderr.splitlines() if line.startswith("error:")] == [message]
