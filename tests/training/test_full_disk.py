"""A disk that is full, or may not be written: what was there before stays, and the error names the
file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from ptycho_dist import load_bundle, save_bundle, train
from ptycho_dist.config import parse_mapping
from ptycho_dist.training.run_directory import RunDirectoryLogger
from tests.disks import READ_ONLY, REMOUNT, mount
from tests.training.runs import settings


@pytest.fixture
def trained(write_scan: Callable[..., Path], tmp_path: Path) -> Path:
    """Run directory of one epoch."""
    train(parse_mapping(settings(write_scan(), tmp_path / "trained", train__epochs=1)))
    return tmp_path / "trained"


def test_bundle(trained: Path, small_disk: Callable[[int], Path]) -> None:
    bundle = load_bundle(trained / "bundle.zip")
    disk = small_disk(int(1.5 * (trained / "bundle.zip").stat().st_size))
    save_bundle(disk / "bundle.zip", bundle)
    before = (disk / "bundle.zip").read_bytes()
    changed = dataclasses.replace(bundle, gain=2.0)
    with pytest.raises(
        OSError, match=r"No space left on device; not written: '.*/disk/bundle.zip'"
    ):
        save_bundle(disk / "bundle.zip", changed)
    mount(disk, READ_ONLY | REMOUNT, "")
    with pytest.raises(OSError, match=r"Read-only file system; not written: '.*/disk/bundle.zip'"):
        save_bundle(disk / "bundle.zip", changed)
    assert (disk / "bundle.zip").read_bytes() == before
    assert load_bundle(disk / "bundle.zip").gain == 1.0
    assert os.listdir(disk) == ["bundle.zip"]


def test_checkpoint(trained: Path, small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    """Room for one checkpoint and a half: the second one can't be written beside the first."""
    disk = small_disk(int(1.5 * (trained / "checkpoints" / "last.ckpt").stat().st_size) + 16384)
    with pytest.raises(
        OSError, match=r"No space left on device; not written: '.*/disk/run/checkpoints/last.ckpt'"
    ):
        train(parse_mapping(settings(tmp_path / "scan.npz", disk / "run", train__epochs=2)))
    checkpoint = torch.load(disk / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0
    assert not (disk / "run" / "bundle.zip").exists()
    assert os.listdir(disk / "run" / "checkpoints") == ["last.ckpt"]


def test_hparams(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(8192)
    logger = RunDirectoryLogger(disk, resumed=False)
    logger.log_hyperparams({"intensity_scale": 1.5})
    with pytest.raises(
        OSError, match=r"No space left on device; not written: '.*/disk/hparams.yaml'"
    ):
        logger.log_hyperparams({"intensity_scale": 2.5, "long": "x" * 10000})
    mount(disk, READ_ONLY | REMOUNT, "")
    with pytest.raises(
        OSError, match=r"Read-only file system; not written: '.*/disk/hparams.yaml'"
    ):
        logger.log_hyperparams({"intensity_scale": 2.5})
    assert yaml.safe_load((disk / "hparams.yaml").read_text()) == {"intensity_scale": 1.5}
    assert os.listdir(disk) == ["hparams.yaml"]


def test_run_directory_that_may_not_be_written(
    write_scan: Callable[..., Path], small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(8192)
    mount(disk, READ_ONLY | REMOUNT, "")
    with pytest.raises(OSError, match=r"Read-only file system: '.*/disk/run'"):
        train(parse_mapping(settings(write_scan(), disk / "run")))


@pytest.mark.parametrize("damage", ["truncated", "empty", "pickle"])
def test_damaged_checkpoint_is_refused(trained: Path, tmp_path: Path, damage: str) -> None:
    checkpoint = trained / "checkpoints" / "last.ckpt"
    content = checkpoint.read_bytes()
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "evil").encode() + b"'\ntR."
    checkpoint.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "pickle": evil}[damage]
    )
    changes = {"train__resume": "auto", "train__epochs": 2}
    with pytest.raises(
        ValueError, match=r"last.ckpt: not a readable checkpoint \(.+\); use an earlier one"
    ):
        train(parse_mapping(settings(tmp_path / "scan.npz", trained, **changes)))
    assert not (tmp_path / "evil").exists()
