"""The processes of a run: how many a launcher started, which of them this one is, and how they find each other."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """What torchrun, srun or nobody started, as seen by one process."""

    per_node: int = 1
    num_nodes: int = 1
    local_rank: int = 0

    @classmethod
    def of_launcher(cls) -> Processes:
        """Read the launcher's environment; under srun, complete it to what torchrun would give."""
        env = os.environ
        if "TORCHELASTIC_RUN_ID" in env:
            per_node = int(env["LOCAL_WORLD_SIZE"])
            return cls(per_node=per_node, num_nodes=int(env["WORLD_SIZE"]) // per_node, local_rank=int(env["LOCAL_RANK"]))
        if "SLURM_PROCID" in env and SLURMEnvironment.detect():
            slurm = SLURMEnvironment(auto_requeue=False)
            env.update(RANK=str(slurm.global_rank()), WORLD_SIZE=str(slurm.world_size()), LOCAL_RANK=str(slurm.local_rank()))
            env.update(MASTER_ADDR=slurm.main_address, MASTER_PORT=str(slurm.main_port))
            num_nodes = int(env["SLURM_NNODES"])
            return cls(per_node=slurm.world_size() // num_nodes, num_nodes=num_nodes, local_rank=slurm.local_rank())
        return cls()

    @property
    def count(self) -> int:
        return self.per_node * self.num_nodes

    def join(self) -> None:
        """Meet the other processes; from here on they can fail together."""
        if self.count == 1 or dist.is_initialized():
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=COLLECTIVE_TIMEOUT)

    def strategy(self) -> Strategy | str:
        """Lightning's strategy for these processes."""
        if self.count == 1:
            return "auto"
        # Buffers are not broadcast at every step: `build` has checked that the ranks hold the same ones.
        return DDPStrategy(timeout=COLLECTIVE_TIMEOUT, broadcast_buffers=False)


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
    not_for_the_user = (
        r".*treespec, LeafSpec.*",  # of Lightning's own code
        r".*sync_dist=True.*",  # it would average averages; what is logged is already that of all ranks
        r".*broadcast_buffers. is deprecated.*",  # its successor is not in every torch that is supported
        r".*smaller than the logging interval.*",  # short epochs are logged at their end
        r".*dataloader is not resumable.*",  # the sampler is told where to go on
    )
    for message in not_for_the_user:
        warnings.filterwarnings("ignore", message=message)
