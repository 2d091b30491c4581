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

logger = logging.getLogger(__name__)

_HPARAMS_METRICS = ("train_deviance_per_pixel", "val_deviance_per_pixel", "val_nll")


class TensorBoardTracker:
    """See `Tracker`.

    Parameters
    ----------
    run_dir
        Directory of the run.
    resumed
        Keep the event files that are there. Otherwise they are of an attempt of which `metrics.csv`
        keeps nothing either.
    """

    def __init__(self, run_dir: Path, *, resumed: bool) -> None:
        self._folder = run_dir / "tensorboard"
        self._folder.mkdir(parents=True, exist_ok=True)
        earlier = list(self._folder.glob("events.out.tfevents.*"))
        self._continues = resumed and bool(earlier)
        for path in earlier if not resumed else ():
            path.unlink()
        # a resumed run opens its file in `resume_at`, which knows the first step
        self._writer = None if self._continues else SummaryWriter(self._folder)
        logger.info(
            "tensorboard: %s; look at it with tensorboard --logdir %s", self._folder, run_dir
        )

    def log_hyperparams(self, values: Mapping[str, Any]) -> None:
        if self._writer is None:
            return
        # the audit of the scale: nphotons and its source, r, s, the subset and its size
        table = "\n".join(
            f"| {key} | {value} |"
            for key, value in values.items()
            if not key.startswith(("config.", "versions."))
        )
        self._writer.add_text("scale", f"| | |\n|---|---|\n{table}", 0)
        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in values.items()
        }
        assert self._writer.file_writer is not None
        # `add_hparams` would write metrics of its own to a folder of its own.
        for summary in hparams(plain, dict.fromkeys(_HPARAMS_METRICS)):
            self._writer.file_writer.add_summary(summary)
        self._writer.flush()

    def resume_at(self, first_step: int, metrics: Sequence[str]) -> Mapping[str, int]:
        if not self._continues:
            return {}
        # TensorBoard drops later steps of earlier files
        self._writer = SummaryWriter(self._folder, purge_step=first_step)
        return dict.fromkeys(metrics, first_step - 1)

    def log_rows(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        assert self._writer is not None
        for step, values in rows:
            for key, value in values.items():
                self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        assert self._writer is not None
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")
        self._writer.flush()

    def close(self, *, succeeded: bool) -> None:
        if self._writer is not None:
            self._writer.close()
