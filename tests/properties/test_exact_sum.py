"""The exact sum and the scale, for any numbers in any order on any number of ranks, against
rational arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptycho_dist import derive_intensity_scale
from ptycho_dist.scale import exact_sum
from ptycho_dist.scale.exact_sum import ExactSum, exact_energy_sum, pattern_energies
from ptycho_dist.scale.intensity_scale import scale_to_mean_energy

Chunk = np.ndarray

LARGEST = 5e153
"""Six squares of it still add up to a finite float64, 1.5e308."""

ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "float64": st.floats(-LARGEST, LARGEST),
    "float32": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "float16": st.floats(allow_nan=False, allow_infinity=False, width=16),
    "int64": st.integers(-(2**31), 2**31),
    "uint32": st.integers(0, 2**31),
    "uint16": st.integers(0, 2**16 - 1),
    "uint8": st.integers(0, 255),
}


@st.composite
def stacks(draw: st.DrawFn) -> Chunk:
    """Up to 6 patterns of up to 6 pixels, of any of the types, over its whole range, subnormals
    included."""
    dtype = draw(st.sampled_from(sorted(ELEMENTS)))
    shape = draw(st.tuples(st.integers(0, 6), st.integers(1, 2), st.integers(1, 3)))
    return draw(hnp.arrays(dtype, shape, elements=ELEMENTS[dtype]))


def energies_by_loop(stack: Chunk) -> list[float]:
    """sum(x**2) of each pattern in Python's float64, pixel by pixel (NumPy too adds fewer than 8
    numbers one by one)."""
    energies = []
    for pattern in stack:
        energy = 0.0
        for value in pattern.ravel().tolist():
            energy += float(value) * float(value)
        energies.append(energy)
    return energies


def sum_by_fractions(chunks: Sequence[Chunk]) -> ExactSum:
    energies = [Fraction(energy) for chunk in chunks for energy in energies_by_loop(chunk)]
    return ExactSum(sum(energies, Fraction(0)), len(energies))


def sum_over_shards(shards: Sequence[Sequence[Chunk]]) -> ExactSum:
    """`exact_energy_sum` as each of several ranks calls it, with NumPy's int64 addition in place of
    the `all_reduce`."""
    local_vectors: list[np.ndarray] = []

    def keep(local_values: Any, length: int, process_group: object) -> list[int]:
        values = list(local_values())
        assert len(values) == length == 68
        local_vectors.append(np.array(values, dtype=np.int64))
        return values

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exact_sum, "sum_integers", keep)
        for shard in shards:
            exact_energy_sum(shard)
        reduced = np.sum(local_vectors, axis=0, dtype=np.int64).tolist()
        patched.setattr(exact_sum, "sum_integers", lambda *_: reduced)
        return exact_energy_sum([])


def is_rounded_sqrt(value: float, square: Fraction) -> bool:
    """Whether no float64 is nearer to the root of `square`: it lies between the midpoints to the
    value's neighbours."""
    below, above = (
        Fraction(value) + Fraction(math.nextafter(value, end)) for end in (-math.inf, math.inf)
    )
    return below**2 <= 4 * square <= above**2


@given(st.lists(stacks(), max_size=5))
def test_sum_is_the_sum_of_fractions(chunks: list[Chunk]) -> None:
    assert exact_energy_sum(chunks) == sum_by_fractions(chunks)


@given(
    st.lists(stacks(), min_size=1, max_size=5), st.integers(1, 8), st.randoms(use_true_random=False)
)
def test_sum_does_not_know_order_chunks_or_ranks(
    chunks: list[Chunk], num_ranks: int, random: Any
) -> None:
    """Every pattern alone, in any order, to any rank, and there in chunks as they come; some ranks
    get none."""
    patterns = [pattern[None] for chunk in chunks for pattern in chunk]
    random.shuffle(patterns)
    shards: list[list[Chunk]] = [[] for _ in range(num_ranks)]
    for pattern in patterns:
        shards[random.randrange(num_ranks)].append(pattern)
    assert sum_over_shards(shards) == sum_by_fractions(chunks)


@given(stacks(), st.lists(st.integers(0, 6), max_size=4))
def test_sum_does_not_know_where_a_stack_is_cut(stack: Chunk, cuts: list[int]) -> None:
    assert exact_energy_sum(np.split(stack, sorted(cuts))) == sum_by_fractions([stack])


@given(
    st.integers(1, 140),
    st.integers(1, 140),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["float64", "float32", "float16"]),
)
def test_energy_of_a_pattern_of_any_size_has_the_same_bits_in_any_chunk(
    rows: int, columns: int, seed: int, dtype: str
) -> None:
    """Here NumPy adds in blocks, so that the order would show if it changed with the chunk or its
    layout."""
    stack = np.random.default_rng(seed).lognormal(0, 2, (5, rows, columns)).astype(dtype)
    alone = [pattern_energies(pattern[None]).item() for pattern in stack]
    assert pattern_energies(stack).tolist() == alone
    assert pattern_energies(np.asfortranarray(stack)).tolist() == alone
    assert pattern_energies(stack[::-1]).tolist() == alone[::-1]
    assert pattern_energies(stack[None]).tolist() == alone


@given(st.lists(stacks(), min_size=1, max_size=4), st.floats(1e-300, 1e300))
@example([np.full((1, 1, 1), 1e-161)], 1.0)
@example([np.full((3, 1, 1), LARGEST)], 1e-300)
def test_scale_is_the_correctly_rounded_one(chunks: list[Chunk], nphotons: float) -> None:
    total = sum_by_fractions(chunks)
    if total.total == 0:
        with pytest.raises(ValueError, match=r"no pattern on any rank|patterns are zero"):
            derive_intensity_scale(chunks, nphotons)
        return
    record = derive_intensity_scale(chunks, nphotons)
    assert is_rounded_sqrt(record.value, Fraction(nphotons) / total.mean)
    assert record.mean_energy == float(total.mean)
    assert (record.nphotons, record.num_patterns) == (nphotons, total.count)


@given(st.fractions(min_value=Fraction(1, 10**30), max_value=10**30), st.integers(-1000, 1000))
def test_root_of_any_ratio_is_correctly_rounded(ratio: Fraction, exponent: int) -> None:
    square = ratio * Fraction(2) ** exponent
    assert is_rounded_sqrt(scale_to_mean_energy(ExactSum(Fraction(1), 1), square), square)


@given(st.integers(1, 2**26), st.integers(-500, 500))
def test_root_of_a_square_is_exact(root: int, exponent: int) -> None:
    value = math.ldexp(root, exponent)
    assert scale_to_mean_energy(ExactSum(Fraction(1), 1), Fraction(value) ** 2) == value


def test_scale_that_no_float64_holds_is_refused() -> None:
    stack = np.zeros((100, 1, 1))
    stack[7] = 2.3e-162  # its energy is the smallest float64
    with pytest.raises(
        ValueError, match=r"is too small: no float64 holds the factor that brings it to 1\.79e\+308"
    ):
        derive_intensity_scale(stack, 1.79e308)


@given(stacks(), st.sampled_from([math.nan, math.inf, -math.inf, 1.5e154]), st.data())
def test_energy_that_is_not_finite_is_refused(
    stack: Chunk, value: float, data: st.DataObject
) -> None:
    stack = np.concatenate([stack.astype(np.float64), np.ones((1, *stack.shape[1:]))])
    place = data.draw(st.integers(0, stack.size - 1))
    stack.reshape(-1)[place] = value
    with pytest.raises(
        ValueError, match=f"pattern {place // stack[0].size} of a chunk is not finite"
    ):
        exact_energy_sum([stack])
