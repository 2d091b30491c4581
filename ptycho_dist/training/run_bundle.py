"""The bundle of a run: what the run has learned so far, with the calibration of its data."""

from __future__ import annotations

from collections.abc import Sequence

from ptycho_dist.bundle import Bundle
from ptycho_dist.config import Config
from ptycho_dist.data.scan import Scan
from ptycho_dist.model.lightning_module import PtychographyModule


def bundle_of(module: PtychographyModule, scans: Sequence[Scan], config: Config) -> Bundle:
    """Return a bundle whose weights are those of the module, not copies."""
    probes = module.probes.detach().cpu().numpy()
    by_scan = {scan.fingerprint: probe for scan, probe in zip(scans, probes, strict=True)}
    return Bundle(
        config=config,
        calibration=module.calibration,
        gain=module.gain,
        probe=probes[0],
        refined_probes=by_scan if config.model.probe_trainable else {},
        weights=module.network.state_dict(),
    )
