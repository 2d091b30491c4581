"""Where training begins: the module, its network new or from a bundle, and the first probes."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptycho_dist.bundle import Bundle, load_bundle, software_versions
from ptycho_dist.config import Config
from ptycho_dist.data.prepare import PreparedData
from ptycho_dist.distributed import from_rank_zero, rank, require_same, run_together, world_size
from ptycho_dist.model.first_probe import NUM_PATTERNS, find_first_probe
from ptycho_dist.model.lightning_module import PtychographyModule
from ptycho_dist.model.loss import LossFactory, ScaledPoissonLoss
from ptycho_dist.model.probe_modes import add_modes
from ptycho_dist.physics.scan_positions import central_positions
from ptycho_dist.scale.normalization import normalize

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where a run begins.

    Attributes
    ----------
    config
        Of the run.
    init
        The bundle that `train.init` names; None without it, and where a checkpoint gives all.
    resumed
        Parameters will come from a checkpoint: only their shapes matter.
    """

    config: Config
    init: Bundle | None = None
    resumed: bool = False

    @classmethod
    def of_run(cls, config: Config, *, resumed: bool) -> Start:
        """Read the bundle that `train.init` names. A collective.

        Raises
        ------
        ValueError
            The bundle can't be read, differs between ranks, or its network has another width; or
            `model.probe_modes` is set and probes are not trained.
        """
        model, path = config.model, config.train.init
        if model.probe_modes is not None and not model.probe_trainable:
            raise ValueError(
                f"config: model.probe_modes is {model.probe_modes}, expected null where "
                "model.probe_trainable is false"
            )
        if path is None or resumed:
            return cls(config=config, resumed=resumed)
        init = run_together(lambda: load_bundle(path))
        require_same({f"content of {path}": hashlib.sha256(Path(path).read_bytes()).hexdigest()})
        expected = init.require_config(path).model.base_width
        if model.base_width != expected:
            raise ValueError(
                f"model.base_width is {model.base_width}, expected {expected}, which the network "
                f"of train.init {path} has"
            )
        return cls(config=config, init=init)

    def module(
        self, data: PreparedData, loss: LossFactory = ScaledPoissonLoss
    ) -> PtychographyModule:
        """Return the module to train. A collective."""
        module = PtychographyModule(
            self.config.model,
            data.calibration,
            data.probes,
            data.masks,
            learning_rate=self.config.train.learning_rate,
            seed=self.config.train.seed,
            first_probes=self.first_probes(data),
            loss=loss,
            record=_record(data, self.config),
        )
        if self.init is not None:
            self._require_size(data)
            module.network.load_state_dict(dict(self.init.weights))
            self._log_init(data)
        return module

    def _require_size(self, data: PreparedData) -> None:
        assert self.init is not None
        found, expected = data.calibration.pattern_size, self.init.pattern_size
        if found != expected:
            raise ValueError(
                f"{data.scans[0].path}: found patterns of {found} x {found}, expected {expected} x "
                f"{expected}, which the network of train.init {self.config.train.init} was "
                "trained on"
            )

    def _log_init(self, data: PreparedData) -> None:
        assert self.init is not None
        if rank() > 0:
            return
        there, here = self.init.calibration, data.calibration
        logger.info(
            f"init: the network of {self.config.train.init}; intensity_scale there "
            f"{there.intensity_scale!r}, here {here.intensity_scale!r}; factor r there "
            f"{there.rms_factor!r}, here {here.rms_factor!r}"
        )
        refined = self.init.refined_probes
        trainable = self.config.model.probe_trainable
        if not trainable and any(scan.fingerprint in refined for scan in data.scans):
            logger.warning(
                "the refined probe of train.init is not used: model.probe_trainable is false, so "
                "the scan's own is"
            )

    def first_probes(self, data: PreparedData) -> Tensor | None:
        """Return where trainable probes begin, complex64 (scans, modes, N, N); else None."""
        if not self.config.model.probe_trainable:
            return None
        # Rank 0's are everybody's: processors of different makes round differently.
        numbers = range(len(data.scans))
        return torch.from_numpy(
            from_rank_zero(lambda: np.stack([self._first_probe(data, n) for n in numbers]))
        )

    def _first_probe(self, data: PreparedData, number: int) -> np.ndarray:
        """Return the first probe of scan `number`, complex64 (modes, N, N)."""
        scan = data.scans[number]
        num_modes = self.config.model.probe_modes or len(scan.probe)
        if num_modes < len(scan.probe):
            raise ValueError(
                f"model.probe_modes is {num_modes}, expected at least the {len(scan.probe)} modes "
                f"of {scan.path}"
            )
        own = add_modes(torch.from_numpy(scan.probe), num_modes)
        train = data.subset.train
        patterns = train[data.source.scan_of(train) == number] - data.source.first_pattern[number]
        if self.resumed or len(patterns) == 0:
            return own.numpy()
        refined = None if self.init is None else self.init.refined_probes.get(scan.fingerprint)
        if refined is not None and refined.shape == own.shape:
            logger.info("init: %s begins with the refined probe of train.init", scan.path)
            return refined
        patterns = patterns[central_positions(scan.positions_px[patterns], NUM_PATTERNS)]
        factor = data.calibration.rms_factor / data.calibration.scan_brightness[number]
        x_norm = torch.from_numpy(normalize(scan.amplitude(patterns), factor))
        positions_px = torch.from_numpy(scan.positions_px[patterns])
        mask = None if scan.mask is None else torch.from_numpy(scan.mask)
        return find_first_probe(x_norm, positions_px, own, mask).numpy()


def _record(data: PreparedData, config: Config) -> dict[str, Any]:
    """Return what `hparams.yaml` and the checkpoints say of the run."""
    calibration = data.calibration.to_dict()
    first = ("intensity_scale", "nphotons", "nphotons_source")
    return {
        **{name: calibration[name] for name in first},
        "calibration": calibration,
        "subset": data.subset.description,
        "world_size": world_size(),
        "config": config.to_dict(),
        "versions": software_versions(),
    }
