"""Scan files of each format, as the programs write them that have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.data.readers.far_field import FarField

JOULES_AN_EV = 1.602176634e-19

DETECTOR = "entry_1/instrument_1/detector_1"


def write_cxi(
    path: Path, truth: FarField, change: Callable[[h5py.File], Any] = lambda file: None
) -> Path:
    """As cdtools writes it: translation is the sample's (x to the left, y up), rows of the detector
    go down, columns to the right."""
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        file[f"{DETECTOR}/data"] = truth.counts
        file["entry_1/data_1/data"] = h5py.SoftLink(f"/{DETECTOR}/data")
        pixel = truth.detector_pixel_m
        # (3, 2)
        file[f"{DETECTOR}/basis_vectors"] = np.array(
            [[0, -pixel, 0], [-pixel, 0, 0]], dtype=np.float32
        ).T
        file[f"{DETECTOR}/x_pixel_size"] = file[f"{DETECTOR}/y_pixel_size"] = pixel
        file[f"{DETECTOR}/distance"] = truth.distance_m
        file["entry_1/instrument_1/source_1/energy"] = truth.energy_eV * JOULES_AN_EV
        # The light's way over the sample, down and to the right, is -y and -x of the light, so +y
        # and +x of the sample.
        light = -truth.positions_m
        file["entry_1/sample_1/geometry_1/translation"] = np.stack(
            [-light[:, 1], -light[:, 0], np.zeros(len(light))], axis=1
        )
        file["entry_1/data_1/translation"] = h5py.SoftLink(
            "/entry_1/sample_1/geometry_1/translation"
        )
        file["entry_1/instrument_1/source_1/probe"] = truth.probe.astype(np.complex64)
        change(file)
    return path


def write_ptyd(
    path: Path,
    truth: FarField,
    change: Callable[[h5py.File], Any] = lambda file: None,
    *,
    linked: bool = False,
) -> Path:
    """As PtyScan saves it: 13 frames a chunk, `append`ed or `link`ed; the probe is not in it."""
    with h5py.File(path, "w") as file:
        for number, start in enumerate(range(0, len(truth.counts), 13)):
            part = slice(start, start + 13)
            name = f"{path.name}.part{number:03d}"
            if linked:
                with h5py.File(path.with_name(name), "w") as other:
                    write_chunk(other, truth, part)
                file[f"chunks/{number}"] = h5py.ExternalLink(f"/home/somebody/{name}", "/")
            else:
                write_chunk(file.create_group(f"chunks/{number}"), truth, part)
        meta = file.create_group("meta")
        meta["energy"], meta["distance"] = truth.energy_eV / 1e3, truth.distance_m
        meta["psize"] = np.full(2, truth.detector_pixel_m)
        meta["center"] = np.full(2, truth.counts.shape[-1] / 2)
        meta["label"] = "None"
        change(file)
    return path


def write_chunk(group: h5py.Group, truth: FarField, part: slice) -> None:
    group["data"] = truth.counts[part].astype(np.int32)
    group["indices"] = np.arange(len(truth.counts))[part]
    group["positions"] = truth.positions_m[part]
    group["weights"] = np.empty(0)


KEPT = np.array([5, 0, 29, 7, 8, 9, 10, 1, 22, 13, 4, 4])
"""Numbers of the patterns that a product has positions of, in its order."""


def write_product(path: Path, truth: FarField, numbers: np.ndarray | None = None) -> Path:
    numbers = np.arange(len(truth.counts)) if numbers is None else numbers
    positions = truth.positions_m[numbers]
    with h5py.File(path, "w") as file:
        file.attrs["name"], file.attrs["comments"] = "a product", ""
        file.attrs["detector_object_distance_m"], file.attrs["probe_energy_eV"] = (
            truth.distance_m,
            truth.energy_eV,
        )
        file.attrs["probe_photon_count"], file.attrs["exposure_time_s"] = 54321.0, 0.1
        file["probe_position_indexes"] = numbers
        file["probe_position_x_m"], file["probe_position_y_m"] = positions[:, 1], positions[:, 0]
        file["probe"], file["object"] = truth.probe[None], truth.object[None]
        for array in (file["probe"], file["object"]):
            array.attrs["pixel_width_m"] = array.attrs["pixel_height_m"] = truth.object_pixel_m
        file["object"].attrs["center_y_m"], file["object"].attrs["center_x_m"] = (
            truth.object_centre_m
        )
        file["object_layer_spacing_m"] = np.empty(0)
    return path


def write_npz_product(path: Path, truth: FarField, numbers: np.ndarray, **changed: Any) -> Path:
    positions, centre = truth.positions_m[numbers], truth.object_centre_m
    arrays: dict[str, Any] = {
        "name": "a product",
        "comments": "",
        "detector_object_distance_m": truth.distance_m,
        "probe_energy_eV": truth.energy_eV,
        "probe_photon_count": 54321.0,
        "exposure_time_s": 0.1,
        "probe_position_indexes": numbers,
        "probe_position_x_m": positions[:, 1],
        "probe_position_y_m": positions[:, 0],
        "probe": truth.probe[None],
        "probe_pixel_width_m": truth.object_pixel_m,
        "probe_pixel_height_m": truth.object_pixel_m,
        "object": truth.object[None],
        "object_center_x_m": centre[1],
        "object_center_y_m": centre[0],
        "object_pixel_width_m": truth.object_pixel_m,
        "object_pixel_height_m": truth.object_pixel_m,
        "object_layer_spacing_m": np.empty(0),
    }
    np.savez(path, **arrays | changed)
    return path


def write_patterns(path: Path, counts: np.ndarray, key: str = "dp") -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=counts, compression="gzip")
    return path


def positions_of(truth: FarField) -> dict[str, Any]:
    return {"ppX": truth.positions_m[:, 1], "ppY": truth.positions_m[:, 0]}


def write_datasets(path: Path, content: dict[str, Any], **settings: Any) -> Path:
    with h5py.File(path, "w", **settings) as file:
        for key, value in content.items():
            file[key] = value
    return path
