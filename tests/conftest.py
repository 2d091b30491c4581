"""The choice of tests, and fixtures for ranks, scans and figures."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import lightning  # noqa: F401  sets environment variables when it is first imported: not within a test
import numpy as np
import pytest
import torch.distributed as dist
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from tests import figures
from tests.disks import mount, unmount
from tests.ranks import run_on_ranks
from tests.scans import small_scan_arrays

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when a test imports MLflow
figures.skip_drawing()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all",
        action="store_true",
        help="run the slow tests too, and 200 examples of each property; without it, slow tests run "
        "only where their file is named or -m selects them",
    )
    parser.addoption(
        "--no-skips", action="store_true", help="fail if a test but those of a GPU is skipped"
    )


def pytest_configure(config: pytest.Config) -> None:
    # The same examples each time, on any machine, and nothing written to disk. No deadline: a
    # shared core may be slow.
    hypothesis_settings.register_profile(
        "reproducible",
        max_examples=200 if config.option.all else 25,
        derandomize=True,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=[HealthCheck.too_slow],
    )
    hypothesis_settings.load_profile("reproducible")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.all or config.option.markexpr:
        return
    named = {(config.invocation_params.dir / name.split("::")[0]).resolve() for name in config.args}
    left_out = [
        item for item in items if item.get_closest_marker("slow") and item.path not in named
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "gpu" not in report.keywords:
        skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.option.no_skips and skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def on_ranks() -> Callable[..., list[Any]]:
    """`on_ranks(world_size, body, *arguments)`: see `run_on_ranks`."""
    return run_on_ranks


@pytest.fixture
def drawn_figures() -> Iterator[None]:
    """Figures are drawn, not only composed."""
    with figures.drawing():
        yield


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaks environment variables, signal handlers or a process group into the
    next one."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    }
    yield
    assert not dist.is_initialized(), "the test left a process group"
    assert {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    } == environment
    assert {number: signal.getsignal(number) for number in handlers} == handlers


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder of the real scans."""
    folder = os.environ.get("PTYCHO_REALDATA")
    if not folder:
        pytest.skip("PTYCHO_REALDATA does not point to the real scans")
    return Path(folder)


@pytest.fixture
def write_scan(tmp_path: Path) -> Callable[..., Path]:
    """`write_scan(name="scan.npz", compressed=False, drop=(), **changed_arrays)` writes a small NPZ
    scan and gives its path."""

    def write(
        name: str = "scan.npz",
        *,
        compressed: bool = False,
        drop: tuple[str, ...] = (),
        arrays: Any = None,
        **changed: Any,
    ) -> Path:
        content = {**(small_scan_arrays() if arrays is None else arrays), **changed}
        for key in drop:
            del content[key]
        (np.savez_compressed if compressed else np.savez)(tmp_path / name, **content)
        return tmp_path / name

    return write


@pytest.fixture
def write_masked_scan(tmp_path: Path) -> Callable[..., Path]:
    """`write_masked_scan(name, mask, garbage=0, arrays=None)` writes a small HDF5 scan with its
    mask, and garbage where no pixel counts."""

    def write(name: str, mask: np.ndarray, garbage: float = 0.0, arrays: Any = None) -> Path:
        content = small_scan_arrays() if arrays is None else arrays
        with h5py.File(tmp_path / name, "w") as file:
            file["diffraction"] = np.where(mask, content["diffraction"], np.float32(garbage))
            file["positions"] = np.stack([content["ycoords"], content["xcoords"]], axis=1)
            file["probe"] = content["probeGuess"]
            file["mask"] = mask.astype(np.uint8)
        return tmp_path / name

    return write


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(num_bytes)` mounts a tmpfs of that size and gives its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(num_bytes: int) -> Path:
        mount(folder, 0, f"size={num_bytes}")
        return folder

    yield make
    unmount(folder)
