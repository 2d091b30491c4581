"""The scale: exact, the same bits however the patterns are dealt, and equal to an oracle in
rational numbers."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ptycho_dist import IntensityScale, derive_intensity_scale
from ptycho_dist.distributed import FailedTogether
from ptycho_dist.scale.exact_sum import exact_energy_sum, pattern_energies

NPHOTONS = 123456.789


def patterns(num_patterns: int = 23, seed: int = 0) -> np.ndarray:
    """Normalised amplitudes whose energies span many orders of magnitude, so that floating-point
    addition would depend on the order."""
    random = np.random.default_rng(seed)
    brightness = 10.0 ** random.uniform(-6, 6, (num_patterns, 1, 1))
    return (random.uniform(0, 1, (num_patterns, 8, 8)) * brightness).astype(np.float32)


def energies_by_loop(x_norm: np.ndarray) -> list[float]:
    return [float(np.sum(np.asarray(pattern, dtype=np.float64) ** 2)) for pattern in x_norm]


def correctly_rounded_scale(energies: list[float], nphotons: float) -> float:
    """sqrt(nphotons / mean), the nearest float64 to the real number, by rational arithmetic
    alone."""
    square = Fraction(nphotons) * len(energies) / sum(map(Fraction, energies))
    guess = math.sqrt(square)
    candidates = [math.nextafter(guess, 0), guess, math.nextafter(guess, math.inf)]
    # |c - sqrt(q)| is ordered as |c**2 - q| / (c + sqrt(q)); a fine rational root settles ties that
    # float64 could not.
    root = Fraction(math.isqrt((square * 4**200).__floor__()), 2**200)
    return min(candidates, key=lambda candidate: abs(Fraction(candidate) - root))


@pytest.mark.parametrize("seed", range(20))
def test_scale_is_the_correctly_rounded_one(seed: int) -> None:
    x_norm = patterns(seed=seed)
    assert derive_intensity_scale(x_norm, NPHOTONS).value == correctly_rounded_scale(
        energies_by_loop(x_norm), NPHOTONS
    )


def test_scale_equals_numpy_in_float64() -> None:
    x_norm = patterns()
    expected = np.sqrt(NPHOTONS / np.mean(np.sum(x_norm.astype(np.float64) ** 2, axis=(1, 2))))
    # The oracle rounds 23 additions, a division and a root: a few units of 1.1e-16.
    assert derive_intensity_scale(x_norm, NPHOTONS).value == pytest.approx(expected, rel=1e-14)


def test_record_tells_what_was_counted() -> None:
    x_norm = patterns()
    record = derive_intensity_scale(x_norm, NPHOTONS)
    assert isinstance(record, IntensityScale)
    assert (record.nphotons, record.num_patterns) == (NPHOTONS, 23)
    assert record.mean_energy == float(sum(map(Fraction, energies_by_loop(x_norm))) / 23)


def test_scaled_patterns_have_nphotons_in_the_mean() -> None:
    x_norm = patterns()
    scaled = derive_intensity_scale(x_norm, NPHOTONS).value * x_norm.astype(np.float64)
    # float64 rounding of 64 x 23 terms
    assert np.mean(np.sum(scaled**2, axis=(1, 2))) == pytest.approx(NPHOTONS, rel=1e-13)


def test_a_pattern_is_the_last_two_axes() -> None:
    x_norm = patterns(24)
    grouped = derive_intensity_scale(x_norm.reshape(6, 4, 8, 8), NPHOTONS)
    assert grouped == derive_intensity_scale(x_norm, NPHOTONS)
    assert grouped.num_patterns == 24


@pytest.mark.parametrize("chunk", [1, 2, 5, 23, 100])
def test_order_and_chunk_size_do_not_matter(chunk: int) -> None:
    x_norm = patterns()
    shuffled = x_norm[np.random.default_rng(chunk).permutation(len(x_norm))]
    chunks = (shuffled[start : start + chunk] for start in range(0, len(shuffled), chunk))
    assert derive_intensity_scale(chunks, NPHOTONS) == derive_intensity_scale(x_norm, NPHOTONS)


def test_memory_layout_and_container_do_not_matter() -> None:
    x_norm = patterns()
    expected = derive_intensity_scale(x_norm, NPHOTONS)
    assert derive_intensity_scale(np.asfortranarray(x_norm), NPHOTONS) == expected
    assert derive_intensity_scale(torch.from_numpy(x_norm), NPHOTONS) == expected
    assert derive_intensity_scale([torch.from_numpy(x_norm[:9]), x_norm[9:]], NPHOTONS) == expected


def test_integers_are_cast_before_they_are_squared() -> None:
    counts = np.full((3, 2, 2), 60000, dtype=np.uint16)
    assert pattern_energies(counts).tolist() == [4 * 60000.0**2] * 3
    large = np.full((1, 2, 2), 2**31, dtype=np.int64)
    assert pattern_energies(large).tolist() == [4 * 2.0**62]


def test_sum_is_exact_where_float64_is_not() -> None:
    tiny, huge = 1e-160, 1e150  # squared: 1e-320 (subnormal) and 1e300
    chunk = np.zeros((3, 2, 2))
    chunk[:, 0, 0] = huge, tiny, huge
    assert exact_energy_sum([chunk]).total == 2 * Fraction(huge * huge) + Fraction(tiny * tiny)


OTHER_PROCESS = """
import numpy as np
from ptycho_dist.scale.exact_sum import pattern_energies

print(pattern_energies(np.random.default_rng(0).lognormal(size=(5, 128, 128))).tobytes().hex())
"""


def test_energies_have_the_same_bits_on_older_processors_and_with_more_threads() -> None:
    """A job may be resumed on other nodes, or with more threads a rank, and has to find the same
    scale."""
    # OpenBLAS splits sums of more than 10000 numbers
    energies = pattern_energies(np.random.default_rng(0).lognormal(size=(5, 128, 128)))
    # those of this processor that NumPy has code for
    newer_instructions = np.show_config("dicts")["SIMD Extensions"].get("found", [])
    older = {
        "NPY_DISABLE_CPU_FEATURES": " ".join(newer_instructions),
        "OPENBLAS_CORETYPE": "Nehalem",
        "OPENBLAS_NUM_THREADS": "2",
    }
    ended = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS],
        env={**os.environ, **older},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.strip() == energies.tobytes().hex(), ended.stderr


def inputs(dtype: str) -> np.ndarray:
    """The 23 patterns in a type; for the integers, counts over nine decades with 0 and 2^31 among
    them."""
    x_norm = patterns()
    if not dtype.startswith("int"):
        return np.clip(x_norm, 0, np.finfo(np.float16).max if dtype == "float16" else None).astype(
            dtype
        )
    counts = np.minimum(x_norm.astype(np.float64) * 2.0**11, 2**31).astype(np.int64)
    counts[5, 0, :2] = 0, 2**31
    return counts


def dealings(world_size: int) -> dict[str, list[int]]:
    """Which rank holds which pattern; in the last two there are ranks without any."""
    return {
        "in turn": [number % world_size for number in range(23)],
        "at random": np.random.default_rng(world_size).integers(0, world_size, 23).tolist(),
        "uneven": [min(number // 3, world_size - 1) for number in range(23)],
        "half of the ranks": [number % max(1, world_size // 2) for number in range(23)],
        "all on the last rank": [world_size - 1] * 23,
    }


DTYPES = ("float64", "float32", "float16", "int64")
CHUNKS = (1, 4, 100)


def shard_scales() -> dict[tuple[str, str, int], IntensityScale]:
    """What this rank finds for every type, dealing and chunk size, its patterns in random order."""
    sizes: list[int] = []
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda tensor, **kwargs: (
        sizes.append(tensor.numel() * tensor.element_size()),
        all_reduce(tensor, **kwargs),
    )[1]
    found = {}
    for dtype in DTYPES:
        for dealing, owners in dealings(dist.get_world_size()).items():
            mine = inputs(dtype)[np.equal(owners, dist.get_rank())]
            shuffled = mine[np.random.default_rng(dist.get_rank()).permutation(len(mine))]
            for chunk in CHUNKS:
                chunks = (
                    shuffled[start : start + chunk] for start in range(0, len(shuffled), chunk)
                )
                found[dtype, dealing, chunk] = derive_intensity_scale(chunks, NPHOTONS)
                assert sizes == [552], f"expected one all_reduce of 552 bytes, found {sizes}"
                sizes.clear()
    dist.all_reduce = all_reduce
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 7, 8])
def test_every_rank_has_the_correctly_rounded_scale(on_ranks, world_size: int) -> None:
    """Whatever the number of ranks, the dealing, the order, the chunks and the type; each with one
    collective of 552 bytes."""
    expected = {
        dtype: correctly_rounded_scale(energies_by_loop(inputs(dtype)), NPHOTONS)
        for dtype in DTYPES
    }
    one_process = {dtype: derive_intensity_scale(inputs(dtype), NPHOTONS) for dtype in DTYPES}
    for found in on_ranks(world_size, shard_scales):
        assert len(found) == len(DTYPES) * len(CHUNKS) * 5
        for (dtype, dealing, chunk), record in found.items():
            assert record.value == expected[dtype], (dtype, dealing, chunk)
            assert record == one_process[dtype], (dtype, dealing, chunk)


def test_inputs_span_what_they_claim() -> None:
    assert inputs("int64").max() == 2**31
    assert inputs("int64").min() == 0
    # a subnormal
    assert 0 < inputs("float16")[inputs("float16") > 0].min() < np.finfo(np.float16).tiny
    assert len({derive_intensity_scale(inputs(dtype), NPHOTONS).value for dtype in DTYPES}) >= 3


def scale_where_one_rank_has_bad_data(bad: str) -> str:
    x_norm = patterns()
    if dist.get_rank() == 1 and bad == "nan":
        x_norm[5, 0, 0] = np.nan
    shard = {"nan": x_norm, "empty": x_norm[:0], "dark": np.zeros_like(x_norm)}[bad]

    with pytest.raises(ValueError, match=r".") as caught:
        derive_intensity_scale(shard, NPHOTONS)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_rank_that_fails_fails_all_with_its_reason(on_ranks) -> None:
    messages = on_ranks(3, scale_where_one_rank_has_bad_data, "nan")
    assert len(set(messages)) == 1
    assert messages[0].startswith(FailedTogether.__name__)
    assert "rank 1" in messages[0]
    assert "not finite" in messages[0]


@pytest.mark.parametrize(
    ("bad", "message"), [("empty", "no pattern on any rank"), ("dark", "are zero")]
)
def test_nothing_to_derive_from_is_refused_on_every_rank(on_ranks, bad: str, message: str) -> None:
    assert all(message in said for said in on_ranks(2, scale_where_one_rank_has_bad_data, bad))


@pytest.mark.parametrize("nphotons", [0, -1.0, math.nan, math.inf, True, "1e6", None])
def test_impossible_nphotons_is_refused(nphotons: object) -> None:
    with pytest.raises(ValueError, match=r"nphotons is .* expected a positive number"):
        derive_intensity_scale(patterns(), nphotons)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "x_norm",
    [np.zeros((4, 4)), np.zeros((2, 4, 4), dtype=complex), np.zeros((2, 4, 4), dtype=bool)],
)
def test_what_is_no_stack_of_real_patterns_is_refused(x_norm: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected real numbers \(n, ..., H, W\)"):
        derive_intensity_scale(x_norm, NPHOTONS)
