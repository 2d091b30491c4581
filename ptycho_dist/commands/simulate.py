"""`ptycho-simulate`: simulate a scan and write it as a PtychoPINN NPZ."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path

import numpy as np

from ptycho_dist.command_line import command
from ptycho_dist.config import make_parser, read_config
from ptycho_dist.data.npz_writer import write_npz_scan
from ptycho_dist.physics.simulated_probes import DRAWN_PROBES, beam_diameter_px
from ptycho_dist.physics.simulation import simulate_scan
from ptycho_dist.progress import Progress

logger = logging.getLogger("ptycho_dist.simulate")


@command
def main() -> None:
    """Simulate a scan, write it, and log what was written."""
    parser = make_parser("Simulate a ptychographic scan.")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.npz",
        help="scan file to write; an existing one is replaced",
    )
    arguments = parser.parse_args()
    settings = read_config(arguments).simulation
    out: Path = arguments.out
    if out.suffix != ".npz":
        raise ValueError(f"--out is {str(out)!r}, expected a name that ends in .npz")

    start = time.monotonic()
    probe: str | np.ndarray = settings.probe
    if settings.probe not in DRAWN_PROBES:
        # Only now: this imports PyTorch.
        from ptycho_dist.data.readers.array_file import read_simulation_probe

        probe = read_simulation_probe(settings.probe)
    simulation = simulate_scan(
        **{**dataclasses.asdict(settings), "probe": probe}, report_progress=Progress("simulating")
    )
    write_npz_scan(
        out,
        diffraction=simulation.diffraction,
        positions_px=simulation.positions_px,
        probe=simulation.probe,
        transmission=simulation.object,
        nphotons=simulation.nphotons,
        settings=dataclasses.asdict(settings),
    )
    count, size, _ = simulation.diffraction.shape
    measured = np.mean(
        [np.sum(pattern.astype(np.float64) ** 2) for pattern in simulation.diffraction]
    )
    diameter_px = beam_diameter_px(simulation.probe)
    rows, columns = simulation.object.shape
    logger.info(
        "wrote %s: %.1f MB in %.1f s", out, out.stat().st_size / 1e6, time.monotonic() - start
    )
    logger.info("%d patterns of %d x %d px, object of %d x %d px", count, size, size, rows, columns)
    logger.info(
        f"mean photons per pattern: {measured:,.1f} measured, {simulation.nphotons:,.1f} without "
        "noise"
    )
    logger.info(
        "overlap %.0f %%: steps of %g px, beam of %.1f px",
        100 * (1 - settings.step_px / diameter_px),
        settings.step_px,
        diameter_px,
    )


if __name__ == "__main__":
    main()
