"""Write a scan as HDF5, compressed and self-describing, for archives and for other programs::

    /                 attributes format = "ptycho_dist scan", version = 1, measurement, nphotons, software
    /diffraction      (n, N, N) in its own type: amplitude or counts, as `measurement` says;
                      zero frequency at [N // 2, N // 2]
    /positions        (n, 2) float64 as (y, x) = (row, column), units = "px" of the object;
                      origin_m: where (0, 0) lies, metres
    /probe            (modes, N, N) complex64
    /mask             (N, N) bool, False at masked pixels
    /object           (rows, columns) complex64: a reference; its pixel [0, 0] has the position (0, 0)
    /energy_eV, /distance_m, /detector_pixel_m    one number each, with its unit

What a scan does not have is left out. `read_scan` needs no options. The names are those of
`data.hdf5`.
"""  # noqa: E501  a table

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from ptycho_dist.data.pieces import stored_pieces
from ptycho_dist.data.scan import Scan

FORMAT = "ptycho_dist scan"
VERSION = 1
_UNITS = {"energy_eV": "eV", "distance_m": "m", "detector_pixel_m": "m"}


def write_hdf5(scan: Scan, path: Path) -> None:
    """Write a scan that was read, in pieces, in its own type; `readers.own_hdf5` reads it back to
    the bit. The patterns are not looked at."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs.update({"format": FORMAT, "version": VERSION, "measurement": scan.measurement})
        file.attrs["software"] = f"ptycho_dist {version('ptycho_dist')}"
        if scan.nphotons is not None:
            file.attrs["nphotons"] = scan.nphotons
        positions = file.create_dataset("positions", data=scan.positions_px)
        positions.attrs.update({"units": "px", "axes": "y, x"})
        if scan.origin_m is not None:
            positions.attrs["origin_m"] = scan.origin_m
        if scan.geometry is not None:
            for name, value in asdict(scan.geometry).items():
                file[name] = value
                file[name].attrs["units"] = _UNITS[name]
        probe = scan.probe if len(scan.probe) else None
        for name, array in (("probe", probe), ("mask", scan.mask), ("object", scan.object_guess)):
            if array is not None:
                file[name] = array
        # One pattern per chunk: each is unpacked alone. Level 1 is nearly as small as 9 on counts,
        # and several times faster.
        shape = scan.diffraction.shape
        diffraction = file.create_dataset(
            "diffraction",
            shape,
            scan.diffraction.dtype,
            chunks=(1, *shape[1:]),
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
        for where, patterns in stored_pieces(scan):
            diffraction[where] = patterns
