"""Train physics-informed ptychography networks on many GPUs, with one dataset-level photon scale."""

from ptycho_dist.bundle import Bundle, load_bundle, save_bundle
from ptycho_dist.data.readers import read_scan
from ptycho_dist.inference.reconstruct import reconstruct
from ptycho_dist.model.loss import ScaledPoissonLoss
from ptycho_dist.scale.intensity_scale import IntensityScale, derive_intensity_scale
from ptycho_dist.scale.nphotons import resolve_nphotons
from ptycho_dist.training.train import train

__all__ = [
    "Bundle",
    "IntensityScale",
    "ScaledPoissonLoss",
    "derive_intensity_scale",
    "load_bundle",
    "read_scan",
    "reconstruct",
    "resolve_nphotons",
    "save_bundle",
    "train",
]
