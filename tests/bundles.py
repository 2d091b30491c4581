"""A bundle to test with, and ways to spoil one."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ptycho_dist.bundle import Bundle, software_versions
from ptycho_dist.config import Config, DataConfig, ModelConfig
from ptycho_dist.model.autoencoder import PtychoAutoencoder
from ptycho_dist.scale.calibration import Calibration

N, WIDTH = 16, 2
MEMBERS = ["bundle.yaml", "weights.safetensors", "probe.npy"]


def network(seed: int = 0, *, base_width: int = WIDTH) -> PtychoAutoencoder:
    """Random in every tensor: a fresh network's head is zero, so that its output would not tell one
    network from another."""
    torch.manual_seed(seed)
    fresh = PtychoAutoencoder(pattern_size=N, base_width=base_width)
    for parameter in fresh.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return fresh


def example(seed: int = 0) -> Bundle:
    random = np.random.default_rng(seed)
    return Bundle(
        config=Config(
            data=DataConfig(path="scan.npz", nphotons=1e6), model=ModelConfig(base_width=WIDTH)
        ),
        # Numbers that no short decimal stands for: a rounded record would show.
        calibration=Calibration(
            intensity_scale=125.1 / 3,
            nphotons=1e6 / 7,
            nphotons_source="config",
            rms_factor=0.1 + 0.2,
            mean_energy=64.0 + 1e-13,
            num_patterns=1234567,
            pattern_size=N,
            subset_fingerprint="ab" * 32,
            scan_brightness=(1 / 3,),
        ),
        gain=1.1 / 3,
        probe=(random.normal(size=(2, N, N)) + 1j * random.normal(size=(2, N, N))).astype(
            np.complex64
        ),
        weights=network(seed).state_dict(),
        versions=software_versions(),
    )


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(
    path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def rewrite(path: Path, changed: Mapping[str, bytes], *, sign: bool = True) -> None:
    """Replace members; with `sign` the record tells their new SHA-256, as a forger would."""
    members = {**contents(path), **changed}
    if sign:
        record = yaml.safe_load(members["bundle.yaml"])
        record["sha256"] = {name: hashlib.sha256(members[name]).hexdigest() for name in MEMBERS[1:]}
        members["bundle.yaml"] = yaml.safe_dump(record).encode()
    write_zip(path, members)


def edit_record(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    record = yaml.safe_load(contents(path)["bundle.yaml"])
    edit(record)
    rewrite(path, {"bundle.yaml": yaml.safe_dump(record).encode()}, sign=False)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
