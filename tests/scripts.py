"""Scripts run as `python SCRIPT` would run them, in forked processes that have PyTorch loaded already:
that saves most of a short command's time."""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ptycho_dist.config import Parser
from tests import figures
from tests.ranks import forkserver

ROOT = Path(__file__).parents[1]


def run_script(
    words: Sequence[object],
    folder: Path | None = None,
    *,
    parse_only: bool = False,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a script with its arguments in `folder`; stdout of the result holds stderr too. With
    `parse_only` the script ends once it has read its options."""
    command = [str(word) for word in words]
    with tempfile.NamedTemporaryFile("r") as output:
        process = forkserver.Process(
            target=_run,
            args=(command, folder or Path.cwd(), dict(os.environ), output.name, parse_only),
        )
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout, output.read())
        return subprocess.CompletedProcess(command, process.exitcode or 0, output.read())


def torchrun(nproc: int) -> list[str]:
    """Return the command that starts a script on `nproc` ranks, on a port of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc_per_node={nproc}"]


def _run(
    words: list[str], folder: Path, environment: dict[str, str], output: str, parse_only: bool
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    figures.skip_drawing()
    if parse_only:
        for parser in (argparse.ArgumentParser, Parser):
            _end_after_parsing(parser)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent.resolve()))
    runpy.run_path(words[0], run_name="__main__")


def _end_after_parsing(parser: Any) -> None:
    parse = parser.parse_args

    def parse_and_leave(*arguments: Any, **options: Any) -> None:
        parse(*arguments, **options)
        sys.exit(0)

    parser.parse_args = parse_and_leave
