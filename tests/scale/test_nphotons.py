"""Who says nphotons, and what happens when nobody or everybody does."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ptycho_dist import resolve_nphotons
from ptycho_dist.scale.nphotons import Nphotons


@pytest.mark.parametrize(
    ("metadata", "configured", "expected"),
    [
        ({"a.npz": 5e5}, 1e6, Nphotons(value=5e5, source="metadata")),
        ({"a.npz": 5e5}, "measured", Nphotons(value=5e5, source="metadata")),
        ({"a.npz": 5e5, "b.npz": 5e5}, None, Nphotons(value=5e5, source="metadata")),
        ({"a.npz": None}, 1e6, Nphotons(value=1e6, source="config")),
        ({"a.npz": None, "b.npz": None}, 1e6, Nphotons(value=1e6, source="config")),
        ({"a.npz": None}, "measured", Nphotons(value=777.0, source="measured")),
        ({"a.npz": 10}, None, Nphotons(value=10.0, source="metadata")),
    ],
)
def test_metadata_goes_before_config(metadata: dict[str, Any], configured: Any, expected: Nphotons) -> None:
    assert resolve_nphotons(metadata, configured, measured=lambda: 777.0) == expected


def test_measured_counts_are_asked_for_only_where_they_are_needed() -> None:
    def measured() -> float:
        raise AssertionError("asked")

    resolve_nphotons({"a.npz": 5e5}, "measured", measured)
    resolve_nphotons({"a.npz": None}, 5e5, measured)


@pytest.mark.parametrize(
    ("metadata", "configured", "message"),
    [
        ({"a.npz": 1e6, "b.npz": 2e6}, None, "a.npz says 1000000.0, b.npz says 2000000.0"),
        ({"a.npz": 1e6, "b.npz": None}, 1e6, "b.npz says nothing"),
        ({"a.npz": None}, None, "a.npz has no _metadata.*set data.nphotons"),
        ({"a.npz": "1e6"}, 1e6, "a.npz: _metadata physics_parameters.nphotons is '1e6'"),
        ({"a.npz": True}, 1e6, "a.npz: .* is True"),
        ({"a.npz": 0}, 1e6, "a.npz: .* is 0"),
        ({"a.npz": -3.0}, 1e6, "a.npz: .* is -3.0"),
        ({"a.npz": math.nan}, 1e6, "a.npz: .* is nan"),
        ({"a.npz": None}, math.inf, "data.nphotons is inf"),
    ],
)
def test_doubt_is_an_error_that_names_its_cause(metadata: dict[str, Any], configured: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_nphotons(metadata, configured, measured=lambda: 777.0)
