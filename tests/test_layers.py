"""Each package imports only what lies below it; pyproject.toml says what that is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "ptycho_dist"

FORBIDDEN = {
    "config": "distributed",
    "scale": "physics",
    "physics": "scale",
    "data": "model",
    "model": "data",
    "report": "data",
    "bundle": "training",
    "inference": "training",
    "training": "preflight",
    "preflight": "commands",
    "distributed": "config",
}
"""By package, one that the design keeps it from."""


def lint(repository: Path) -> str:
    """Return the output of `lint-imports` in a folder with pyproject.toml and the package."""
    program = "from importlinter.cli import lint_imports_command as lint; lint()"
    command = [sys.executable, "-c", program, "--no-cache", "--no-logo"]
    done = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


def file_of(repository: Path, name: str) -> Path:
    path = repository / "ptycho_dist" / name
    return path / "newcomer.py" if path.is_dir() else path.with_suffix(".py")


def test_contracts_are_kept() -> None:
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", lint(REPOSITORY))


def test_every_import_upward_or_sideways_breaks_a_contract(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "ptycho_dist", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for name, imported in FORBIDDEN.items():
        with file_of(tmp_path, name).open("a") as stream:
            stream.write(f"\nimport ptycho_dist.{imported}\n")
    (tmp_path / "ptycho_dist/training/newcomer.py").write_text("import ptycho_dist.inference\n")
    report = lint(tmp_path)
    for name, imported in {**FORBIDDEN, "training": "inference"}.items():
        assert re.search(
            rf"ptycho_dist\.{name}(\.newcomer)? -> ptycho_dist\.{imported}\b", report
        ), (name, imported, report)
