"""Who says nphotons, and what happens when nobody or everybody does."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
def test_metadata_goes_before_config(
    metadata: dict[str, Any], configured: Any, expected: Nphotons
) -> None:
    assert resolve_nphotons(metadata, configured, measured=lambda: 777.0) == expected


def test_measured_counts_are_asked_for_only_where_they_are_needed() -> None:
    def measured() -> float:
        raise AssertionError("asked")

    resolve_nphotons({"a.npz": 5e5}, "measured", measured)
    resolve_nphotons({"a.npz": None}, 5e5, measured)


def test_files_that_differ_speak_for_their_own_training_patterns() -> None:
    """By hand: (300 * 1e6 + 100 * 1e4) / 400."""
    for configured in (None, 5.0, "measured"):
        found = resolve_nphotons(
            {"a.npz": 1e6, "b.npz": 1e4},
            configured,
            lambda: 777.0,
            num_patterns={"a.npz": 300, "b.npz": 100},
        )
        assert found == Nphotons(
            value=752500.0, source="metadata, mean over the training patterns of all scans"
        )


def test_file_without_training_patterns_has_no_say() -> None:
    found = resolve_nphotons(
        {"a.npz": 1e6, "b.npz": 1e4, "c.npz": 3e6},
        None,
        num_patterns={"a.npz": 0, "b.npz": 7, "c.npz": 0},
    )
    assert found.value == 1e4


@given(
    st.lists(
        st.tuples(
            st.floats(min_value=0, exclude_min=True, allow_infinity=False), st.integers(0, 10**9)
        ),
        min_size=2,
        max_size=9,
    )
)
def test_mean_over_patterns_is_correctly_rounded_whatever_the_order(
    files: list[tuple[float, int]],
) -> None:
    """Also where the sum of all photons is beyond float64. The oracle is the definition in rational
    numbers."""
    files = [(value, count + 1) for value, count in files]
    expected = float(
        sum(Fraction(value) * count for value, count in files) / sum(count for _, count in files)
    )
    for order in (files, files[::-1]):
        metadata = {str(number): value for number, (value, _) in enumerate(order)}
        found = resolve_nphotons(
            metadata,
            None,
            num_patterns={str(number): count for number, (_, count) in enumerate(order)},
        )
        assert found.value == expected


def test_files_that_agree_give_their_value_to_the_last_bit_whatever_the_counts() -> None:
    found = resolve_nphotons(
        {"a.npz": 0.1, "b.npz": 0.1, "c.npz": 0.1},
        None,
        num_patterns={"a.npz": 3, "b.npz": 5, "c.npz": 0},
    )
    assert found == Nphotons(value=0.1, source="metadata")


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
def test_doubt_is_an_error_that_names_its_cause(
    metadata: dict[str, Any], configured: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_nphotons(metadata, configured, measured=lambda: 777.0)
