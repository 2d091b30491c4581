"""The pairs `x_dp.hdf5`, `x_para.hdf5` that ptycho-vit and its foundation models are trained on;
either name stands for both.

Facts from their documentation and dataset classes: `dp` (n, N, N) intensities; `object` (1, rows,
columns) with the attribute pixel_height_m; `probe` (variations, modes, N, N), the first variation
being the mean probe; `probe_position_x_m` and `probe_position_y_m`, which count from the middle of
the object. They are ptychodus products that may lack the rest.
"""

from __future__ import annotations

from dataclasses import replace

from ptycho_dist.config import ScanConfig
from ptycho_dist.data.readers import ptychodus
from ptycho_dist.data.readers.content import ScanContent
from ptycho_dist.data.readers.hdf5_file import Hdf5File, hdf5_reader
from ptycho_dist.data.readers.pairs import companion


def _recognises(file: Hdf5File) -> bool:
    """Recognise the file with the patterns; the other one is a product in itself."""
    beside = companion(file.path)
    return (
        file.has("dp") and beside is not None and ptychodus.READER.recognises(beside, ScanConfig())
    )


def _read(file: Hdf5File, options: ScanConfig) -> ScanContent:
    beside = companion(file.path)
    assert beside is not None
    return replace(ptychodus.READER.read(beside, options), path=file.path)


READER = hdf5_reader(
    "ptycho-vit",
    needs="x_dp.hdf5 with dp, beside x_para.hdf5 with probe_position_x_m, probe_position_y_m, "
    "probe, object",
    recognises=_recognises,
    read=_read,
)
