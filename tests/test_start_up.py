"""A process imports nothing that its path does not use: it would wait for it at every start, on
every rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ptycho_dist

LAUNCH = Path(__file__).parents[1] / "launch"
HEAVY = {
    "torch",
    "lightning",
    "torchmetrics",
    "numpy",
    "scipy",
    "matplotlib",
    "mpl_toolkits",
    "PIL",
    "h5py",
    "hdf5plugin",
    "jinja2",
    "rich",
}
TELL = "import json, sys; print('modules:', json.dumps(sorted(sys.modules)))"

HELP = f"""
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    {TELL}
"""

TRAIN_TO_FIRST_STEP = f"""
import os, runpy, sys
from ptycho_dist.model.lightning_module import PtychographyModule

step = PtychographyModule.optimizer_step

def step_and_tell(*given, **named):
    step(*given, **named)
    {TELL}
    sys.stdout.flush()
    os._exit(0)

PtychographyModule.optimizer_step = step_and_tell
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def loaded_by(program: str, *arguments: object) -> set[str]:
    """Modules that a program has loaded when it tells."""
    ended = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = [line for line in ended.stdout.splitlines() if line.startswith("modules:")]
    assert told, ended.stdout + ended.stderr
    return set(json.loads(told[-1].removeprefix("modules:")))


def heavy(modules: set[str]) -> set[str]:
    return HEAVY & {name.partition(".")[0] for name in modules}


def test_the_package_alone_loads_nothing() -> None:
    assert heavy(loaded_by(f"import ptycho_dist; {TELL}")) == set()


@pytest.mark.parametrize(
    "script", ["train.py", "infer.py", "evaluate.py", "inspect_scan.py", "stage.py"]
)
def test_help_loads_nothing(script: str) -> None:
    assert heavy(loaded_by(HELP, LAUNCH / script)) == set()


def test_simulation_needs_no_pytorch() -> None:
    assert heavy(loaded_by(HELP, LAUNCH / "simulate.py")) == {"numpy", "scipy", "PIL"}


def test_the_scale_needs_pytorch_alone() -> None:
    assert heavy(
        loaded_by(f"from ptycho_dist import derive_intensity_scale, ScaledPoissonLoss; {TELL}")
    ) == {"numpy", "torch"}


def test_inference_needs_no_lightning() -> None:
    modules = loaded_by(f"import ptycho_dist.inference.infer; {TELL}")
    assert heavy(modules) == {
        "numpy",
        "torch",
        "scipy",
        "matplotlib",
        "mpl_toolkits",
        "PIL",
        "jinja2",
        "h5py",
    }


def test_training_makes_its_first_step_before_it_loads_what_draws_and_reports(
    write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    """Lightning itself loads SciPy, Matplotlib, Rich and torchmetrics: nothing can be said of
    these."""
    options = [
        "--data.measurement=amplitude",
        "--data.nphotons=5000",
        "--train.epochs=1",
        "--model.base_width=4",
        "--train.precision=32",
    ]
    modules = loaded_by(
        TRAIN_TO_FIRST_STEP,
        LAUNCH / "train.py",
        f"--data.path={write_scan()}",
        f"--train.run_dir={tmp_path / 'run'}",
        *options,
    )
    assert heavy(modules) & {"jinja2", "hdf5plugin"} == set()
    rooms = {name.split(".")[1] for name in modules if name.startswith("ptycho_dist.")}
    assert rooms & {"report", "inference", "preflight"} == set()
    assert "ptycho_dist.preflight.check" not in modules


def test_public_names_are_what_they_say() -> None:
    for name in ptycho_dist.__all__:
        assert getattr(ptycho_dist, name).__name__ == name
    assert set(ptycho_dist.__all__) <= set(dir(ptycho_dist))
    assert sorted(name for names in ptycho_dist._HOMES.values() for name in names) == sorted(
        ptycho_dist.__all__
    )
    with pytest.raises(AttributeError, match=r"module 'ptycho_dist' has no attribute 'nothing'"):
        _ = ptycho_dist.nothing
