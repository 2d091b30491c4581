"""Inference from files to files."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptycho_dist.bundle import load_bundle
from ptycho_dist.config import DataConfig
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.scan import Measurement, Scan
from ptycho_dist.inference.product import require_geometry, write_product
from ptycho_dist.inference.reconstruct import reconstruct
from ptycho_dist.inference.records import NormalizationSource, ProbeSource, Reconstruction, timed
from ptycho_dist.inference.report import report_reconstruction
from ptycho_dist.inference.write import write_arrays, write_pictures, write_summary

logger = logging.getLogger(__name__)

PRODUCT = "product.h5"
"""The name that ptychodus gives it."""


def infer(
    bundle_path: Path,
    scan_path: Path,
    out_dir: Path,
    *,
    normalization: NormalizationSource = "bundle",
    probe: ProbeSource | None = None,
    measurement: Measurement | None = None,
    read: Mapping[str, Any] | None = None,
    refine_iterations: int = 0,
    refine_probe: bool = False,
    product: bool = False,
) -> Reconstruction:
    """Reconstruct a scan file with a bundle, and write arrays, pictures, `summary.json` and
    `report.html` to a directory, which is made if missing.

    Parameters
    ----------
    bundle_path, scan_path, out_dir
        Files to read, and the directory to write to.
    normalization, probe, refine_iterations, refine_probe
        See `reconstruct`.
    measurement, read
        What the scan file does not say of itself: `data.measurement`, and other keys of `data` as
        a nested mapping. By default these are the values that the bundle was trained with, except
        `data.diffraction`, which belongs to one scan.
    product
        Write a ptychodus product too, `product.h5`. A scan without geometry is refused before
        anything is computed.
    """
    seconds: dict[str, float] = {}
    with timed(seconds, "read"):
        bundle = load_bundle(bundle_path)
        scan = _read(scan_path, bundle.require_config(bundle_path).data, measurement, read or {})
        if product:
            _require_product_can_be_written(scan, scan_path, out_dir / PRODUCT)
    reconstruction = reconstruct(
        bundle,
        scan,
        normalization=normalization,
        probe=probe,
        refine_iterations=refine_iterations,
        refine_probe=refine_probe,
    )
    seconds |= reconstruction.summary.seconds
    with timed(seconds, "write"):
        write_arrays(reconstruction, out_dir / "reconstruction.npz")
        write_pictures(reconstruction, out_dir)
    summary = dataclasses.replace(
        reconstruction.summary, bundle=str(bundle_path), data=str(scan_path), seconds=seconds
    )
    reconstruction = dataclasses.replace(reconstruction, summary=summary)
    write_summary(summary, out_dir / "summary.json")
    logger.info(
        "wrote reconstruction.npz, amplitude.png, phase.png, probe.png and summary.json to %s",
        out_dir,
    )
    if product:
        write_product(reconstruction, scan, out_dir / PRODUCT)
        logger.info("wrote %s", out_dir / PRODUCT)
    report_reconstruction(
        bundle,
        reconstruction,
        out_dir / "report.html",
        title=f"Reconstruction of {scan_path.name}",
        run={
            "scan": scan_path.resolve(),
            "bundle": bundle_path.resolve(),
            "normalization": f"factor {summary.normalization.factor!r}, of the {normalization}",
            "device": summary.device,
            "seconds": ", ".join(f"{stage} {taken}" for stage, taken in seconds.items()),
        },
    )
    logger.info("wrote %s", out_dir / "report.html")
    return reconstruction


def _read(
    path: Path, trained_with: DataConfig, measurement: Measurement | None, given: Mapping[str, Any]
) -> Scan:
    """Read a scan; `given` takes precedence over what the bundle was trained with."""
    hdf5 = dataclasses.replace(trained_with.hdf5, **given.get("hdf5", {}))
    of_this_scan = {"path": str(path), "measurement": None, "diffraction": None}
    options = dataclasses.replace(trained_with, **{**of_this_scan, **given, "hdf5": hdf5})
    return read_scan(
        path, measurement, options=options, default_measurement=trained_with.measurement
    )


def _require_product_can_be_written(scan: Scan, scan_path: Path, path: Path) -> None:
    require_geometry(scan)
    if path.exists() and path.samefile(scan_path):
        raise ValueError(
            f"{scan_path}: found the file that the product would replace, expected another "
            "directory to write to"
        )
