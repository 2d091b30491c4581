"""What docs/from_ptychopinn.md says about ptycho_dist is true: keys, defaults, files."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import yaml

from ptycho_dist.config import Config, flat_keys
from ptycho_dist.data.readers import read_scan
from tests.docs.blocks import ROOT
from tests.scans import small_scan_arrays

PAGE = (ROOT / "docs/from_ptychopinn.md").read_text()
KEYS = flat_keys(Config().to_dict())
NAMED = sorted(set(re.findall(r"`((?:data|model|train|simulation)\.\w+)`", PAGE)))
DEFAULTS = sorted(set(re.findall(r"`((?:data|model|train)\.\w+)` \(([^)]+)\)", PAGE)))


@pytest.mark.parametrize("key", NAMED)
def test_every_key_exists(key: str) -> None:
    assert key in KEYS


@pytest.mark.parametrize(("key", "default"), DEFAULTS)
def test_every_default_is_the_one_named(key: str, default: str) -> None:
    assert KEYS[key] == yaml.safe_load(default)


def test_page_names_what_users_look_for() -> None:
    assert len(NAMED) > 20
    assert len(DEFAULTS) > 15
    for setting in (
        "nphotons",
        "intensity_scale_trainable",
        "gridsize",
        "probe_scale",
        "n_groups",
        "batch_size",
        "n_devices",
    ):
        assert f"| `{setting}`" in PAGE, setting


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / "docs" / link).exists()


@pytest.mark.parametrize("key", ["diff3d", "diffraction"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0)])
@pytest.mark.parametrize("probe_axis", [None, -1, 0])
def test_their_files_are_read_as_the_page_says(
    tmp_path: Any, key: str, axes: tuple[int, ...], probe_axis: int | None
) -> None:
    arrays = small_scan_arrays()
    patterns, probe = arrays.pop("diffraction"), arrays.pop("probeGuess")
    numbers = np.arange(len(patterns))
    np.savez(
        tmp_path / "scan.npz",
        **arrays,
        **{key: patterns.transpose(axes)},
        probeGuess=probe if probe_axis is None else np.expand_dims(probe, probe_axis),
        scan_index=np.zeros(len(patterns), np.int64),
        xcoords_start=arrays["xcoords"] + 1,
        _metadata=np.array('{"physics_parameters": {"nphotons": 12345.0, "gridsize": 2}}'),
    )
    scan = read_scan(tmp_path / "scan.npz", "amplitude")
    assert np.array_equal(scan.diffraction[numbers], patterns)
    assert np.array_equal(
        scan.positions_px, np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    )
    assert np.array_equal(scan.probe, probe[None])
    assert scan.nphotons == 12345.0
