"""Ranks that would compute different things are found before training, and the message says which
rank differs in what."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ptycho_dist.config import ModelConfig
from ptycho_dist.distributed import FailedTogether, require_same
from ptycho_dist.model.lightning_module import PtychographyModule
from tests.calibrations import made_up_calibration
from tests.scans import small_scan_arrays
from tests.training.runs import settings, train_one


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises(FailedTogether) as caught:
        action()
    return str(caught.value)


def train_with_other_settings(concerns: dict[str, Any]) -> str:
    if dist.get_rank() == 2:
        concerns["train"]["epochs"] = 5
    return refused(lambda: train_one(concerns))


def test_configuration(
    on_ranks: Callable[..., Any], write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    messages = on_ranks(3, train_with_other_settings, settings(write_scan(), tmp_path / "run"))
    assert messages == ["ranks differ: train.epochs is 5 on rank 2, but 2 on rank 0"] * 3
    assert not (tmp_path / "run").exists()


def train_in_own_folder(concerns: dict[str, Any], folders: list[str]) -> str:
    os.chdir(folders[dist.get_rank()])
    return refused(lambda: train_one(concerns))


def test_content_of_the_data(on_ranks: Callable[..., Any], tmp_path: Path) -> None:
    """One node's copy of the scan differs in a single pixel of a single pattern."""
    folders = [str(tmp_path / name) for name in ("node0", "node1")]
    arrays = small_scan_arrays()
    for folder in folders:
        os.mkdir(folder)
        np.savez(f"{folder}/scan.npz", **arrays)
        arrays["diffraction"][20, 3, 4] += 1
    messages = on_ranks(
        2, train_in_own_folder, settings(Path("scan.npz"), tmp_path / "run"), folders
    )
    assert len(set(messages)) == 1
    assert messages[0].startswith("ranks differ: content of scan.npz is ")
    assert " on rank 1, but " in messages[0]


def train_with_another_library(concerns: dict[str, Any]) -> str:
    import ptycho_dist.training.train as module

    if dist.get_rank() == 1:
        versions = module.software_versions()
        module.software_versions = lambda: {**versions, "torch": "1.0"}
    return refused(lambda: train_one(concerns))


def test_versions_of_the_software(
    on_ranks: Callable[..., Any], write_scan: Callable[..., Path], tmp_path: Path
) -> None:
    messages = on_ranks(2, train_with_another_library, settings(write_scan(), tmp_path / "run"))
    assert (
        messages
        == [f"ranks differ: torch is '1.0' on rank 1, but {version('torch')!r} on rank 0"] * 2
    )


def build_with_own_scale() -> str:
    last_bit = np.nextafter(20.0, 21.0) if dist.get_rank() == 1 else 20.0
    calibration = made_up_calibration(float(last_bit))
    probes = torch.ones(1, 1, 16, 16, dtype=torch.complex64)
    return refused(lambda: PtychographyModule(ModelConfig(base_width=4), calibration, probes))


def test_last_bit_of_the_scale(on_ranks: Callable[..., Any]) -> None:
    messages = on_ranks(2, build_with_own_scale)
    assert (
        messages
        == ["ranks differ: intensity_scale is 20.000000000000004 on rank 1, but 20.0 on rank 0"] * 2
    )


def compare_floats() -> bool:
    require_same({"nan": float("nan"), "x": 1.5, "text": "a", "list": [1, 2]})
    return True


def test_equal_values_pass_nan_too(on_ranks: Callable[..., Any]) -> None:
    assert on_ranks(3, compare_floats) == [True] * 3
