"""`train`: how the network is fitted, and where the run is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ptycho_dist.config.record import NonNegativeInteger, PositiveInteger, PositiveNumber, Record

RunLogger = Literal["csv", "tensorboard", "mlflow"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Record, prefix="train"):
    """The fit of the network, and where the run is kept."""

    run_dir: str = "run"
    """Directory of the run; made if missing."""
    epochs: PositiveInteger = 50
    """Passes over the training samples."""
    max_minutes: PositiveNumber | None = None
    """Wall-clock limit of the fit, minutes; the learning-rate schedule then ends at whichever of
    the two limits comes first. null: none."""
    global_batch_size: PositiveInteger = 8
    """Samples (groups of C patterns) per optimiser step, over all ranks together."""
    accumulate_grad_batches: PositiveInteger = 1
    """Parts in which a step's global batch is computed, one after the other, to save memory; the
    step is the same."""
    learning_rate: PositiveNumber = 3e-3
    """Peak of the schedule (5 % linear warm-up, then cosine to zero)."""
    precision: Literal["auto", 32, "bf16-mixed"] = "auto"
    """`auto` is bf16-mixed where the processor multiplies bf16 matrices, else 32. Physics and loss
    are always float32."""
    seed: NonNegativeInteger = 0
    """Seed of the weights and of the order of the batches."""
    resume: str | None = None
    """A checkpoint, or `auto`: the run directory's last one if there is one."""
    init: str | None = None
    """A bundle whose network (and refined probe of the same scan) training begins with; scale and
    normalisation come from the new data. A resumed run continues from its checkpoint and does not
    read the bundle again."""
    logger: Annotated[list[RunLogger] | RunLogger, "csv, tensorboard, mlflow or a list of them"] = (
        "csv"
    )
    """Where the run's metrics are written, one or a list: `csv` (`metrics.csv`, always written),
    and beside it `tensorboard` or `mlflow`."""

    @property
    def trackers(self) -> tuple[RunLogger, ...]:
        """The loggers besides `metrics.csv`, each once."""
        named: list[RunLogger] = self.logger if isinstance(self.logger, list) else [self.logger]
        return tuple(name for name in dict.fromkeys(named) if name != "csv")
