"""The pairs `x_dp.hdf5`, `x_para.hdf5` that ptycho-vit and its foundation models are trained on;
either names both.

Facts from their documentation and dataset classes: `dp` (n, N, N) intensities; `object` (1, rows,
columns) with the attribute pixel_height_m; `probe` (variations, modes, N, N), the first variation
being the mean probe; `probe_position_x_m` and `probe_position_y_m`, which count from the middle of
the object. They are ptychodus products, of which less need be there.
"""

from __future__ import annotations

from dataclasses import replace

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_file import Hdf5File
from ptycho_dist.data.readers.ptychodus import companion, is_product, read_product

NEEDS = (
    "ptycho-vit: x_dp.hdf5 with dp, beside x_para.hdf5 with probe_position_x_m, "
    "probe_position_y_m, probe, object"
)


def is_pair(file: Hdf5File) -> bool:
    """Of the file with the patterns; the other one is a product in itself."""
    beside = companion(file.path)
    if not file.has("dp") or beside is None:
        return False
    with Hdf5File(beside) as other:
        return is_product(other)


def read_pair(file: Hdf5File, options: ScanConfig) -> ScanContent:
    """Read the file with the positions, whichever was named."""
    beside = companion(file.path)
    assert beside is not None
    with Hdf5File(beside) as other:
        return replace(read_product(other, options), path=file.path)
