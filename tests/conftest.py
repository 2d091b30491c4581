"""Fixtures: ranks without torchrun, small scans, and the real ones."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import lightning  # noqa: F401  sets variables of the environment when it is first imported: not in the middle of a test
import numpy as np
import pytest
import torch
import torch.distributed as dist

from ptycho_dist.config import SimulationConfig
from ptycho_dist.data.npz_writer import write_npz_scan
from ptycho_dist.physics.simulation import simulate_scan

RANK_TIMEOUT_SECONDS = 120

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when a test imports MLflow

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(
    ["torch", "ptycho_dist.training.train", "ptycho_dist.training.report"]
)


def _run_rank(
    rank: int,
    world_size: int,
    store: str,
    body: Callable[..., Any],
    arguments: tuple[Any, ...],
    results: Any,
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
        )
        dist.barrier()  # a rank that is done early must not leave while others still connect to it
        results.put((rank, body(*arguments), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    # The result is on its way before anything below can block; peers may still read what this rank
    # sent in its last collective.
    results.close()
    results.join_thread()
    with suppress(RuntimeError, ValueError):
        dist.barrier()
    os._exit(0)


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """`on_ranks(world_size, body, *arguments)` runs `body` (a function of a module) on gloo ranks
    and gives what each returned, by rank.

    Tracebacks of all ranks are shown where one raises; ranks that hang are killed.
    """
    calls = 0

    def run(world_size: int, body: Callable[..., Any], *arguments: Any) -> list[Any]:
        nonlocal calls
        calls += 1
        results = _forkserver.Queue()
        store = str(tmp_path / f"store{calls}")
        processes = [
            _forkserver.Process(
                target=_run_rank, args=(rank, world_size, store, body, arguments, results)
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            answers = {}
            for _ in processes:
                rank, value, error = results.get(timeout=RANK_TIMEOUT_SECONDS)
                answers[rank] = (value, error)
        finally:
            for process in processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
        errors = [f"rank {rank}:\n{error}" for rank, (_, error) in sorted(answers.items()) if error]
        assert not errors, "\n".join(errors)
        return [answers[rank][0] for rank in range(world_size)]

    return run


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


def write_simulated_scan(path: Path, **settings: Any) -> Path:
    """A simulated scan as `launch/simulate.py` writes it; keys of `SimulationConfig`."""
    told = dataclasses.asdict(SimulationConfig(**settings))
    simulation = simulate_scan(**told)
    write_npz_scan(
        path,
        diffraction=simulation.diffraction,
        positions_px=simulation.positions_px,
        probe=simulation.probe,
        transmission=simulation.object,
        nphotons=simulation.nphotons,
        settings=told,
    )
    return path


def small_scan_arrays(
    *, num_patterns: int = 37, pattern_size: int = 16, modes: int = 1, seed: int = 0
) -> dict[str, np.ndarray]:
    """Arrays of a small NPZ scan: Poisson counts of a random object, about 5000 photons a pattern,
    stored as amplitude."""
    random = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(num_patterns)))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(
        -1, 2
    )[:num_patterns]
    positions = pattern_size // 2 + 3.0 * grid + random.uniform(0, 0.9, (num_patterns, 2))
    extent = int(positions.max()) + pattern_size
    object_guess = random.uniform(0.7, 1, (extent, extent)) * np.exp(
        1j * random.uniform(-0.5, 0.5, (extent, extent))
    )
    y, x = np.indices((pattern_size, pattern_size)) - pattern_size / 2
    envelope = np.exp(-(y**2 + x**2) / (2 * (pattern_size / 6) ** 2))
    probe = np.stack(
        [
            envelope * np.exp(0.05j * (mode + 1) * (y**2 + x**2)) / (mode + 1)
            for mode in range(modes)
        ]
    )
    counts = np.empty((num_patterns, pattern_size, pattern_size))
    for number, (row, column) in enumerate(np.floor(positions).astype(int) - pattern_size // 2):
        exit_wave = probe * object_guess[row : row + pattern_size, column : column + pattern_size]
        far_field = np.fft.fftshift(np.fft.fft2(exit_wave, norm="ortho"), axes=(-2, -1))
        counts[number] = random.poisson(
            5000 * (np.abs(far_field) ** 2).sum(0) / (np.abs(probe) ** 2).sum()
        )
    return {
        "diffraction": np.sqrt(counts).astype(np.float32),
        "xcoords": positions[:, 1],
        "ycoords": positions[:, 0],
        "probeGuess": (probe if modes > 1 else probe[0]).astype(np.complex64),
        "objectGuess": object_guess.astype(np.complex64),
    }


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


MASKED_HDF5 = {
    "diffraction": "diffraction",
    "positions": "positions",
    "positions_unit": "px",
    "probe": "probe",
    "mask": "mask",
}
"""`data.hdf5` of what `write_masked_scan` writes."""


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


def dead_pixels(seed: int, part: float = 0.1, pattern_size: int = 16) -> np.ndarray:
    """A mask (N, N) with dead pixels, a gap of two columns and a beam stop that hides the brightest
    pixel."""
    mask = np.random.default_rng(seed).uniform(size=(pattern_size, pattern_size)) > part
    mask[:, seed % 5 + 1 : seed % 5 + 3] = False
    mask[pattern_size // 2, pattern_size // 2] = False
    return mask
