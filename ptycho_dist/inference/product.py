"""A reconstruction as a ptychodus product: HDF5 with probe, object, positions in metres, energy,
distance and losses.

The layout is that of ptychodus' `save_product` (github.com/AdvancedPhotonSource/ptychodus);
docs/file_formats.md describes it.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np

from ptycho_dist.atomic_file import replacing
from ptycho_dist.data.readers.hdf5_patterns import numbers_in_file
from ptycho_dist.data.scan import Scan, ScanError
from ptycho_dist.inference.records import Reconstruction, Summary


def require_geometry(scan: Scan) -> None:
    """Raise a `ScanError` if the geometry that turns pixels into metres is incomplete; it names the
    options that give what is missing."""
    if scan.geometry is None:
        missing = ", ".join(f"no {name}" for name in scan.missing_geometry)
        options = " ".join(f"--data.{name} NUMBER" for name in scan.missing_geometry)
        raise ScanError(
            scan.path,
            "geometry",
            missing,
            f"the numbers that give a ptychodus product its metres: {options}",
        )


def write_product(reconstruction: Reconstruction, scan: Scan, path: Path) -> None:
    """Write the product of a scan, or replace one.

    In a product `|FFT(probe * patch)|**2`, FFT norm "ortho", predicts photons. So the probe holds
    the square root of counts, and its energy over all modes is the number of photons of a pattern
    where the object is transparent: nphotons, by the definition of the scale. The object is
    unchanged.
    """
    import h5py

    require_geometry(scan)
    assert scan.geometry is not None
    pixel_m = scan.object_pixel_m or scan.geometry.object_pixel_m(scan.pattern_size)
    origin_m = np.array(scan.origin_m or (0.0, 0.0))
    positions_m = origin_m + pixel_m * reconstruction.positions_px
    centre_m = origin_m + pixel_m * (
        reconstruction.origin_px + np.array(reconstruction.object.shape) / 2
    )
    calibration = reconstruction.summary.calibration
    amplitude = reconstruction.units.predicted_amplitude
    losses = _losses(reconstruction.summary)
    pixel = {"pixel_width_m": pixel_m, "pixel_height_m": pixel_m}
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(
            {
                "name": scan.path.stem,
                "comments": f"ptycho_dist {version('ptycho_dist')}, network trained on the subset "
                f"{calibration.subset_fingerprint}",
                "photon_energy_eV": scan.geometry.energy_eV,
                "probe_energy_eV": scan.geometry.energy_eV,  # its older name
                "detector_object_distance_m": scan.geometry.distance_m,
                "probe_photon_count": calibration.nphotons
                * (amplitude / calibration.intensity_scale) ** 2,
                "exposure_time_s": 0.0,  # not known
            }
        )
        file["probe_position_indexes"] = numbers_in_file(scan.diffraction)
        file["probe_position_y_m"], file["probe_position_x_m"] = positions_m.T
        file["probe"] = (amplitude * reconstruction.probe)[None].astype(np.complex64)
        file["probe"].attrs.update(pixel)
        file["object"] = reconstruction.object[None]
        file["object"].attrs.update({"center_y_m": centre_m[0], "center_x_m": centre_m[1], **pixel})
        file["object_layer_spacing_m"] = np.empty(0)
        file["loss_epochs"], file["loss_values"] = np.arange(len(losses)), np.array(losses)


def _losses(summary: Summary) -> tuple[float, ...]:
    """Return the deviance per pixel after each iteration of the refinement, else after each
    correction of the network, else of the object alone."""
    passes = summary.refinement or summary.corrections
    return passes.deviance_per_pixel if passes else (summary.deviance_per_pixel,)
