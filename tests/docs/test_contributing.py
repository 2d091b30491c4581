"""The worked examples of CONTRIBUTING.md, made in a copy of the repository and run there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.scans import write_simulated_scan

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = ["A reader", "A network", "A loss"]

pytestmark = pytest.mark.slow


def section(title: str) -> str:
    (text,) = re.findall(rf"^## {title}\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    return text


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)


def apply_difference(repository: Path, difference: str) -> None:
    """Apply a diff. The lines that a hunk removes, with their context, must occur exactly once."""
    for name, hunks in re.findall(
        r"^--- (\S+)\n\+\+\+ \1\n(.*?)(?=^--- |\Z)", difference, re.MULTILINE | re.DOTALL
    ):
        text = (repository / name).read_text()
        for hunk in hunks.split("@@\n")[1:]:
            lines = hunk.splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] != added) for added in "+-")
            assert text.count(old) == 1, (
                f"{name}: found this {text.count(old)} times, expected it once:\n{old}"
            )
            text = text.replace(old, new)
        (repository / name).write_text(text)


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, list[Path]]:
    """Return title, a copy of the repository with the example in it, and the new files."""
    title = request.param
    for name in ("ptycho_dist", "launch", "configs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    new = []
    for block in blocks(title, "python"):
        first_line, _, content = block.partition("\n")
        path = tmp_path / first_line.removeprefix("# ")
        assert path.parent.is_dir(), first_line
        assert not path.exists(), first_line
        path.write_text(content)
        new.append(path)
    for difference in blocks(title, "diff"):
        apply_difference(tmp_path, difference)
    return title, tmp_path, new


def run_in(repository: Path, command: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    done = subprocess.run(
        command,
        cwd=repository,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_example_passes_its_tests_and_keeps_to_the_layers(
    example: tuple[str, Path, list[Path]],
) -> None:
    _, repository, new = example
    tests = [path for path in new if path.name.startswith("test_")]
    assert len(tests) == 1
    output = run_in(
        repository,
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, tests)],
    )
    passed = re.search(r"(\d+) passed", output)
    assert passed
    assert int(passed[1]) >= tests[0].read_text().count("def test_")
    assert "skipped" not in output
    lint = "from importlinter.cli import lint_imports_command as lint; lint()"
    run_in(repository, [sys.executable, "-c", lint, "--no-cache", "--no-logo"])


@pytest.mark.parametrize("example", EXAMPLES[1:], indirect=True)
def test_example_trains_by_its_own_commands(example: tuple[str, Path, list[Path]]) -> None:
    title, repository, _ = example
    write_simulated_scan(
        repository / "scan.npz",
        pattern_size=16,
        scan_shape=(6, 6),
        probe="disk",
        probe_diameter_px=8.0,
        step_px=2.0,
    )
    (script,) = blocks(title, "bash")
    python = shlex.quote(sys.executable)
    script = re.sub(
        r"^torchrun ",
        f"{python} -m torch.distributed.run --standalone ",
        script,
        flags=re.MULTILINE,
    )
    output = run_in(
        repository, ["bash", "-ec", re.sub(r"^python ", f"{python} ", script, flags=re.MULTILINE)]
    )
    assert "wrote RUN/bundle.zip" in output
    said = (repository / "RUN/hparams.yaml").read_text()
    assert {"A network": "network: shallow", "A loss": "loss: amplitude"}[title] in said
    if title == "A loss":
        columns = (repository / "RUN/metrics.csv").read_text().partition("\n")[0].split(",")
        assert {"step_amplitude_error_per_pixel", "train_amplitude_error_per_pixel"} < {*columns}
    if title == "A network":  # three convolutions: 5 to 16, 16 to 16, 16 to 2 channels
        assert f"network of {9 * (5 * 16 + 16 * 16 + 16 * 2) + 16 + 16 + 2} parameters" in output
        assert (repository / "DIR/reconstruction.npz").exists()


def test_a_diff_that_no_longer_fits_is_found(tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text("a = 1\n")
    with pytest.raises(AssertionError, match="found this 0 times"):
        apply_difference(tmp_path, "--- file.py\n+++ file.py\n@@\n-a = 2\n+a = 3\n")
