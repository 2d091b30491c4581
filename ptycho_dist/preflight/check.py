"""What would make a training run fail, found in seconds, before its allocation is spent.

Every rank looks, and every row of the table holds what all of them found: a rank's failure is a
row, not the end of the others. Nothing is written, not even the run directory. The same functions
find it that the run itself calls.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ptycho_dist.bundle import software_versions
from ptycho_dist.config import Config, flat_keys
from ptycho_dist.data import prepare as stage
from ptycho_dist.data.batches import train_sampler
from ptycho_dist.distributed import (
    FailedTogether,
    backend,
    describe,
    largest,
    on_every_rank,
    rank,
    require_same,
    run_on_rank_zero,
    seconds_an_all_reduce,
    world_size,
)
from ptycho_dist.memory_supply import size_in_words
from ptycho_dist.model.network import build_network
from ptycho_dist.preflight.memory import Demand, memory_row
from ptycho_dist.preflight.stages import WatchedPreparation
from ptycho_dist.preflight.table import (
    Row,
    not_looked_at,
    row_found_together,
    row_of_every_rank,
    row_of_outcomes,
    show,
)
from ptycho_dist.training.checkpointing import WholeCheckpointIO, last_checkpoint
from ptycho_dist.training.processes import Processes, resolve_precision
from ptycho_dist.training.run_directory import nearest_directory, require_claimable
from ptycho_dist.training.start import Start
from ptycho_dist.training.tracking import require_usable
from ptycho_dist.training.train import agreed_checkpoint

LARGE_REDUCTION_BYTES = 1 << 24
SCALE_REDUCTION_BYTES = 552
REST_OF_RUN_BYTES = 1 << 20
"""Room for log, metrics, `hparams.yaml`, the training curve, the probe, and what a checkpoint holds
beside numbers."""

MOST_HOSTS_NAMED = 8


def check(config: Config) -> None:
    """Look at everything a run needs, and print it as a table on rank 0.

    Every process of a torchrun or srun job calls this, or one process alone, as it calls `train`.

    Raises
    ------
    FailedTogether
        The run would fail; the rows that say why are in the table.
    """
    try:
        processes = Processes.of_launcher()
        _require_own_device(processes)
        processes.join()
        hosts = _hosts()
    except Exception as error:  # of launcher, network or driver; there is nobody yet to tell
        fix = (
            "Start one process per GPU with torchrun or srun, on nodes that reach each other by "
            "MASTER_ADDR and MASTER_PORT."
        )
        found = f"{socket.gethostname()}: {describe(error)}"
        show([Row(what="processes", found=found, verdict="FAIL", fix=fix)])
        raise FailedTogether(
            "1 of 1 checks failed: processes; nothing else can be looked at"
        ) from error
    rows = [
        _processes_row(processes, hosts),
        _devices_row(hosts),
        _agreement_row(config),
        _reduction_row(),
        _run_directory_row(config),
        _loggers_row(config),
        *_data_rows(config, [host.name for host in hosts]),
    ]
    if rank() == 0:
        show(rows)
    failed = [row.what for row in rows if row.verdict == "FAIL"]
    if failed:
        names = ", ".join(dict.fromkeys(failed))
        raise FailedTogether(f"{len(failed)} of {len(rows)} checks failed: {names}")
    if rank() == 0:
        print(f"all {len(rows)} checks passed")


# --- Processes


@dataclass(frozen=True, kw_only=True, slots=True)
class _Host:
    """A rank's machine and device."""

    name: str
    device: str

    @classmethod
    def of_this_rank(cls) -> _Host:
        if torch.cuda.is_available():
            device = torch.cuda.get_device_properties(torch.cuda.current_device())
            memory = size_in_words(device.total_memory)
            described = f"{device.name} ({memory}, CUDA {torch.version.cuda})"
        else:
            affinity = getattr(os, "sched_getaffinity", None)
            cores = len(affinity(0)) if affinity else os.cpu_count()
            described = f"CPU ({cores} cores, {torch.get_num_threads()} thread(s) per process)"
        return cls(name=socket.gethostname(), device=described)


def _require_own_device(processes: Processes) -> None:
    if torch.cuda.is_available() and processes.local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {processes.local_rank} has no GPU of its own: this process sees "
            f"{torch.cuda.device_count()}, with {processes.per_node} processes on the node"
        )


def _hosts() -> list[_Host]:
    """Return the host of every rank; the first thing that all of them do together."""
    outcomes = on_every_rank(_Host.of_this_rank)
    for number, outcome in enumerate(outcomes):
        if outcome.failure is not None:
            raise ValueError(f"rank {number}: {outcome.failure}")
    return [outcome.value for outcome in outcomes if outcome.value is not None]


def _processes_row(processes: Processes, hosts: Sequence[_Host]) -> Row:
    alone = "srun" if processes.count > 1 else "python alone"
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else alone
    counts = Counter(host.name for host in hosts)
    named = [f"{name}: {count}" for name, count in list(counts.items())[:MOST_HOSTS_NAMED]]
    if len(counts) > MOST_HOSTS_NAMED:
        named.append(f"and {len(counts) - MOST_HOSTS_NAMED} more")
    size = f"world size {world_size()}, {processes.num_nodes} node(s), backend {backend()}"
    return Row(what="processes", found=f"{launcher}; {size}; {', '.join(named)}")


def _devices_row(hosts: Sequence[_Host]) -> Row:
    counts = Counter(host.device for host in hosts)
    found = ", ".join(f"{count} x {device}" for device, count in counts.items())
    return Row(what="devices", found=found)


def _agreement_row(config: Config) -> Row:
    def look() -> str:
        require_same({**flat_keys(config.to_dict()), **software_versions()})
        return ", ".join(f"{name} {version}" for name, version in software_versions().items())

    fix = "Give all nodes one environment and one configuration."
    return row_found_together("software, config", look, fix=fix)


def _reduction_row() -> Row:
    if world_size() == 1:
        return Row(what="all_reduce", found="one process: nothing to reduce")
    small, large = map(seconds_an_all_reduce, (SCALE_REDUCTION_BYTES, LARGE_REDUCTION_BYTES))
    size, rate = map(size_in_words, (LARGE_REDUCTION_BYTES, LARGE_REDUCTION_BYTES / large))
    found = f"{SCALE_REDUCTION_BYTES} B in {1e3 * small:.3g} ms; "
    return Row(what="all_reduce", found=f"{found}{size} in {1e3 * large:.3g} ms, {rate}/s")


# --- Run directory


def _run_directory_row(config: Config) -> Row:
    run_dir = Path(config.train.run_dir)

    def look() -> str:
        checkpoint = agreed_checkpoint(config.train)
        run_on_rank_zero(lambda: require_claimable(run_dir, resuming=checkpoint is not None))
        use = f"goes on from {checkpoint}" if checkpoint else "free for a new run"
        return f"{run_dir.absolute()}: {use}"

    fix = (
        "Name another --train.run_dir, which every node sees and this user may write, or go on "
        "with --train.resume auto."
    )
    return row_found_together("run directory", look, fix=fix)


def _loggers_row(config: Config) -> Row:
    def look() -> str:
        if rank() == 0:  # which alone writes
            require_usable(config.train.trackers)
        return ", ".join(["csv", *config.train.trackers])

    fix = (
        "Install what is missing, make sure that rank 0's node reaches the server, or leave it "
        "out of --train.logger."
    )
    return row_of_every_rank("loggers", look, fix=fix)


# --- Data, network, memory, disk


def _data_rows(config: Config, hosts: Sequence[str]) -> Iterator[Row]:
    watched = WatchedPreparation(config)
    yield from watched.rows()
    network, num_parameters = _network_row(watched)
    yield network
    yield from size_rows(watched, hosts, num_parameters)
    yield _disk_row(config, num_parameters)
    if num_parameters:
        yield from _resume_rows(watched)


def rows_of_scan(watched: WatchedPreparation) -> list[Row]:
    """Return what a run of this one process would take from its scans, and of the memory."""
    network, num_parameters = _network_row(watched)
    return [*watched.rows(), network, *size_rows(watched, [socket.gethostname()], num_parameters)]


def _network_row(watched: WatchedPreparation) -> tuple[Row, int]:
    """Return the row and the number of parameters, 0 where no network can be built."""
    config = watched.config
    num_parameters = 0

    def look() -> str:
        nonlocal num_parameters
        with torch.device("meta"):  # takes no memory
            network = build_network(config.model, watched.found[stage.SCANS][0].pattern_size)
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        precision = resolve_precision(config.train.precision)
        return f"{num_parameters} parameters, precision {precision}"

    if stage.SCANS not in watched.found:
        return not_looked_at("network"), 0
    fix = "Take a window of a power of two, at least 16 pixels wide: --data.crop 64."
    return row_of_every_rank("network", look, fix=fix), num_parameters


def size_rows(
    watched: WatchedPreparation, hosts: Sequence[str], num_parameters: int
) -> Iterator[Row]:
    """Yield the rows of a batch and of the memory that it takes."""
    config, data = watched.config, watched.data
    if data is None or not num_parameters:
        yield not_looked_at("memory")
        return
    num_groups, num_steps = _largest_micro_batch(watched)
    yield Row(
        what="batch",
        found=f"{config.train.global_batch_size} groups of {config.data.group_size} per step, at "
        f"most {num_groups} at a time on a rank; {num_steps} steps per epoch, "
        f"{config.train.epochs} epochs",
    )
    demand = Demand(num_parameters=num_parameters, num_groups=num_groups)
    yield memory_row(config, data, hosts, demand)


def _largest_micro_batch(watched: WatchedPreparation) -> tuple[int, int]:
    """Return the groups that the busiest rank computes at a time, and the steps per epoch."""
    assert watched.data is not None
    sampler = train_sampler(watched.data.source, watched.data.subset, watched.config.train)
    return max(1, int(largest([len(next(iter(sampler)))])[0])), sampler.steps_per_epoch


def _disk_row(config: Config, num_parameters: int) -> Row:
    """Return whether rank 0 will find room; quotas are not seen."""
    run_dir = Path(config.train.run_dir)

    def look() -> str:
        # Weights and Adam's two moments; a new checkpoint is written beside the last one, which is
        # removed only then.
        checkpoint_bytes = 3 * 4 * num_parameters
        last = last_checkpoint(run_dir)
        there = last.stat().st_size if last.exists() else 0
        needed = max(2 * checkpoint_bytes - there, 0) + 4 * num_parameters + REST_OF_RUN_BYTES
        directory = nearest_directory(run_dir)
        free = shutil.disk_usage(directory).free
        what = "two checkpoints, bundle and log need"
        if not num_parameters:
            what = "log and pictures alone need"
        found = f"{size_in_words(free)} free in {directory}; {what} {size_in_words(needed)}"
        if needed > free:
            raise ValueError(found)
        return found

    outcome = on_every_rank(lambda: look() if rank() == 0 else "")[0]  # rank 0 writes
    return row_of_outcomes(
        "disk", [outcome], fix="Free some room, or name another --train.run_dir."
    )


def _resume_rows(watched: WatchedPreparation) -> Iterator[Row]:
    config, data = watched.config, watched.data
    try:
        checkpoint = agreed_checkpoint(config.train)
    except ValueError:  # the run directory's row says it
        return
    if checkpoint is None or data is None:
        return
    module = Start(config=config, resumed=True).module(data)

    def look() -> str:
        content = WholeCheckpointIO().load_checkpoint(checkpoint, map_location="cpu")
        module.on_load_checkpoint(content)
        try:
            module.load_state_dict(content["state_dict"])
        except RuntimeError as error:  # a line for each weight that doesn't fit
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{checkpoint}: the network is another one: {reason}") from error
        return (
            f"{checkpoint}: epoch {content['epoch']}, step {content['global_step']}, of these data "
            "and this network"
        )

    fix = "Train on with the data and the network of the checkpoint, or start anew elsewhere."
    yield row_of_every_rank("checkpoint", look, fix=fix)
