"""The bundle of a run: what the run has learned so far, with the scale and the records of its
data."""

from __future__ import annotations

from ptycho_dist.bundle import Bundle, software_versions
from ptycho_dist.config import Config
from ptycho_dist.data.module import ScanDataModule
from ptycho_dist.model.lightning_module import PtychographyModule


def bundle_of_run(config: Config, data: ScanDataModule, module: PtychographyModule) -> Bundle:
    """Its weights are those of the module, not copies."""
    probes = module.probes.detach().cpu().numpy()
    refined = config.model.probe_trainable
    return Bundle(
        config=config,
        scale=data.intensity_scale,
        nphotons_source=data.nphotons.source,
        gain=1.0 if module.loss.log_gain is None else float(module.loss.log_gain.detach().exp()),
        rms_factor=data.normalization.factor,
        subset_fingerprint=data.subset.fingerprint,
        probe=probes[0],
        refined_probes={
            scan.fingerprint: probe for scan, probe in zip(data.scans, probes, strict=True)
        }
        if refined
        else {},
        weights=module.network.state_dict(),
        versions=software_versions(),
    )
