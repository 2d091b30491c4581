"""A run in TensorBoard's event files, in the folder `tensorboard` of the run directory."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ptycho_dist.training.run_directory import METRICS

logger = logging.getLogger(__name__)

SCALE = (
    "nphotons",
    "nphotons_source",
    "normalization.factor",
    "mean_energy",
    "num_patterns",
    "intensity_scale",
    "subset_fingerprint",
)
"""The hyperparameters that tell how the photon scale was found."""


class TensorBoardTracker:
    """See `Tracker`.

    Parameters
    ----------
    run_dir
        Directory of the run.
    resumed
        Keep the event files that are there; where not, they are of an attempt that `metrics.csv`
        keeps nothing of either.
    """

    def __init__(self, run_dir: Path, *, resumed: bool) -> None:
        self._folder = run_dir / "tensorboard"
        self._folder.mkdir(parents=True, exist_ok=True)
        earlier = list(self._folder.glob("events.out.tfevents.*"))
        self._goes_on = resumed and bool(earlier)
        for path in earlier if not resumed else ():
            path.unlink()
        self._writer: SummaryWriter | None = None if self._goes_on else SummaryWriter(self._folder)
        logger.info(
            "tensorboard: %s; look at it with tensorboard --logdir %s", self._folder, run_dir
        )

    def log_hyperparams(self, values: Mapping[str, Any]) -> None:
        if self._writer is None:
            return
        table = "\n".join(f"| {key} | {values[key]} |" for key in SCALE)
        self._writer.add_text("scale", f"| | |\n|---|---|\n{table}", 0)
        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in values.items()
        }
        assert self._writer.file_writer is not None
        # The metrics are those of the rows: `add_hparams` would write values of its own, to a
        # folder of its own.
        for summary in hparams(
            plain, dict.fromkeys(("train_deviance_per_pixel", "val_deviance_per_pixel", "val_nll"))
        ):
            self._writer.file_writer.add_summary(summary)
        self._writer.flush()

    def go_on_at(self, first_step: int) -> Mapping[str, int]:
        if not self._goes_on:
            return {}
        # TensorBoard forgets what came after it in earlier files
        self._writer = SummaryWriter(self._folder, purge_step=first_step)
        return dict.fromkeys(METRICS, first_step - 1)

    def log_rows(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        assert self._writer is not None
        for step, values in rows:
            for key, value in values.items():
                self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        assert self._writer is not None
        self._writer.add_image(
            name, np.asarray(Image.open(io.BytesIO(png)).convert("RGB")), step, dataformats="HWC"
        )
        self._writer.flush()

    def close(self, *, succeeded: bool) -> None:
        if self._writer is not None:
            self._writer.close()
