"""A training run, from top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch

from ptycho_dist.bundle import Bundle, save_bundle, software_versions
from ptycho_dist.config import Config, TrainConfig, flat_keys
from ptycho_dist.data.batches import make_batches
from ptycho_dist.data.prepare import PreparedData, prepare
from ptycho_dist.distributed import rank, require_same, run_on_rank_zero, run_together
from ptycho_dist.model.loss import LossFactory, ScaledPoissonLoss
from ptycho_dist.training.callbacks import (
    GoOnWithinEpoch,
    LearningRateSchedule,
    ObjectPictures,
    ProgressLog,
    StepMetrics,
)
from ptycho_dist.training.checkpointing import (
    Checkpointing,
    WholeCheckpointIO,
    checkpoint_to_resume,
    last_checkpoint,
)
from ptycho_dist.training.processes import Processes, quieten_lightning, resolve_precision
from ptycho_dist.training.run_bundle import bundle_of
from ptycho_dist.training.run_directory import (
    Claim,
    RunDirectoryLogger,
    claim_run_directory,
    read_metrics,
    start_log_file,
    stop_log_file,
)
from ptycho_dist.training.start import Start
from ptycho_dist.training.step_clock import StepClock
from ptycho_dist.training.tracking import open_trackers, require_packages

logger = logging.getLogger(__name__)


def train(config: Config, *, loss: LossFactory = ScaledPoissonLoss) -> Path:
    """Train on `config.data`, write the run directory, and return the path of the bundle.

    Every process of a torchrun or srun job calls this, or one process alone.

    Parameters
    ----------
    config
        Of the run.
    loss
        Makes the loss from the intensity scale.

    Raises
    ------
    ValueError
        Configuration, run directory, scan, subset or checkpoint can't be used. Every rank raises
        the same error before training starts.
    """
    processes = Processes.of_launcher()
    processes.join()
    require_same({**flat_keys(config.to_dict()), **software_versions()})
    run_on_rank_zero(lambda: require_packages(config.train.trackers))
    run_dir = Path(config.train.run_dir)
    checkpoint = agreed_checkpoint(config.train)
    resumed = checkpoint is not None
    start = Start.of_run(config, resumed=resumed)
    with _claimed(run_dir, resuming=resumed) as claim:
        _warn_of_idle_ranks(config, processes)
        data = prepare(config.data)
        module = start.module(data, loss)
        run_logger = _run_logger(run_dir, config, module.loss.metric, resumed=resumed)
        callbacks = _callbacks(config, data, run_logger, claim)
        trainer = _trainer(config.train, processes, run_logger, callbacks)
        batches, validation = make_batches(data, config.train)
        trainer.fit(module, batches, validation, ckpt_path=checkpoint, weights_only=True)
        run_together(claim.require_ours)
        bundle = bundle_of(module, data.scans, config)
        run_on_rank_zero(lambda: save_bundle(run_dir / "bundle.zip", bundle))
        run_on_rank_zero(lambda: _report(run_dir, data, bundle, trainer))
    return run_dir / "bundle.zip"


def agreed_checkpoint(config: TrainConfig) -> Path | None:
    """Return the checkpoint that a run goes on from, the same on every rank. A collective."""
    checkpoint = run_together(lambda: checkpoint_to_resume(config.resume, Path(config.run_dir)))
    require_same({"the checkpoint to resume": str(checkpoint)})
    return checkpoint


@contextmanager
def _claimed(run_dir: Path, *, resuming: bool) -> Iterator[Claim]:
    """Keep other runs out of the run directory, and write `train.log` there."""

    def claim_on_rank_zero() -> Claim:
        return claim_run_directory(run_dir, resuming=resuming) if rank() == 0 else Claim()

    with run_together(claim_on_rank_zero) as claim:
        run_together(lambda: start_log_file(run_dir))
        yield claim
    stop_log_file()  # after an error it stays open: whoever ends the process writes why


def _warn_of_idle_ranks(config: Config, processes: Processes) -> None:
    groups = config.train.global_batch_size
    if rank() == 0 and processes.count > groups:
        logger.warning(
            f"train.global_batch_size is {groups}, with {processes.count} ranks: some have nothing "
            "to do at each step"
        )


def _run_logger(
    run_dir: Path, config: Config, loss_metric: str, *, resumed: bool
) -> RunDirectoryLogger:
    names = config.train.trackers if rank() == 0 else ()
    trackers = run_together(lambda: open_trackers(names, run_dir, resumed=resumed))
    return RunDirectoryLogger(run_dir, resumed=resumed, trackers=trackers, loss_metric=loss_metric)


def _callbacks(
    config: Config, data: PreparedData, run_logger: RunDirectoryLogger, claim: Claim
) -> list[L.Callback]:
    """Return what happens around the steps; the order counts: rows are written, then saved."""
    schedule = LearningRateSchedule(
        config.train.learning_rate, max_minutes=config.train.max_minutes
    )
    clock = StepClock()
    path = last_checkpoint(run_logger.run_dir)
    return [
        GoOnWithinEpoch(),
        schedule,
        clock,
        StepMetrics(clock),
        ProgressLog(schedule),
        ObjectPictures(config, data.scans, run_logger),
        Checkpointing(path, require_ours=claim.require_ours),
    ]


def _trainer(
    config: TrainConfig,
    processes: Processes,
    run_logger: RunDirectoryLogger,
    callbacks: Sequence[L.Callback],
) -> L.Trainer:
    quieten_lightning()
    return L.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=processes.per_node,
        num_nodes=processes.num_nodes,
        strategy=processes.strategy(),
        precision=resolve_precision(config.precision),  # type: ignore[arg-type]
        max_epochs=config.epochs,
        accumulate_grad_batches=config.accumulate_grad_batches,
        use_distributed_sampler=False,  # ours gives each rank its part already, without repeats
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
        plugins=[WholeCheckpointIO(), processes.cluster_environment()],
        logger=run_logger,
        callbacks=list(callbacks),
    )


def _report(run_dir: Path, data: PreparedData, bundle: Bundle, trainer: L.Trainer) -> None:
    """Draw and write what a person looks at; by rank 0 alone."""
    # Only now: the first step does not wait for Matplotlib, Jinja and all of inference.
    from ptycho_dist.report.curve_figures import draw_training_curve
    from ptycho_dist.report.probe_figure import draw_probe
    from ptycho_dist.training.report import write_training_report

    draw_training_curve(read_metrics(run_dir), run_dir / "training_curve.png")
    if bundle.refined_probes:
        draw_probe(data.scans[0].probe, bundle.probe, run_dir / "probe.png")
    logger.info("wrote %s", run_dir / "bundle.zip")
    write_training_report(run_dir, data, trainer)
