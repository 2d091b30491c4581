"""A reader who follows a page in a directory like the project's: runs its commands, saves its
files, and compares what was printed.

Commands run as printed, except for `SMALLER` and `SHORTER`, which make them fast: the pages are
written for a beamline's scans, the ones here have a few patterns. Scripts of launch/ run in a
process that has PyTorch loaded already, which saves most of their time.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.docs.blocks import ROOT, Code, Command
from tests.scripts import run_script

SMALLER = {
    r"--nproc_per_node=\d+": "--nproc_per_node=2",
    r"--nnodes=\d+": "--nnodes=1",
    r"--rdzv_endpoint=HOST:\d+": "--rdzv_endpoint=localhost:0",  # any port that is free
    r"--data\.crop \d+": "--data.crop 16",
    r"/scratch/me": "scratch",
}
"""Parts of a command that are changed: fewer processes, a detector of 16 pixels, this machine."""

SHORTER = {
    "launch/simulate.py": "--simulation.scan_shape '[8, 8]'",
    "launch/train.py": "--train.epochs 1 --model.base_width 4 --train.precision 32",
    "ptycho-train": "--train.epochs 1 --model.base_width 4 --train.precision 32",
    "benchmarks/loading.py": "--patterns 128 --size 16 --ranks 1 --steps 1 --batches 2 --turns 1",
    "benchmarks/layouts.py": "--patterns 64 --size 16 --together 8 --batches 2 --turns 1",
    "benchmarks/scale.py": "--patterns 128 --size 16 --ranks 1 --reduction_ranks 2 --turns 1",
    "benchmarks/training_step.py": "--threads 1 --batches 1 --turns 1",
    "benchmarks/ddp.py": "--samples 1 --turns 1",
}
"""Options that are appended to a command, and so override the printed ones."""

PARSED_ONLY = (
    "benchmarks/approximate_probe.py",
    "benchmarks/dose.py",
    "benchmarks/generalisation.py",
    "benchmarks/inference.py",
    "benchmarks/paper_table.py",
    "benchmarks/refinement.py",
    "benchmarks/start_up.py",
)
"""They train for minutes to hours. Only their options are parsed; tests/benchmarks/ tests the
rest."""

SECONDS = 1200
"""How long a command may take, on a machine that others keep busy."""


class Reader:
    """One page's reader.

    Attributes
    ----------
    folder
        Where the commands run.
    printed
        Output of all commands so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed = ""
        self._runs = 0

    def run(self, command: Command) -> None:
        """Run one command; its exit status must be the promised one."""
        words = self._affordable(list(command.words))
        if words[0] == "torchrun":
            # Without a rendezvous of its own torchrun takes a fixed port, which another test may
            # have.
            own = [] if any(word.startswith("--rdzv") for word in words) else ["--standalone"]
            launcher = [sys.executable, "-m", "torch.distributed.run", *own]
            status, printed = self._start([*launcher, *words[1:]], command.variables)
        elif words[0] == "python" and words[1].startswith("launch/") and not command.variables:
            status, printed = self._script(words[1:])
        elif words[0] == "python" and words[1] in PARSED_ONLY:
            status, printed = self._script(words[1:], parse_only=True)
        elif words[0] == "python":
            assert words[1] in SHORTER or not words[1].startswith("benchmarks/"), (
                f"{command}: name it in SHORTER or PARSED_ONLY"
            )
            status, printed = self._start([sys.executable, *words[1:]], command.variables)
        else:
            status, printed = self._start(words, command.variables)
        self.printed += printed
        assert status == command.exit_status, (
            f"{command}\nexit status {status}, expected {command.exit_status}\n{printed}"
        )

    def parse(self, command: Command) -> None:
        """Let a script of the project parse a command's options, and do nothing else."""
        assert command.words[0] == "python", command
        status, printed = self._script(list(command.words[1:]), parse_only=True)
        assert status == 0, f"{command}\n{printed}"

    def save(self, block: Code) -> None:
        """Save a block whose first line is a comment with a file's name."""
        name = named_file(block)
        assert name, block
        (self.folder / name).write_text(block.text)

    def require_printed(self, block: Code) -> None:
        """Require that each line of the block was printed, with any numbers and spacing; `...`
        stands for anything."""
        printed = " ".join(self.printed.split())
        for line in block.text.splitlines():
            assert re.search(as_pattern(line), printed), (
                f"{block}: nothing printed is like\n{line}\nin\n{self.printed}"
            )

    def _affordable(self, words: list[str]) -> list[str]:
        """Return a command as it is run here. One without a run directory gets its own, because the
        commands of a page would share the default one."""
        text = shlex.join(words)
        for pattern, replacement in SMALLER.items():
            text = re.sub(pattern, replacement, text)
        words = shlex.split(text)
        for script, options in SHORTER.items():
            words += shlex.split(options) if script in words else []
        if "launch/train.py" in words and "--train.run_dir" not in words:
            self._runs += 1
            words += ["--train.run_dir", f"run{self._runs}"]
        return words

    def _script(self, words: list[str], *, parse_only: bool = False) -> tuple[int, str]:
        done = run_script(words, self.folder, parse_only=parse_only, timeout=SECONDS)
        return done.returncode, done.stdout

    def _start(self, words: list[str], variables: dict[str, str]) -> tuple[int, str]:
        # as in an active environment
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        ended = subprocess.run(
            words,
            cwd=self.folder,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return ended.returncode, ended.stdout


def named_file(block: Code) -> str | None:
    """Return the file to save a block as, if its first line is a comment with just that name."""
    found = re.match(r"# ([\w.-]+\.\w+)\n", block.text)
    return found[1] if found else None


def as_pattern(line: str) -> str:
    """Return a regular expression for a line of output, with any numbers."""
    words = []
    for word in line.split():
        if word == "...":
            words.append(".*")
        elif re.search(r"\d", word):
            words.append(r"\S+")
        elif re.fullmatch(r"[kMG]?B(\W*)", word):
            words.append("[kMG]?" + re.escape(word.lstrip("kMG")))
        else:
            words.append(re.escape(word))
    return " ".join(words)


def make_project(folder: Path) -> None:
    """Make a directory like the project's, with its programs, an environment, and the recipes,
    with a short one for the quickstart."""
    for name in ("launch", "ptycho_dist", "tests", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    # copies: they are written to, or what they include is looked for beside them
    for name in ("benchmarks", "configs", "docs", "slurm"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("_build", "__pycache__")
        )
    for page in ROOT.glob("*.md"):
        shutil.copy(page, folder)
    quickstart = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    quickstart["simulation"]["scan_shape"] = [8, 8]
    quickstart["train"] |= {"epochs": 1, "precision": 32}
    quickstart["model"] = {"base_width": 4}
    (folder / "configs/quickstart.yaml").write_text(yaml.safe_dump(quickstart))
    # What launch/make_venv.sh makes, and by which it knows that there is nothing to do.
    (folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if not part.name.startswith("installed"):
            (folder / ".venv" / part.name).symlink_to(part)
    wanted = (
        (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    ).rstrip("\n")
    for extra in ("", "-docs", "-dev"):
        (folder / f".venv/installed{extra}").write_text(wanted)
