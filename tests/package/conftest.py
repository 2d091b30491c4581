"""The package as it is published: built from a copy of the versioned files, and installed into a
new environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / ".wheels"


@dataclass(frozen=True)
class Distributions:
    """`files` that git versions; the sdist of them, the wheel of the sdist, and the wheel that the
    files give without an sdist."""

    files: frozenset[str]
    sdist: Path
    wheel: Path
    wheel_of_files: Path


def built(source: Path, out: Path, *kinds: str) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(out),
        *kinds,
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: no list of the files that belong to the package's sources")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = frozenset(
        name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()
    )
    folder = tmp_path_factory.mktemp("distributions")
    for name in files:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    built(folder / "source", folder)
    built(folder / "source", folder / "of_files", "--wheel")
    (sdist,), (wheel,), (wheel_of_files,) = (
        folder.glob("*.tar.gz"),
        folder.glob("*.whl"),
        (folder / "of_files").glob("*.whl"),
    )
    return Distributions(files, sdist, wheel, wheel_of_files)


@pytest.fixture(scope="session")
def new_environment(
    distributions: Distributions, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The folder of a virtual environment that holds the wheel and what it depends on, and nothing
    else."""
    if not (WHEELS / "complete").exists():
        pytest.skip("no wheels to install from: bash tests/package/download_wheels.sh")
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)
    install = [
        environment / "bin" / "python",
        "-m",
        "pip",
        "--isolated",
        "install",
        "--no-index",
        "--find-links",
        WHEELS,
        "--no-compile",
    ]
    done = subprocess.run(
        [*install, distributions.wheel], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    yield environment
    shutil.rmtree(environment)  # a gigabyte
