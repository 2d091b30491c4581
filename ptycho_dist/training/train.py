"""The whole of a training run, top to bottom."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
import torch

from ptycho_dist.bundle import save_bundle, software_versions
from ptycho_dist.config import Config, flat_keys
from ptycho_dist.data.module import ScanDataModule
from ptycho_dist.distributed import rank, require_same, run_on_rank_zero, run_together
from ptycho_dist.model.lightning_module import PtychographyModule
from ptycho_dist.training.callbacks import (
    GoOnWithinEpoch,
    HandOver,
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
from ptycho_dist.training.run_bundle import bundle_of_run
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


def train(config: Config) -> Path:
    """Train on `config.data` and write the run directory; returns the path of the bundle.

    Run by every process of a torchrun or srun job, or by one process alone.

    Raises
    ------
    ValueError
        Configuration, run directory, scan, subset or checkpoint can't be used; on every rank,
        before training starts.
    """
    processes = Processes.of_launcher()
    processes.join()
    require_same({**flat_keys(config.to_dict()), **software_versions()})
    run_on_rank_zero(lambda: require_packages(config.train.trackers))
    run_dir = Path(config.train.run_dir)
    checkpoint = run_together(lambda: checkpoint_to_resume(config.train.resume, run_dir))
    require_same({"the checkpoint to resume": str(checkpoint)})
    start = Start.of_run(config, resumed=checkpoint is not None)
    with run_together(
        lambda: (
            claim_run_directory(run_dir, resuming=checkpoint is not None)
            if rank() == 0
            else Claim()
        )
    ) as claim:
        run_together(lambda: start_log_file(run_dir))
        bundle_path = _train_in(run_dir, claim, config, processes, start, checkpoint)
    stop_log_file()  # after an error it stays open: whoever ends the process says there why
    return bundle_path


def _train_in(
    run_dir: Path,
    claim: Claim,
    config: Config,
    processes: Processes,
    start: Start,
    checkpoint: Path | None,
) -> Path:
    if rank() == 0 and processes.count > config.train.global_batch_size:
        logger.warning(
            "train.global_batch_size is %d, with %d ranks: some have nothing to do at each step",
            config.train.global_batch_size,
            processes.count,
        )
    data = ScanDataModule(
        config.data,
        global_batch_size=config.train.global_batch_size,
        num_micro_batches=config.train.accumulate_grad_batches,
        seed=config.train.seed,
    )
    module = PtychographyModule(config.model, learning_rate=config.train.learning_rate)
    schedule, clock = (
        LearningRateSchedule(config.train.learning_rate, max_minutes=config.train.max_minutes),
        StepClock(),
    )
    resumed = checkpoint is not None
    trackers = run_together(
        lambda: (
            open_trackers(config.train.trackers, run_dir, resumed=resumed) if rank() == 0 else ()
        )
    )
    run_logger = RunDirectoryLogger(run_dir, resumed=resumed, trackers=trackers)
    checkpointing = Checkpointing(last_checkpoint(run_dir), require_ours=claim.require_ours)
    quieten_lightning()
    trainer = L.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=processes.per_node,
        num_nodes=processes.num_nodes,
        strategy=processes.strategy(),
        precision=resolve_precision(config.train.precision),  # type: ignore[arg-type]
        max_epochs=config.train.epochs,
        accumulate_grad_batches=config.train.accumulate_grad_batches,
        # the data module's sampler already gives each rank its part, without repeats
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
        plugins=[WholeCheckpointIO(), processes.cluster_environment()],
        logger=run_logger,
        callbacks=[
            HandOver(config, start),
            GoOnWithinEpoch(),
            schedule,
            clock,
            StepMetrics(clock),
            ProgressLog(schedule),
            ObjectPictures(config, run_logger),
            checkpointing,
        ],
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)

    bundle_path = run_dir / "bundle.zip"
    bundle = bundle_of_run(config, data, module)
    run_together(claim.require_ours)
    run_on_rank_zero(lambda: save_bundle(bundle_path, bundle))
    # Only now: the first step does not wait for Matplotlib, Jinja and all of inference.
    from ptycho_dist.report.curve_figures import draw_training_curve
    from ptycho_dist.report.probe_figure import draw_probe
    from ptycho_dist.training.report import write_training_report

    run_on_rank_zero(
        lambda: draw_training_curve(read_metrics(run_dir), run_dir / "training_curve.png")
    )
    if config.model.probe_trainable:
        run_on_rank_zero(
            lambda: draw_probe(data.scans[0].probe, bundle.probe, run_dir / "probe.png")
        )
    if rank() == 0:
        logger.info("wrote %s", bundle_path)
    run_on_rank_zero(lambda: write_training_report(run_dir, bundle_path, data, trainer))
    return bundle_path
