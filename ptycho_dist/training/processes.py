"""The processes of a run: how many a launcher started, which of them this one is, and how they find
each other."""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, Strategy

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up."""


class LauncherError(ValueError):
    """Tasks, nodes and devices that don't fit together; without this check the processes would wait
    for each other, or share a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Attributes
    ----------
    per_node, num_nodes
        Processes a node, and nodes. Where each process was given a GPU that no other one sees, each
        counts as a node of its own.
    local_rank
        Which of its node's processes, and so which of the GPUs that it sees, this one is.
    """

    per_node: int = 1
    num_nodes: int = 1
    local_rank: int = 0

    @classmethod
    def of_launcher(cls) -> Processes:
        """Read the launcher's environment; under srun, complete it to what torchrun would give.

        Raises
        ------
        LauncherError
            A Slurm job of several tasks whose processes srun did not start, tasks that are not the
            same number on every node, or not as many GPUs as processes on this node.
        """
        env = os.environ
        if "TORCHELASTIC_RUN_ID" in env:
            per_node = int(env["LOCAL_WORLD_SIZE"])
            _require_devices(per_node, "torchrun --nproc_per_node", also_idle=False)
            return cls(
                per_node=per_node,
                num_nodes=int(env["WORLD_SIZE"]) // per_node,
                local_rank=int(env["LOCAL_RANK"]),
            )
        if "SLURM_STEP_NUM_TASKS" in env:
            return cls._of_srun()
        if "SLURM_JOB_ID" in env:
            _require_one_task(env)
        return cls()

    @classmethod
    def _of_srun(cls) -> Processes:
        env = os.environ
        count, local_rank = int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
        tasks_per_node = re.fullmatch(r"(\d+)(\(x\d+\))?", env["SLURM_STEP_TASKS_PER_NODE"])
        if tasks_per_node is None:
            raise LauncherError(
                f"srun: the nodes have {env['SLURM_STEP_TASKS_PER_NODE']} tasks, expected as many "
                "on each: set --ntasks-per-node"
            )
        per_node = int(tasks_per_node[1])
        has_its_own_device = (
            per_node > 1 and "SLURM_GPUS_PER_TASK" in env and torch.cuda.device_count() == 1
        )
        if has_its_own_device:
            per_node, local_rank = 1, 0
        _require_devices(per_node, "srun --ntasks-per-node", also_idle=True)
        env.update(
            RANK=env["SLURM_PROCID"],
            WORLD_SIZE=str(count),
            LOCAL_RANK=str(local_rank),
            GROUP_RANK=env["SLURM_NODEID"],
        )
        env["MASTER_ADDR"] = SLURMEnvironment.resolve_root_node_address(env["SLURM_NODELIST"])
        # the same in all tasks, another in every job
        env.setdefault("MASTER_PORT", str(15_000 + int(env["SLURM_JOB_ID"]) % 10_000))
        return cls(per_node=per_node, num_nodes=count // per_node, local_rank=local_rank)

    @property
    def count(self) -> int:
        return self.per_node * self.num_nodes

    def join(self) -> None:
        """Meet the other processes; from here on they can fail together."""
        if self.count == 1 or dist.is_initialized():
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo", timeout=COLLECTIVE_TIMEOUT
        )

    def strategy(self) -> Strategy | str:
        """Lightning's strategy for these processes."""
        if self.count == 1:
            return "auto"
        # Buffers are not broadcast at every step: `build` has checked that the ranks hold the same
        # ones. Gradients are averaged where they lie, not in a copy; all of them fit into one
        # bucket, which is as fast as several (benchmarks/ddp.py).
        return DDPStrategy(
            timeout=COLLECTIVE_TIMEOUT, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def cluster_environment(self) -> ClusterEnvironment:
        """Return the environment that describes these processes to Lightning.

        It is the same for torchrun and srun, since `of_launcher` has given both the same variables.
        Lightning's own for Slurm would answer the signals and requeue by itself.
        """
        return LightningEnvironment() if self.count == 1 else TorchElasticEnvironment()


def _require_one_task(env: Mapping[str, str]) -> None:
    """Refuse what looks like a forgotten `srun`: the process would wait for tasks that nobody
    started."""
    tasks, nodes = (int(env.get(name, "1")) for name in ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES"))
    if tasks > 1 or nodes > 1:
        raise LauncherError(
            f"Slurm job {env['SLURM_JOB_ID']} has {tasks} task(s) on {nodes} node(s), but srun "
            "did not start this process: "
            "put srun before python, as slurm/train.sbatch does, or ask for one task on one node"
        )


def _require_devices(per_node: int, option: str, *, also_idle: bool) -> None:
    """Refuse GPUs that PyTorch does not see, too few of them and, if asked, more than there are
    processes to use them."""
    seen = torch.cuda.device_count()
    given = (
        len(os.environ["SLURM_STEP_GPUS"].split(",")) if "SLURM_STEP_GPUS" in os.environ else seen
    )
    if given and not seen:
        raise LauncherError(
            f"{socket.gethostname()}: Slurm gave {given} GPU(s), but PyTorch sees none: install a "
            "CUDA build of torch "
            "(nvidia-smi and `python -m torch.utils.collect_env` tell more), or ask for no GPU to "
            "train on the CPU"
        )
    if seen and (seen < per_node or (also_idle and seen > per_node)):
        raise LauncherError(
            f"{socket.gethostname()}: {per_node} process(es) but {seen} GPU(s), expected one GPU "
            f"a process: make {option} {seen}"
        )


def resolve_precision(precision: str | int) -> str | int:
    """`auto` is bf16-mixed where the processor multiplies bf16 matrices (GPU from Ampere on, CPU
    with AMX), else 32."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        multiplies_bf16 = torch.cuda.get_device_capability() >= (8, 0)
    else:
        cpu_info = Path("/proc/cpuinfo")
        multiplies_bf16 = cpu_info.exists() and "amx_bf16" in cpu_info.read_text()
    return "bf16-mixed" if multiplies_bf16 else 32


def quieten_lightning() -> None:
    """Keep off the screen what Lightning says at INFO, which the package's log says better, and
    warnings that are not for the user."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    not_for_the_user = (
        r".*treespec, LeafSpec.*",  # of Lightning's own code
        # it would average averages; what is logged is already that of all ranks
        r".*sync_dist=True.*",
        # its successor is not in every torch that is supported
        r".*broadcast_buffers. is deprecated.*",
        r".*smaller than the logging interval.*",  # short epochs are logged at their end
        r".*`srun` command is available.*",  # `of_launcher` has refused what could hang
        r".*dataloader is not resumable.*",  # the sampler is told where to go on
    )
    for message in not_for_the_user:
        warnings.filterwarnings("ignore", message=message)
