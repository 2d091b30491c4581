"""The whole of a training run, top to bottom."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, Strategy

from ptycho_dist.bundle import Bundle, save_bundle, software_versions
from ptycho_dist.config import Config
from ptycho_dist.data.module import ScanDataModule
from ptycho_dist.distributed import rank, run_on_rank_zero
from ptycho_dist.model.lightning_module import PtychographyModule
from ptycho_dist.report.figures import draw_training_curve
from ptycho_dist.training.callbacks import HandOver, LearningRateSchedule, ProgressLog
from ptycho_dist.training.run_directory import RunDirectoryLogger, read_metrics, start_log_file

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up."""


def train(config: Config) -> Path:
    """Train on `config.data` and write the run directory; returns the path of the bundle.

    Run by every process of a torchrun or srun job, or by one process alone.

    Raises
    ------
    ValueError
        Configuration, scan, subset or checkpoint can't be used; on every rank, before training starts.
    """
    run_dir = Path(config.train.run_dir)
    is_rank_zero = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # from the launcher's environment: no process group yet
    if is_rank_zero:
        start_log_file(run_dir)
    checkpoint = checkpoint_to_resume(config.train.resume, run_dir)

    data = ScanDataModule(config.data, global_batch_size=config.train.global_batch_size, seed=config.train.seed)
    module = PtychographyModule(config.model, learning_rate=config.train.learning_rate)
    schedule = LearningRateSchedule(config.train.learning_rate, max_minutes=config.train.max_minutes)
    processes = Processes.of_launcher()
    quieten_lightning()
    trainer = L.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=processes.per_node,
        num_nodes=processes.num_nodes,
        strategy=processes.strategy(),
        precision=resolve_precision(config.train.precision),  # type: ignore[arg-type]
        max_epochs=config.train.epochs,
        use_distributed_sampler=False,  # the data module's sampler already gives each rank its part, without repeats
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=RunDirectoryLogger(run_dir, resumed=checkpoint is not None),
        callbacks=[
            HandOver(config),
            schedule,
            ProgressLog(schedule),
            ModelCheckpoint(run_dir / "checkpoints", filename="last", enable_version_counter=False),
        ],
    )
    if processes.per_node * processes.num_nodes > config.train.global_batch_size and is_rank_zero:
        logger.warning(
            "train.global_batch_size is %d, with %d ranks: some have nothing to do at each step; use at least as many samples as ranks",
            config.train.global_batch_size,
            processes.per_node * processes.num_nodes,
        )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)

    bundle_path = run_dir / "bundle.zip"
    bundle = Bundle(
        config=config,
        scale=data.intensity_scale,
        nphotons_source=data.nphotons.source,
        gain=1.0 if module.loss.log_gain is None else float(module.loss.log_gain.detach().exp()),
        rms_factor=data.normalization.factor,
        subset_fingerprint=data.subset.fingerprint,
        probe=module.probes[0].cpu().numpy(),
        weights=module.network.state_dict(),
        versions=software_versions(),
    )
    run_on_rank_zero(lambda: save_bundle(bundle_path, bundle))
    run_on_rank_zero(lambda: draw_training_curve(read_metrics(run_dir), run_dir / "training_curve.png"))
    if rank() == 0:
        logger.info("wrote %s", bundle_path)
    return bundle_path


@dataclass(frozen=True, slots=True)
class Processes:
    """How many processes the launcher started: torchrun, srun, or none (one process)."""

    per_node: int
    num_nodes: int

    @classmethod
    def of_launcher(cls) -> Processes:
        env = os.environ
        if "TORCHELASTIC_RUN_ID" in env:
            return cls(int(env["LOCAL_WORLD_SIZE"]), int(env["WORLD_SIZE"]) // int(env["LOCAL_WORLD_SIZE"]))
        if "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
            num_nodes = int(env["SLURM_STEP_NUM_NODES"])
            return cls(int(env["SLURM_STEP_NUM_TASKS"]) // num_nodes, num_nodes)
        return cls(1, 1)

    def strategy(self) -> Strategy | str:
        if self.per_node * self.num_nodes == 1:
            return "auto"
        # Buffers are not broadcast at every step: `build` has checked that the ranks hold the same ones.
        return DDPStrategy(
            process_group_backend="nccl" if torch.cuda.is_available() else "gloo", timeout=COLLECTIVE_TIMEOUT, broadcast_buffers=False
        )


def checkpoint_to_resume(resume: str | None, run_dir: Path) -> Path | None:
    """The checkpoint that `train.resume` names: a file, or with `auto` the run directory's last one, if there is one."""
    if resume is None:
        return None
    if resume == "auto":
        last = run_dir / "checkpoints" / "last.ckpt"
        return last if last.exists() else None
    if not Path(resume).is_file():
        raise ValueError(f"train.resume: found no file {resume}, expected a checkpoint or 'auto'")
    return Path(resume)


def resolve_precision(precision: str | int) -> str | int:
    """`auto` is bf16-mixed where the processor multiplies bf16 matrices (GPU from Ampere on, CPU with AMX), else 32."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        multiplies_bf16 = torch.cuda.get_device_capability() >= (8, 0)
    else:
        cpu_info = Path("/proc/cpuinfo")
        multiplies_bf16 = cpu_info.exists() and "amx_bf16" in cpu_info.read_text()
    return "bf16-mixed" if multiplies_bf16 else 32


def quieten_lightning() -> None:
    """Keep off the screen what Lightning says at INFO, which the package's log says better, and warnings that are not for the user."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings(
        "ignore", message=".*sync_dist=True.*"
    )  # it would average averages; what is logged is already that of all ranks
    warnings.filterwarnings(
        "ignore", message=".*broadcast_buffers. is deprecated.*"
    )  # its successor is not in every torch that is supported
