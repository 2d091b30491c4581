#!/usr/bin/env python
"""What reading single patterns costs, by how the file stores them: python benchmarks/layouts.py
--out DIR

Training takes groups of patterns from anywhere in the file. Of patterns that are packed together,
one can't be had without unpacking all of them. Each file holds the same counts, uint16, and is read
by one thread from the page cache: batches of 32 patterns at random as training reads them, and all
patterns in their order as the statistics do. The layouts take turns; medians are told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from ptycho_dist import read_scan
from ptycho_dist.config import DataConfig, Hdf5Config
from ptycho_dist.data.pattern_source import PatternSource
from ptycho_dist.data.scan import Scan
from ptycho_dist.data.staging import stage_scans

BATCH_PATTERNS = 32
PLAIN_HDF5 = Hdf5Config(
    diffraction="/diffraction", positions="/positions", positions_unit="px", probe="/probe"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for the files and layouts.json"
    )
    parser.add_argument("--patterns", type=int, default=4096)
    parser.add_argument("--size", type=int, default=64, help="N")
    parser.add_argument(
        "--together", type=int, default=64, help="patterns a chunk, where they are stored together"
    )
    parser.add_argument("--batches", type=int, default=20, help="random batches a turn")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    paths = write_layouts(arguments.out, arguments.patterns, arguments.size, arguments.together)
    scans: dict[str, Scan] = {}
    opening: dict[str, float] = {}
    for name, path in paths.items():
        started = time.perf_counter()
        scans[name] = read_scan(path, options=options_of(path))
        opening[name] = time.perf_counter() - started
    random: dict[str, list[float]] = {name: [] for name in paths}
    in_order: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(arguments.turns):
        batches = np.random.default_rng(turn).integers(
            0, arguments.patterns, (arguments.batches, BATCH_PATTERNS)
        )
        for name, scan in scans.items():
            source = PatternSource([scan])
            random[name].append(patterns_a_second(source.amplitude(batch) for batch in batches))
            in_order[name].append(patterns_a_second(source.chunks(np.arange(arguments.patterns))))
    rows: list[dict[str, float | str]] = [
        {
            "layout": name,
            "megabytes": round(path.stat().st_size / 1e6, 1),
            "seconds_to_open": round(opening[name], 2),
            "random_patterns_per_s": float(f"{statistics.median(random[name]):.3g}"),
            "in_order_patterns_per_s": float(f"{statistics.median(in_order[name]):.3g}"),
        }
        for name, path in paths.items()
    ]
    print(
        "| layout | MB | seconds to open | patterns/s at random | patterns/s in order "
        "|\n|---|---|---|---|---|"
    )
    for row in rows:
        print(
            "| "
            + " | ".join(
                f"{value:.5g}" if isinstance(value, float) else value for value in row.values()
            )
            + " |"
        )
    (arguments.out / "layouts.json").write_text(
        json.dumps({"patterns": arguments.patterns, "size": arguments.size, "rows": rows}, indent=1)
        + "\n"
    )


def patterns_a_second(batches: Iterable[np.ndarray]) -> float:
    started = time.perf_counter()
    count = sum(len(batch) for batch in batches)
    return count / (time.perf_counter() - started)


def options_of(path: Path) -> DataConfig:
    return DataConfig(
        measurement="counts", hdf5=PLAIN_HDF5 if path.suffix == ".h5" else Hdf5Config()
    )


def write_layouts(folder: Path, num_patterns: int, size: int, together: int) -> dict[str, Path]:
    """Poisson counts under a bright middle, as a detector has them, in every layout."""
    y, x = np.indices((size, size)) - size / 2
    mean = 2000 * np.exp(-np.hypot(y, x) / (size / 16))
    random = np.random.default_rng(0)
    counts = np.stack(
        [random.poisson(mean * random.uniform(0.5, 1.5)) for _ in range(num_patterns)]
    ).astype(np.uint16)
    positions_px = size + 3.0 * np.stack(
        np.divmod(np.arange(num_patterns), int(num_patterns**0.5)), axis=1
    )
    probe = np.exp(-(y**2 + x**2) / (2 * (size / 6) ** 2)).astype(np.complex64)
    rest = {"ycoords": positions_px[:, 0], "xcoords": positions_px[:, 1], "probeGuess": probe}
    paths: dict[str, Path] = {}
    for name, write in {
        "NPZ, (n, N, N)": lambda path: np.savez(path, diffraction=counts, **rest),
        "NPZ, (N, N, n)": lambda path: np.savez(
            path, diffraction=np.ascontiguousarray(np.moveaxis(counts, 0, 2)), **rest
        ),
        "NPZ, compressed": lambda path: np.savez_compressed(path, diffraction=counts, **rest),
    }.items():
        paths[name] = folder / f"{len(paths)}.npz"
        write(paths[name])
    gzip, bitshuffle = {"compression": "gzip", "compression_opts": 4}, dict(hdf5plugin.Bitshuffle())
    chunks = {1: (1, size, size), together: (together, size, size)}
    for name, storage in {
        "HDF5, contiguous": {},
        "HDF5, gzip, chunk (1, N, N)": {"chunks": chunks[1], **gzip},
        f"HDF5, gzip, chunk ({together}, N, N)": {"chunks": chunks[together], **gzip},
        "HDF5, bitshuffle-LZ4, chunk (1, N, N)": {"chunks": chunks[1], **bitshuffle},
        f"HDF5, bitshuffle-LZ4, chunk ({together}, N, N)": {
            "chunks": chunks[together],
            **bitshuffle,
        },
    }.items():
        paths[name] = folder / f"{len(paths)}.h5"
        with h5py.File(paths[name], "w") as file:
            file.create_dataset("diffraction", data=counts, **storage)
            file["positions"], file["probe"] = positions_px, probe
    packed = paths[f"HDF5, gzip, chunk ({together}, N, N)"]
    (paths["the same, repacked to NPZ"],) = stage_scans(
        [packed], folder / "repacked", repack=options_of(packed)
    )
    return paths


if __name__ == "__main__":
    main()
