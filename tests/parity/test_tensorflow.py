"""The scale and the likelihood against the formulas that TensorFlow users know, computed by
TensorFlow itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho_dist import ScaledPoissonLoss, derive_intensity_scale

HERE = Path(__file__).parent
TENSORFLOW_PYTHON = HERE.parents[1] / ".venv-tensorflow" / "bin" / "python"
NPHOTONS = 440557.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    rate = random.uniform(0.01, 500, (5, 16, 16))
    return {
        "nphotons": np.float64(NPHOTONS),
        "x_norm_c1": random.exponential(0.5, (24, 32, 32, 1)).astype(np.float32),
        "x_norm_c4": random.exponential(0.5, (6, 32, 32, 4)).astype(np.float32),
        "rate": rate,
        "counts": random.poisson(rate).astype(np.float64),
    }


@pytest.fixture(scope="module")
def tensorflow(
    arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    if not (TENSORFLOW_PYTHON.parents[1] / "installed").exists():
        pytest.skip("no .venv-tensorflow; bash tests/parity/make_venv.sh makes it")
    folder = tmp_path_factory.mktemp("tensorflow")
    np.savez(folder / "in.npz", **arrays)
    subprocess.run(
        [
            TENSORFLOW_PYTHON,
            HERE / "tensorflow_reference.py",
            folder / "in.npz",
            folder / "out.npz",
        ],
        check=True,
        timeout=300,
    )
    with np.load(folder / "out.npz") as results:
        return dict(results)


@pytest.mark.parametrize("name", ["x_norm_c1", "x_norm_c4"])
def test_scale(arrays: dict[str, np.ndarray], tensorflow: dict[str, np.ndarray], name: str) -> None:
    channels_first = np.moveaxis(arrays[name], -1, 1)
    scale = derive_intensity_scale(channels_first, NPHOTONS).value
    # TensorFlow's sum of 24576 float32 terms
    assert scale == pytest.approx(float(tensorflow[f"scale_{name}"]), rel=2e-6)
    # the same in float64
    assert scale == pytest.approx(float(tensorflow[f"scale64_{name}"]), rel=1e-12)
    float64_reference = np.sqrt(
        NPHOTONS / np.mean(np.sum(channels_first.astype(np.float64) ** 2, axis=(2, 3)))
    )
    assert scale == pytest.approx(float64_reference, rel=1e-12)


def test_log_poisson_loss(arrays: dict[str, np.ndarray], tensorflow: dict[str, np.ndarray]) -> None:
    scale = 3.0
    intensity = torch.from_numpy(arrays["rate"] / scale**2)
    x_norm = torch.from_numpy(np.sqrt(arrays["counts"]) / scale)
    loss = ScaledPoissonLoss(scale)
    in_float64 = loss.negative_log_likelihood(intensity, x_norm).numpy()
    # float64 throughout; values of 1e3 cancel to 1
    np.testing.assert_allclose(in_float64, tensorflow["nll"], rtol=1e-12, atol=1e-10)
    in_float32 = loss.negative_log_likelihood(intensity.float(), x_norm.float()).mean().item()
    assert in_float32 == pytest.approx(tensorflow["nll"].mean(), rel=2e-6)


def test_deviance_has_the_likelihoods_gradient(
    arrays: dict[str, np.ndarray], tensorflow: dict[str, np.ndarray]
) -> None:
    """TensorFlow's value differs from ours by a function of the counts alone."""
    scale = 3.0
    x_norm = torch.from_numpy(np.sqrt(arrays["counts"]) / scale)
    deviance = (
        ScaledPoissonLoss(scale)
        .deviance(torch.from_numpy(arrays["rate"] / scale**2), x_norm)
        .numpy()
    )
    counts = arrays["counts"]
    of_the_counts = np.where(counts > 0, counts - counts * np.log(np.maximum(counts, 1)), 0)
    # differences of values of 1e3
    np.testing.assert_allclose(deviance, tensorflow["nll"] - of_the_counts, rtol=1e-9, atol=1e-9)
