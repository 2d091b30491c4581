"""Train physics-informed ptychography networks on many GPUs, with one dataset-level photon
scale."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptycho_dist.bundle import Bundle, load_bundle, save_bundle
    from ptycho_dist.config import Config
    from ptycho_dist.data.readers import read_scan
    from ptycho_dist.inference.reconstruct import reconstruct
    from ptycho_dist.model.loss import ScaledPoissonLoss
    from ptycho_dist.scale.calibration import Calibration
    from ptycho_dist.scale.intensity_scale import IntensityScale, derive_intensity_scale
    from ptycho_dist.scale.nphotons import resolve_nphotons
    from ptycho_dist.training.train import train

__all__ = [
    "Bundle",
    "Calibration",
    "Config",
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

_HOMES = {
    "ptycho_dist.bundle": ("Bundle", "load_bundle", "save_bundle"),
    "ptycho_dist.config": ("Config",),
    "ptycho_dist.data.readers": ("read_scan",),
    "ptycho_dist.inference.reconstruct": ("reconstruct",),
    "ptycho_dist.model.loss": ("ScaledPoissonLoss",),
    "ptycho_dist.scale.calibration": ("Calibration",),
    "ptycho_dist.scale.intensity_scale": ("IntensityScale", "derive_intensity_scale"),
    "ptycho_dist.scale.nphotons": ("resolve_nphotons",),
    "ptycho_dist.training.train": ("train",),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562), so that using the scale alone does not wait for
    Lightning and Matplotlib."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
