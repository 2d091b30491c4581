"""The same run on a GPU: the same scale, and a bundle that any machine reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho_dist import derive_intensity_scale, load_bundle, read_scan, reconstruct, train
from ptycho_dist.config import parse_mapping
from tests.training.runs import settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


@pytest.mark.parametrize("precision", [32, "bf16-mixed"])
def test_training_and_inference(
    write_scan: Callable[..., Path], tmp_path: Path, precision: str | int
) -> None:
    scan = write_scan()
    bundle = load_bundle(
        train(parse_mapping(settings(scan, tmp_path / "run", train__precision=precision)))
    )
    assert all(weight.device.type == "cpu" for weight in bundle.weights.values())
    result = reconstruct(bundle, read_scan(scan, "amplitude"))
    assert result.summary.device.startswith("cuda")
    assert np.isfinite(result.object).all()


def test_scale_of_patterns_on_the_gpu_has_the_bits_of_those_on_the_cpu() -> None:
    x_norm = torch.rand(11, 16, 16, generator=torch.Generator().manual_seed(0))
    assert derive_intensity_scale(x_norm.cuda(), 1e6) == derive_intensity_scale(x_norm, 1e6)
