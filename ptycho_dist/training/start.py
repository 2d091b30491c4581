"""Where training begins: a new network or that of a bundle; the scans' probes, or better ones."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ptycho_dist.bundle import Bundle, load_bundle
from ptycho_dist.config import Config
from ptycho_dist.data.module import ScanDataModule
from ptycho_dist.data.normalization import normalize
from ptycho_dist.distributed import from_rank_zero, rank, require_same, run_together
from ptycho_dist.model.first_probe import NUM_PATTERNS, find_first_probe
from ptycho_dist.model.probe_modes import add_modes
from ptycho_dist.physics.scan_positions import central_positions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where a run begins.

    Attributes
    ----------
    config
        Of the run.
    bundle
        What `train.init` names; None without it, and where a checkpoint tells everything.
    resumed
        Parameters will come from a checkpoint: only their shapes matter.
    """

    config: Config
    bundle: Bundle | None
    resumed: bool

    @classmethod
    def of_run(cls, config: Config, *, resumed: bool) -> Start:
        """Read the bundle that `train.init` names; a collective.

        Raises
        ------
        ValueError
            It can't be read, is another one on some rank, or its network is of another width; or
            modes were asked for that nobody trains.
        """
        if config.model.probe_modes is not None and not config.model.probe_trainable:
            raise ValueError(
                f"config: model.probe_modes is {config.model.probe_modes}, expected null where "
                "model.probe_trainable is false"
            )
        path = config.train.init
        if path is None or resumed:
            return cls(config=config, bundle=None, resumed=resumed)
        bundle = run_together(lambda: load_bundle(path))
        require_same({f"content of {path}": hashlib.sha256(Path(path).read_bytes()).hexdigest()})
        width, expected = config.model.base_width, bundle.require_config(path).model.base_width
        if width != expected:
            raise ValueError(
                f"model.base_width is {width}, expected {expected}, which the network of "
                f"train.init {path} has"
            )
        return cls(config=config, bundle=bundle, resumed=resumed)

    def load_weights(self, network: nn.Module, data: ScanDataModule) -> None:
        """Put the bundle's weights into a new network."""
        if self.bundle is None:
            return
        path, pattern_size = self.config.train.init, data.scans[0].pattern_size
        if pattern_size != self.bundle.pattern_size:
            raise ValueError(
                f"{data.scans[0].path}: found patterns of {pattern_size} x {pattern_size}, "
                f"expected {self.bundle.pattern_size} x "
                f"{self.bundle.pattern_size}, which the network of train.init {path} was trained on"
            )
        network.load_state_dict(dict(self.bundle.weights))
        if rank() == 0:
            logger.info(
                "init: the network of %s; intensity_scale there %r, here %r; factor r there %r, "
                "here %r",
                path,
                self.bundle.intensity_scale,
                data.intensity_scale.value,
                self.bundle.rms_factor,
                data.normalization.factor,
            )

    def probes(self, data: ScanDataModule) -> Tensor | None:
        """Where trainable probes begin, complex64 (scans, modes, N, N), the same on every rank;
        None where probes are not trained."""
        if not self.config.model.probe_trainable:
            if (
                rank() == 0
                and self.bundle is not None
                and any(scan.fingerprint in self.bundle.refined_probes for scan in data.scans)
            ):
                logger.warning(
                    "the refined probe of train.init is not used: model.probe_trainable is false, "
                    "so the scan's own is"
                )
            return None
        # Rank 0's are everybody's: processors of different makes round differently.
        return torch.from_numpy(
            from_rank_zero(
                lambda: np.stack([self._probe(data, number) for number in range(len(data.scans))])
            )
        )

    def _probe(self, data: ScanDataModule, number: int) -> np.ndarray:
        """First probe of scan number `number`, complex64 (modes, N, N)."""
        scan = data.scans[number]
        num_modes = self.config.model.probe_modes or len(scan.probe)
        if num_modes < len(scan.probe):
            raise ValueError(
                f"model.probe_modes is {num_modes}, expected at least the {len(scan.probe)} modes "
                f"of {scan.path}"
            )
        own = add_modes(torch.from_numpy(scan.probe), num_modes)
        patterns = (
            data.subset.train[data.source.scan_of(data.subset.train) == number]
            - data.source.first_pattern[number]
        )
        if self.resumed or len(patterns) == 0:
            return own.numpy()
        refined = None if self.bundle is None else self.bundle.refined_probes.get(scan.fingerprint)
        if refined is not None and refined.shape == own.shape:
            logger.info("init: %s begins with the refined probe of train.init", scan.path)
            return refined
        patterns = patterns[central_positions(scan.positions_px[patterns], NUM_PATTERNS)]
        x_norm = normalize(
            scan.amplitude(patterns), data.normalization.factor / data.brightness[number]
        )
        mask = None if scan.mask is None else torch.from_numpy(scan.mask)
        return find_first_probe(
            torch.from_numpy(x_norm), torch.from_numpy(scan.positions_px[patterns]), own, mask
        ).numpy()
