#!/usr/bin/env python
"""How fast a trained network reconstructs a scan, from the file to the pictures: python
benchmarks/inference.py --out DIR

First the whole of `infer`: its passes, and the peak of its anonymous memory (RssAnon: neither page
cache nor libraries) above what the process had before. Then patterns a second of its parts: the
network alone; a pass without the network, which is stitching (patches are read off the object, and
added up in the light of their probes); judging an object; a pass that only gets the patterns; and
the alignment of patches that were reconstructed alone (C = 1). The parts take turns, and the least
time of each is told, so what else runs on the machine disturbs their ratios little. All of it once
with the patterns held in memory, and once with the patterns streamed.

A scan of any size is made of one small scan and its bundle, laid side by side, so a large one takes
as many passes as the small one. Without --bundle and --data these are a simulated scan of dead
leaves and a network that is trained on it for an epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptycho_dist import load_bundle, read_scan, train
from ptycho_dist.config import SimulationConfig, make_parser, read_config
from ptycho_dist.data import placement
from ptycho_dist.data.npz_writer import write_npz_scan
from ptycho_dist.data.scan import Scan
from ptycho_dist.data.scan_writer import write_scan
from ptycho_dist.inference.alignment import AlignedPatches
from ptycho_dist.inference.infer import infer
from ptycho_dist.inference.passes import corrected_object, deviance_of_scan, first_estimate_of_scan
from ptycho_dist.inference.scan_patterns import ScanPatterns
from ptycho_dist.inference.stitch import StitchedObject
from ptycho_dist.memory_supply import MemorySupply
from ptycho_dist.physics.patches import extract_patches
from ptycho_dist.physics.probe import illumination, normalize_probe
from ptycho_dist.physics.simulation import simulate_scan

CONFIG = Path(__file__).parents[1] / "configs" / "default.yaml"
STATES = {"held": 1.0, "streamed": 0.0}
"""`placement.LARGEST_PART` for each."""
PARTS = ("network", "stitching", "judging", "reading", "alignment")
BATCHES = 4
"""That lie on the device, for the parts that do not depend on the size of the scan."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="directory for scans, reconstructions and inference.json",
    )
    parser.add_argument("--bundle", type=Path, help="a trained network, and")
    parser.add_argument("--data", type=Path, help="a scan that it reconstructs")
    parser.add_argument(
        "--patterns",
        type=int,
        nargs="+",
        default=[1000, 10_000, 100_000] if on_gpu else [1000, 10_000],
    )
    parser.add_argument(
        "--states", nargs="+", choices=STATES, default=list(STATES), help="of the patterns"
    )
    parser.add_argument("--turns", type=int, default=5, help="of the parts")
    arguments = parser.parse_args()
    if (arguments.bundle is None) != (arguments.data is None):
        parser.error("--bundle and --data belong together: give both or neither")
    use_one_thread()
    bundle, data = (
        (arguments.bundle, arguments.data)
        if arguments.bundle
        else simulate_and_train(arguments.out)
    )
    rows: list[dict[str, Any]] = []
    seconds_a_pattern = None
    for num_patterns in arguments.patterns:
        if seconds_a_pattern is not None:
            minutes = seconds_a_pattern * num_patterns * len(arguments.states) / 60
            print(f"{num_patterns} patterns will take about {minutes:.1f} minutes", flush=True)
        scan = tile(bundle, data, num_patterns, arguments.out / f"{num_patterns}.npz")
        for state in arguments.states:
            rows.append(in_fresh_process(bundle, scan, state, arguments))
            show(rows[-1], with_head=len(rows) == 1)
        seconds_a_pattern = 1 / min(
            row["end_to_end_patterns_per_s"] for row in rows if row["patterns"] == num_patterns
        )
        settings = {
            "bundle": str(bundle),
            "data": str(data),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        (arguments.out / "inference.json").write_text(
            json.dumps({**settings, "rows": rows}, indent=1) + "\n"
        )
        scan.unlink()


def use_one_thread() -> None:
    """Of the CPU, where that is what computes: threads that wait for a core would be measured
    too."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)


def simulate_and_train(out: Path) -> tuple[Path, Path]:
    """A bundle and the scan that it was trained on; what lies there already is used again."""
    data, run_dir = out / "small.npz", out / "run"
    if not (run_dir / "bundle.zip").exists():
        settings = dataclasses.asdict(SimulationConfig(scan_shape=(24, 24), seed=0))
        scan = simulate_scan(**settings)
        write_npz_scan(
            data,
            diffraction=scan.diffraction,
            positions_px=scan.positions_px,
            probe=scan.probe,
            transmission=scan.object,
            nphotons=scan.nphotons,
            settings=settings,
        )
        told = [
            f"--config={CONFIG}",
            f"--data.path={data}",
            f"--train.run_dir={run_dir}",
            "--train.epochs=1",
        ]
        train(read_config(make_parser("").parse_args(told)))
    return run_dir / "bundle.zip", data


class Repeated:
    """The patterns of a scan again and again, each still in its file."""

    def __init__(self, scan: Scan, num_patterns: int) -> None:
        self._patterns = scan.diffraction
        self.shape = (num_patterns, *scan.diffraction.shape[1:])
        self.dtype = scan.diffraction.dtype

    def __getitem__(self, patterns: np.ndarray) -> np.ndarray:
        return self._patterns[patterns % self._patterns.shape[0]]


def tile(bundle: Path, data: Path, num_patterns: int, path: Path) -> Path:
    """Write a scan of so many patterns: copies of a small one, their beams half a pattern apart."""
    scan = read_scan(
        data, default_measurement=load_bundle(bundle).require_config().data.measurement
    )
    copy, pattern = np.divmod(np.arange(num_patterns), scan.num_patterns)
    a_row = int(np.ceil(np.sqrt(copy[-1] + 1)))
    pitch_px = np.ptp(scan.positions_px, axis=0) + scan.pattern_size / 2
    positions_px = scan.positions_px[pattern] + np.stack(np.divmod(copy, a_row), axis=1) * pitch_px
    tiled = dataclasses.replace(
        scan, diffraction=Repeated(scan, num_patterns), positions_px=positions_px, object_guess=None
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_scan(tiled, path)
    return path


def in_fresh_process(
    bundle: Path, scan: Path, state: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Memory that an earlier measurement has left to the process would count for the later
    one's."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(
        target=measure,
        args=(bundle, scan, state, arguments.turns, arguments.out / scan.stem, results),
    )
    process.start()
    while process.is_alive() and results.empty():
        time.sleep(0.05)
    if results.empty():
        raise SystemExit(f"{scan}: the measurement failed")
    row = results.get()
    process.join()
    return row


def measure(bundle: Path, scan: Path, state: str, turns: int, out: Path, results: Any) -> None:
    logging.getLogger("ptycho_dist").setLevel(logging.WARNING)
    use_one_thread()
    placement.LARGEST_PART = STATES[state]
    results.put(
        {"state": state, **end_to_end(bundle, scan, out), **rates_of_parts(bundle, scan, turns)}
    )


def end_to_end(bundle: Path, scan: Path, out: Path) -> dict[str, Any]:
    """From the files to the report."""
    with PeakMemory() as memory:
        started, cpu_started = time.perf_counter(), time.process_time()
        reconstruction = infer(bundle, scan, out)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    summary = reconstruction.summary
    num_patterns = summary.num_patterns
    held = 4 * num_patterns * summary.pattern_size**2 if placement.LARGEST_PART else 0
    return {
        "patterns": num_patterns,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "end_to_end_patterns_per_s": rounded(num_patterns / seconds),
        "end_to_end_cpu_ms_per_pattern": rounded(1e3 * cpu_seconds / num_patterns),
        "seconds": {**summary.seconds, "all": round(seconds, 3)},
        "passes": summary.corrections.passes if summary.corrections else 1,
        "deviance_per_pixel": summary.deviance_per_pixel,
        "peak_megabytes": rounded(memory.peak_bytes / 1e6),
        "held_megabytes": rounded(held / 1e6),
        "object_megabytes": rounded(reconstruction.object.nbytes / 1e6),
        "peak_gpu_megabytes": rounded(torch.cuda.max_memory_allocated() / 1e6)
        if torch.cuda.is_available()
        else None,
    }


class PeakMemory:
    """The most anonymous memory that this process has had within, above what it had before; looked
    at every 5 ms."""

    peak_bytes = 0

    def __enter__(self) -> PeakMemory:
        self._before = MemorySupply.of_this_rank().own
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.peak_bytes = max(self.peak_bytes, MemorySupply.of_this_rank().own - self._before)


@torch.inference_mode()
def rates_of_parts(bundle_path: Path, scan_path: Path, turns: int) -> dict[str, float]:
    """Patterns a second of each part of a pass; the network and the alignment on some batches, all
    others over the whole scan."""
    bundle, scan = load_bundle(bundle_path), read_scan(scan_path)
    patterns = ScanPatterns(scan, bundle.calibration.rms_factor)
    network = bundle.build_model(patterns.device)
    stitched = StitchedObject(
        scan.positions_px, normalize_probe(torch.from_numpy(scan.probe)).to(patterns.device)
    )
    object_ = first_estimate_of_scan(stitched, patterns)
    aligned = AlignedPatches(stitched)
    resident = []
    for positions_px, x_norm in itertools.islice(
        patterns.batches(np.random.default_rng(0).permutation(scan.num_patterns)), BATCHES
    ):
        corners, probe = stitched.place(positions_px)
        resident.append(
            (
                x_norm,
                probe,
                extract_patches(object_[None], corners[None], scan.pattern_size)[0],
                corners,
            )
        )
    num_resident = sum(len(x_norm) for x_norm, *_ in resident)

    def run_network() -> None:
        for x_norm, probe, estimate, _ in resident:
            network(x_norm, probe, estimate)

    def read() -> None:
        for _ in patterns.batches():
            pass

    def stitch() -> None:
        unchanged = lambda x_norm, probe, estimate, mask: estimate  # noqa: E731
        corrected_object(unchanged, object_, stitched, patterns)  # type: ignore[arg-type]

    def judge() -> None:
        deviance_of_scan(object_, stitched, patterns, bundle.intensity_scale**2)

    def align() -> None:
        for _, probe, estimate, corners in resident:
            aligned.add(estimate, illumination(probe), corners)

    on_batches, on_scan = num_resident, scan.num_patterns
    parts = list(
        zip(
            PARTS,
            (run_network, stitch, judge, read, align),
            (on_batches, on_scan, on_scan, on_scan, on_batches),
            strict=True,
        )
    )
    least = dict.fromkeys(PARTS, float("inf"))
    for _ in range(turns):
        for name, part, _ in parts:
            least[name] = min(least[name], seconds_of(part))
    rates = {f"{name}_patterns_per_s": rounded(count / least[name]) for name, _, count in parts}
    return {
        **rates,
        "stitching_of_network": rounded(
            rates["stitching_patterns_per_s"] / rates["network_patterns_per_s"]
        ),
    }


def seconds_of(part: Callable[[], None]) -> float:
    """On a GPU; without one, of the CPU, which other work on the machine disturbs less than the
    clock on the wall."""
    if not torch.cuda.is_available():
        started = time.process_time()
        part()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    part()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def show(row: dict[str, Any], *, with_head: bool) -> None:
    if with_head:
        clock = (
            "by the wall"
            if torch.cuda.is_available()
            else "of CPU time, one thread; all: by the wall"
        )
        print(
            f"patterns a second {clock}; MB: peak of anonymous memory, of it patterns that are "
            "held, and the object's size"
        )
        heads = (
            *PARTS,
            "stitching / network",
            "all",
            "passes",
            "CPU ms a pattern",
            "MB",
            "held",
            "object",
        )
        print("| patterns | | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 2) + "|")
    keys = (f"{part}_patterns_per_s" for part in PARTS)
    more = (
        "stitching_of_network",
        "end_to_end_patterns_per_s",
        "passes",
        "end_to_end_cpu_ms_per_pattern",
    )
    memory = ("peak_megabytes", "held_megabytes", "object_megabytes")
    print(
        "| "
        + " | ".join(
            [
                str(row["patterns"]),
                row["state"],
                *(f"{row[key]:g}" for key in (*keys, *more, *memory)),
            ]
        )
        + " |",
        flush=True,
    )


if __name__ == "__main__":
    main()
