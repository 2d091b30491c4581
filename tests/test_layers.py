"""Each room of the package imports only the rooms it may know. The contracts stand in
pyproject.toml, for `lint-imports`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.api import read_configuration

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "ptycho_dist"

MAY_IMPORT = {
    "config": set(),
    "distributed": set(),
    "atomic_file": set(),
    "progress": set(),
    "memory_supply": set(),
    "physics": set(),
    "scale": {"distributed"},
    "data": {"physics", "scale", "config", "distributed", "progress", "memory_supply"},
    "model": {"physics", "scale", "config", "distributed"},
    "bundle": {"model", "scale", "config", "atomic_file"},
    "training": {
        "physics",
        "data",
        "model",
        "bundle",
        "config",
        "distributed",
        "report",
        "atomic_file",
        "memory_supply",
    },
    "inference": {
        "bundle",
        "data",
        "model",
        "physics",
        "scale",
        "report",
        "atomic_file",
        "progress",
    },
    "inspection": {
        "data",
        "physics",
        "config",
        "training",
        "report",
        "atomic_file",
        "progress",
        "memory_supply",
    },
    "report": {"atomic_file"},
    "command_line": {"config", "distributed"},
    "commands": {
        "config",
        "progress",
        "physics",
        "data",
        "training",
        "inference",
        "inspection",
        "command_line",
    },
}
"""The table as the design gives it, written apart from the contracts.

`data.npz_writer` alone of `data` may import `atomic_file`, and `training.report` alone of
`training` may import `inference`.
"""

ROOMS = sorted(MAY_IMPORT)


def lint(repository: Path) -> tuple[int, str]:
    """Exit status and output of `lint-imports` in a directory that holds pyproject.toml and the
    package."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as lint; lint()",
        "--no-cache",
        "--no-logo",
    ]
    done = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy_of_package(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "ptycho_dist", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def file_in(repository: Path, room: str) -> Path:
    """A file that belongs to the room: the module itself, or a new one in its folder."""
    folder = repository / "ptycho_dist" / room
    return folder / "newcomer.py" if folder.is_dir() else folder.with_suffix(".py")


def add_import(file: Path, imported: str) -> None:
    with file.open("a") as stream:
        stream.write(f"\n\ndef lazily() -> None:\n    import ptycho_dist.{imported}\n")


def test_rooms_import_only_what_they_may() -> None:
    status, output = lint(REPOSITORY)
    assert status == 0, output


@pytest.mark.parametrize("imported", ["model", "training"])
def test_one_forbidden_import_is_caught(copy_of_package: Path, imported: str) -> None:
    add_import(copy_of_package / "ptycho_dist" / "data" / "sampler.py", imported)
    status, output = lint(copy_of_package)
    assert status == 1
    assert f"ptycho_dist.data.sampler -> ptycho_dist.{imported}" in output


def test_contracts_forbid_exactly_what_the_table_does_not_allow(copy_of_package: Path) -> None:
    """Let every room import every other: the imports that the contracts refuse are those outside
    the table."""
    for room in ROOMS:
        for other in ROOMS:
            if other != room:
                add_import(file_in(copy_of_package, room), other)
    _, output = lint(copy_of_package)
    refused = set(re.findall(r"- ptycho_dist\.(\w+)(?:\.newcomer)? -> ptycho_dist\.(\w+) ", output))
    assert refused == {
        (room, other)
        for room in ROOMS
        for other in ROOMS
        if other != room and other not in MAY_IMPORT[room]
    }


def test_every_room_is_in_the_table_and_has_its_contract() -> None:
    rooms = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__"}
    contracts = read_configuration(str(REPOSITORY / "pyproject.toml"))["contracts_options"]
    protected = {
        module.removeprefix("ptycho_dist.")
        for contract in contracts
        for module in contract["protected_modules"]
    }
    assert rooms == set(MAY_IMPORT)
    assert protected == set(MAY_IMPORT)


def test_nothing_in_the_package_imports_its_public_names() -> None:
    """Behind the public names are all rooms: which ones a room knows would no longer stand in its
    imports."""
    imports_all = re.compile(r"^\s*(from ptycho_dist import|import ptycho_dist$)", re.MULTILINE)
    assert [file for file in PACKAGE.rglob("*.py") if imports_all.search(file.read_text())] == []
