"""Any bundle comes back bit by bit, and whatever happens to one byte of the file, or to its end,
never gives another bundle."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptycho_dist.bundle import Bundle, BundleError, load_bundle, save_bundle
from ptycho_dist.config import Config, DataConfig, ModelConfig, TrainConfig
from ptycho_dist.model.autoencoder import PtychoAutoencoder
from ptycho_dist.scale.calibration import Calibration
from tests.bundles import example

NO_SHRINKING = (Phase.explicit, Phase.generate)
"""For large examples: to make a failing one small takes minutes."""

N = 16
SHAPES = {
    name: tuple(tensor.shape)
    for name, tensor in PtychoAutoencoder(pattern_size=N, base_width=1).state_dict().items()
}

positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


@st.composite
def weights(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Noise of any size, with some drawn values in it: zeros of either sign, subnormals, the
    largest."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrays = {
        name: np.asarray(random.normal(size=shape) * 10 ** random.uniform(-40, 35), np.float32)
        for name, shape in SHAPES.items()
    }
    for array in arrays.values():
        drawn = draw(hnp.arrays(np.float32, min(array.size, 3), elements=float32s))
        array.reshape(-1)[: drawn.size] = drawn
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@st.composite
def probes(draw: st.DrawFn) -> np.ndarray:
    parts = draw(
        hnp.arrays(np.float32, st.sampled_from([(1, N, 2 * N), (3, N, 2 * N)]), elements=float32s)
    )
    parts[0, 0, 0] = 1
    return parts.view(np.complex64)


bundles = st.builds(
    Bundle,
    config=st.builds(
        Config,
        data=st.builds(
            DataConfig,
            path=st.none() | texts | st.lists(texts, max_size=3),
            nphotons=st.none() | positive | st.just("measured"),
        ),
        model=st.just(ModelConfig(base_width=1)),
        train=st.builds(
            TrainConfig, run_dir=texts, learning_rate=positive, resume=st.none() | texts
        ),
    ),
    calibration=st.builds(
        Calibration,
        intensity_scale=positive,
        nphotons=positive,
        nphotons_source=st.sampled_from(["metadata", "config", "measured"]),
        rms_factor=positive,
        mean_energy=positive,
        num_patterns=st.integers(1, 2**63),
        pattern_size=st.just(N),
        subset_fingerprint=st.text("0123456789abcdef", min_size=64, max_size=64),
        scan_brightness=st.lists(positive, max_size=3).map(tuple),
    ),
    gain=positive,
    probe=probes(),
    weights=weights(),
    versions=st.dictionaries(texts, texts, max_size=3),
)


def bits(bundle: Bundle) -> dict[str, Any]:
    """All that a bundle holds, such that equal means equal to the bit."""
    held = {field.name: getattr(bundle, field.name) for field in dataclasses.fields(Bundle)}
    held["probe"] = (bundle.probe.dtype.str, bundle.probe.shape, bundle.probe.tobytes())
    held["weights"] = {
        name: (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes())
        for name, tensor in sorted(bundle.weights.items())
    }
    held["config"] = bundle.config.to_dict()
    return held


@settings(phases=NO_SHRINKING)
@given(bundle=bundles)
def test_bundle_comes_back_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, bundle: Bundle
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.zip"
    save_bundle(path, bundle)
    assert bits(load_bundle(path)) == bits(bundle)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundle") / "bundle.zip"


@pytest.fixture(scope="module")
def saved(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Bytes of a small bundle's file, and what it holds."""
    torch.manual_seed(0)
    network = PtychoAutoencoder(pattern_size=N, base_width=1)
    bundle = Bundle(
        config=Config(data=DataConfig(path="scan.npz"), model=ModelConfig(base_width=1)),
        calibration=example().calibration,
        gain=1.1 / 3,
        probe=np.random.default_rng(0)
        .normal(size=(1, N, 2 * N))
        .astype(np.float32)
        .view(np.complex64),
        weights=network.state_dict(),
        versions={"python": "3.11.7"},
    )
    save_bundle(path, bundle)
    return path.read_bytes(), bits(bundle)


def outcome(path: Path, content: bytes) -> dict[str, Any] | str:
    """What the file gives: a bundle, or the message that refuses it. Any other exception goes
    through."""
    path.write_bytes(content)
    try:
        return bits(load_bundle(path))
    except BundleError as error:
        message = str(error)
    assert str(path) in message
    return message


def require_equal_or_refused(
    path: Path, content: bytes, expected: dict[str, Any], what: str
) -> bool:
    found = outcome(path, content)
    assert isinstance(found, str) or found == expected, f"{what}: another bundle came out"
    return isinstance(found, str)


def places_outside_the_data(content: bytes, path: Path) -> Iterator[int]:
    """Every byte of the archive's own structure, and the first and last ones of each member."""
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        structure = set(range(archive.start_dir, len(content)))
        for info in archive.infolist():
            data = info.header_offset + 30 + len(info.filename)
            structure |= set(range(info.header_offset, data + 4)) | set(
                range(data + info.file_size - 4, data + info.file_size)
            )
    return iter(sorted(structure))


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_any_changed_byte_of_the_archives_structure(
    saved: tuple[bytes, dict[str, Any]], path: Path, mask: int
) -> None:
    content, expected = saved
    places = list(places_outside_the_data(content, path))
    refused = 0
    for place in places:
        changed = bytearray(content)
        changed[place] ^= mask
        refused += require_equal_or_refused(
            path, bytes(changed), expected, f"byte {place} xor {mask:#x}"
        )
    # the rest are dates, versions of zip and the like, which say nothing about the content
    assert refused > len(places) / 2


@given(share=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_any_changed_byte(
    saved: tuple[bytes, dict[str, Any]], path: Path, share: float, mask: int
) -> None:
    content, expected = saved
    changed = bytearray(content)
    changed[place := int(share * len(content))] ^= mask
    require_equal_or_refused(path, bytes(changed), expected, f"byte {place} xor {mask:#x}")


@given(length=st.integers(0, 2**16), from_the_end=st.booleans())
def test_any_truncated_file_is_refused(
    saved: tuple[bytes, dict[str, Any]], path: Path, length: int, from_the_end: bool
) -> None:
    content, _ = saved
    kept = content[: -1 - length % 400] if from_the_end else content[: length % len(content)]
    assert isinstance(outcome(path, kept), str)


@given(noise=st.binary(max_size=300), share=st.floats(0, 1))
def test_bytes_put_in_anywhere(
    saved: tuple[bytes, dict[str, Any]], path: Path, noise: bytes, share: float
) -> None:
    """Also before the beginning and after the end, where zip allows anything."""
    content, expected = saved
    place = int(share * len(content))
    require_equal_or_refused(
        path, content[:place] + noise + content[place:], expected, f"{noise!r} at byte {place}"
    )


@given(
    content=st.binary(max_size=200),
    prefix=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x04", b"PK\x06\x06"]),
)
def test_any_other_file_is_refused(path: Path, content: bytes, prefix: bytes) -> None:
    assert isinstance(outcome(path, prefix + content), str)
