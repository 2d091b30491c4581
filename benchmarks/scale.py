#!/usr/bin/env python
"""How fast the ranks find the photon scale, and what their one reduction costs: python
benchmarks/scale.py --out DIR

Three tables.

Passes: bytes read a second, over all ranks. In memory: x_norm to the intensity scale (energies,
exact sums, reduction). From disk: what a run does, one pass over the file for r and a second one
for s, from the numbers in the file on. The page cache holds the file (warm) or, when the first pass
begins, nothing of it (cold). Beside it a plain read of the same bytes (numpy.sum of the array,
read() of the file) and numpy.einsum in float64, which gives the energies alone (from disk: of the
numbers as they are). All take turns, on one rank and on several. Told is the fastest turn of each,
since other work can only slow one down, and medians of ratios of CPU seconds; of one rank and
several those of the busiest rank.

Reduction: one all_reduce, measured with gloo on this machine. With more ranks than cores they wait
for each other's turn, which the CPU seconds of a rank do not show.

Model: of the same on a cluster. A message takes `latency + bytes / bandwidth`, and messages of one
step go at the same time. A ring, which gloo uses, takes 2 (ranks - 1) steps; a tree up and down,
which NCCL uses for small messages, 2 ceil(log2 ranks).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from page_cache import bring_into_page_cache, drop_from_page_cache, part_in_page_cache
from ranks import on_ranks

from ptycho_dist import derive_intensity_scale, read_scan
from ptycho_dist.config import DataConfig
from ptycho_dist.data.pattern_source import CHUNK_PIXELS, PatternSource
from ptycho_dist.distributed import largest, sum_floats, sum_integers
from ptycho_dist.scale.exact_sum import exact_energy_sum
from ptycho_dist.scale.intensity_scale import scale_to_mean_energy
from ptycho_dist.scale.normalization import normalize

NPHOTONS = 1e6
REDUCED_INTEGERS = 68
"""That the ranks add up beside the flag that one of them failed: how many patterns, and the limbs
of their energy."""
REDUCED_BYTES = 8 * (1 + REDUCED_INTEGERS)
TURNS_OF_THE_REDUCTION = 100

TCP, INFINIBAND = "TCP", "InfiniBand"
LATENCY_S = {TCP: 30e-6, INFINIBAND: 5e-6}
BANDWIDTH_BYTES_PER_S = {TCP: 1e9, INFINIBAND: 1e10}
"""Assumed, of one message between two nodes: usual figures. Of 552 bytes the bandwidth explains at
most a fiftieth."""
MODELLED_RANKS = (2, 8, 64, 512, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for the scans and scale.json"
    )
    parser.add_argument("--patterns", type=int, default=8192)
    parser.add_argument("--size", type=int, default=64, help="N")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--reduction_ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args()
    scans = write_scans(arguments.out, arguments.patterns, arguments.size)
    turns = on_ranks(max(arguments.ranks), time_passes, scans, arguments.ranks, arguments.turns)
    passes = show(
        rows_of_passes(turns),
        "| patterns | ranks | plain, GB/s | einsum | derivation | of plain | by CPU | of einsum | "
        "by CPU | of 1 rank | by CPU | in cache |",
    )
    reduction = show(
        rows_of_reduction(
            {ranks: on_ranks(ranks, time_reduction) for ranks in arguments.reduction_ranks}
        ),
        "| ranks | bytes | ms, median | ms, least | CPU ms a rank | least, of 2 ranks' | CPU, of "
        "2 ranks' | a ring's steps | a tree's |",
    )
    model = show(
        rows_of_model(),
        "| ranks | ring over TCP, ms | tree over TCP, ms | tree over InfiniBand, ms |",
    )
    settings = {"patterns": arguments.patterns, "size": arguments.size, "turns": arguments.turns}
    settings |= {"numpy": np.__version__, "torch": torch.__version__, "cores": os.cpu_count()}
    settings |= {"latency_s": LATENCY_S, "bandwidth_bytes_per_s": BANDWIDTH_BYTES_PER_S}
    content = {**settings, "passes": passes, "reduction": reduction, "model": model}
    (arguments.out / "scale.json").write_text(json.dumps(content, indent=1) + "\n")


def write_scans(folder: Path, num_patterns: int, size: int) -> dict[str, tuple[Path, DataConfig]]:
    """The same Poisson counts as uint16 and as their square roots in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = np.random.default_rng(0).poisson(3.0, (num_patterns, size, size)).astype(np.uint16)
    y, x = np.divmod(np.arange(num_patterns), math.ceil(math.sqrt(num_patterns)))
    rest = {
        "ycoords": size + 3.0 * y,
        "xcoords": size + 3.0 * x,
        "probeGuess": np.ones((size, size), np.complex64),
    }
    counts_path, amplitude_path = folder / "counts.npz", folder / "amplitude.npz"
    np.savez(counts_path, diffraction=counts, **rest)  # type: ignore[arg-type]
    np.savez(amplitude_path, diffraction=np.sqrt(counts, dtype=np.float32), **rest)  # type: ignore[arg-type]
    return {
        "float32 amplitudes": (amplitude_path, DataConfig(measurement="amplitude")),
        "uint16 counts": (counts_path, DataConfig(measurement="counts")),
    }


# --- Passes


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Of all ranks.

    Attributes
    ----------
    rate
        Bytes read a second.
    cpu_s, busiest_cpu_s
        CPU seconds for one of these bytes, of all ranks together and of the one that took most.
    in_cache
        The part of the file that the page cache held before.
    """

    rate: float
    cpu_s: float
    busiest_cpu_s: float
    in_cache: float | None


def time_passes(
    scans: dict[str, tuple[Path, DataConfig]], ranks: list[int], turns: int
) -> dict[tuple[str, int, str], list[Turn]]:
    """Turns of every place, number of ranks and way of reading. Ranks that are too many for a turn
    sleep through it."""
    groups = {count: dist.new_group(list(range(count))) for count in ranks}
    sources = {
        name: PatternSource([read_scan(path, options=options)])
        for name, (path, options) in scans.items()
    }
    path, _ = scans["float32 amplitudes"]
    patterns = np.arange(len(sources["float32 amplitudes"].positions_px))
    x_norm = sources["float32 amplitudes"].amplitude(patterns)
    found: dict[tuple[str, int, str], list[Turn]] = {}

    def keep(
        place: str,
        count: int,
        way: str,
        num_bytes: int,
        action: Callable[[], object],
        in_cache: float | None = None,
    ) -> None:
        is_in = dist.get_rank() < count
        found.setdefault((place, count, way), []).append(
            timed(num_bytes, action if is_in else lambda: None, in_cache)
        )

    for turn in range(1 + turns):
        for count in ranks:
            rank = min(dist.get_rank(), count - 1)
            x_norm_shard, shard = (
                np.array_split(whole, count)[rank] for whole in (x_norm, patterns)
            )
            keep("in memory", count, "plain", x_norm.nbytes, x_norm_shard.sum)
            keep(
                "in memory", count, "einsum", x_norm.nbytes, partial(einsum_energies, x_norm_shard)
            )
            derive = partial(
                derive_intensity_scale, x_norm_shard, NPHOTONS, process_group=groups[count]
            )
            keep("in memory", count, "derivation", x_norm.nbytes, derive)
            for name, source in sources.items():
                path, _ = scans[name]
                num_bytes = source.scans[0].num_bytes
                ways: dict[str, tuple[int, Callable[[], object]]] = {
                    "plain": (1, partial(read_part, path, rank, count)),
                    "einsum": (1, partial(einsum_of_file, source, shard)),
                    "derivation": (2, partial(derive_from_file, source, shard, groups[count])),
                }
                for state, (way, (num_passes, action)) in product(("warm", "cold"), ways.items()):
                    in_cache = prepare(path, state)
                    keep(
                        f"{name} on disk, {state}",
                        count,
                        way,
                        num_passes * num_bytes,
                        action,
                        in_cache,
                    )
        if turn == 0:
            found.clear()  # what the first turn does once
    return found


def timed(num_bytes: int, action: Callable[[], object], in_cache: float | None) -> Turn:
    """The slowest rank's time, and all ranks' CPU time."""
    largest([0.0])  # all begin together
    started, cpu_started = time.perf_counter(), time.process_time()
    action()
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    slowest, busiest_cpu_s = largest([seconds, cpu_s])
    all_cpu_s = float(sum_floats(torch.tensor(cpu_s)))
    return Turn(
        rate=num_bytes / slowest,
        cpu_s=all_cpu_s / num_bytes,
        busiest_cpu_s=busiest_cpu_s / num_bytes,
        in_cache=in_cache,
    )


def prepare(path: Path, state: str) -> float:
    (drop_from_page_cache if state == "cold" else bring_into_page_cache)(path)
    largest([0.0])
    return part_in_page_cache(path)


def derive_from_file(source: PatternSource, shard: np.ndarray, group: dist.ProcessGroup) -> None:
    """r, then s, as a run's data module does."""
    size = source.scans[0].pattern_size
    rms_factor = scale_to_mean_energy(
        exact_energy_sum(source.chunks(shard), group), Fraction(size, 2) ** 2
    )
    derive_intensity_scale(
        (normalize(amplitude, rms_factor) for amplitude in source.chunks(shard)),
        NPHOTONS,
        process_group=group,
    )


def einsum_energies(patterns: np.ndarray) -> np.ndarray:
    return np.einsum("nij,nij->n", patterns, patterns, dtype=np.float64)


def einsum_of_file(source: PatternSource, shard: np.ndarray) -> None:
    """In pieces of the size that the derivation takes."""
    (scan,) = source.scans
    together = max(1, CHUNK_PIXELS // scan.pattern_size**2)
    for start in range(0, len(shard), together):
        einsum_energies(scan.diffraction[shard[start : start + together]])


def read_part(path: Path, rank: int, count: int) -> None:
    """This rank's part of the bytes of a file."""
    first, last = (path.stat().st_size * number // count for number in (rank, rank + 1))
    buffer = memoryview(bytearray(1 << 19))
    with path.open("rb", buffering=0) as stream:
        stream.seek(first)
        while first < last:
            first += stream.readinto(buffer[: last - first]) or 0


def rows_of_passes(found: dict[tuple[str, int, str], list[Turn]]) -> Iterator[dict[str, Any]]:
    fewest = min(count for _, count, _ in found)
    for place, count in dict.fromkeys(
        (place, count) for place, count, _ in sorted(found, key=lambda key: key[0])
    ):
        plain, einsum, derivation = (
            found[place, count, way] for way in ("plain", "einsum", "derivation")
        )
        yield {
            "patterns": place,
            "ranks": count,
            "plain_gb_per_s": fastest(plain),
            "einsum_gb_per_s": fastest(einsum),
            "derivation_gb_per_s": fastest(derivation),
            "of_plain": rounded(fastest(derivation) / fastest(plain)),
            "of_plain_by_cpu": cpu_ratio(derivation, plain),
            "of_einsum": rounded(fastest(derivation) / fastest(einsum)),
            "of_einsum_by_cpu": cpu_ratio(derivation, einsum),
            "of_fewest_ranks": rounded(
                fastest(derivation) / fastest(found[place, fewest, "derivation"])
            ),
            "of_fewest_ranks_by_busiest_cpu": cpu_ratio(
                derivation, found[place, fewest, "derivation"], "busiest_cpu_s"
            ),
            "in_cache": None
            if derivation[0].in_cache is None
            else rounded(statistics.median(turn.in_cache or 0.0 for turn in derivation)),
        }


def fastest(turns: list[Turn]) -> float:
    return rounded(max(turn.rate for turn in turns) / 1e9)


def cpu_ratio(turns: list[Turn], others: list[Turn], what: str = "cpu_s") -> float:
    """How many bytes a CPU second takes, as a part of what it takes the other way."""
    return rounded(
        statistics.median(
            getattr(other, what) / getattr(one, what)
            for one, other in zip(turns, others, strict=True)
        )
    )


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


# --- Reduction


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduction:
    """Milliseconds of each of many all_reduces, as the scale needs it, and CPU milliseconds that
    this rank takes for one."""

    ms: list[float]
    cpu_ms: float


def time_reduction() -> Reduction:
    def reduce() -> float:
        started = time.perf_counter()
        sum_integers(lambda: [0] * REDUCED_INTEGERS, REDUCED_INTEGERS)
        return 1e3 * (time.perf_counter() - started)

    for _ in range(10):
        reduce()  # the first ones connect the ranks
    cpu_started = time.process_time()
    milliseconds = [reduce() for _ in range(TURNS_OF_THE_REDUCTION)]
    return Reduction(
        ms=milliseconds, cpu_ms=1e3 * (time.process_time() - cpu_started) / TURNS_OF_THE_REDUCTION
    )


def rows_of_reduction(measured: dict[int, Reduction]) -> Iterator[dict[str, Any]]:
    fewest = min(measured)
    for ranks, reduction in measured.items():
        yield {
            "ranks": ranks,
            "bytes": REDUCED_BYTES,
            "ms": rounded(statistics.median(reduction.ms)),
            "least_ms": rounded(min(reduction.ms)),
            "cpu_ms": rounded(reduction.cpu_ms),
            "least_ms_of_fewest": rounded(min(reduction.ms) / min(measured[fewest].ms)),
            "cpu_ms_of_fewest": rounded(reduction.cpu_ms / measured[fewest].cpu_ms),
            "ring_steps_of_fewest": ring_steps(ranks) / ring_steps(fewest),
            "tree_steps_of_fewest": tree_steps(ranks) / tree_steps(fewest),
        }


def ring_steps(ranks: int) -> int:
    return 2 * (ranks - 1)


def tree_steps(ranks: int) -> int:
    return 2 * math.ceil(math.log2(ranks))


def rows_of_model() -> Iterator[dict[str, Any]]:
    for ranks in MODELLED_RANKS:
        yield {
            "ranks": ranks,
            "ring_tcp_ms": rounded(1e3 * ring_steps(ranks) * message_s(REDUCED_BYTES / ranks, TCP)),
            "tree_tcp_ms": rounded(1e3 * tree_steps(ranks) * message_s(REDUCED_BYTES, TCP)),
            "tree_infiniband_ms": rounded(
                1e3 * tree_steps(ranks) * message_s(REDUCED_BYTES, INFINIBAND)
            ),
        }


def message_s(num_bytes: float, network: str) -> float:
    return LATENCY_S[network] + num_bytes / BANDWIDTH_BYTES_PER_S[network]


def show(rows: Iterable[dict[str, Any]], head: str) -> list[dict[str, Any]]:
    kept = []
    print(f"{head}\n|{'---|' * (head.count('|') - 1)}")
    for row in rows:
        print(
            "| "
            + " | ".join(
                "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
                for value in row.values()
            )
            + " |"
        )
        kept.append(row)
    print(flush=True)
    return kept


if __name__ == "__main__":
    main()
