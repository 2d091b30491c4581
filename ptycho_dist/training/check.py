"""What would make a training run fail, found in seconds, before its allocation is spent
(`ptycho-train --check`).

Every rank looks, and every row of the table says what all of them found: a rank's failure is a row,
not the end of the others. Nothing is written, not even the run directory. What is found is found by
the functions that the run itself calls, where there is such a function.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from ptycho_dist.bundle import software_versions
from ptycho_dist.config import Config, flat_keys
from ptycho_dist.data.module import ScanDataModule
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.scan import Scan, stack_masks
from ptycho_dist.distributed import (
    FailedTogether,
    Outcome,
    backend,
    describe,
    largest,
    on_every_rank,
    rank,
    require_same,
    run_on_rank_zero,
    run_together,
    seconds_an_all_reduce,
    world_size,
)
from ptycho_dist.memory_supply import MemorySupply, host_bytes_left, size_in_words
from ptycho_dist.model.lightning_module import PtychographyModule
from ptycho_dist.model.network import build_network
from ptycho_dist.training.checkpointing import (
    WholeCheckpointIO,
    checkpoint_to_resume,
    last_checkpoint,
)
from ptycho_dist.training.memory import StepMemory, estimate_step_memory
from ptycho_dist.training.processes import Processes, resolve_precision
from ptycho_dist.training.run_directory import nearest_directory, require_claimable
from ptycho_dist.training.tracking import require_usable

LARGE_REDUCTION_BYTES = 1 << 24
SCALE_REDUCTION_BYTES = 552
REST_OF_RUN_BYTES = 1 << 20
"""Room for log, metrics, `hparams.yaml`, the training curve, the probe, and what a checkpoint holds
beside numbers."""

MOST_HOSTS_NAMED = 8
WIDTH_OF_A_LOG = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    what
        What was looked at.
    found
        What there is.
    verdict
        `-` where an earlier row's failure leaves nothing to look at.
    mend
        What to do about a failure, in a sentence.
    """

    what: str
    found: str
    verdict: Literal["ok", "FAIL", "-"] = "ok"
    mend: str = ""


def check(config: Config) -> None:
    """Look at everything a run needs, and print it as a table on rank 0.

    Run by every process of a torchrun or srun job, or by one process alone, as `train` is.

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
        mend = (
            "Start one process a GPU with torchrun or srun, on nodes that reach each other by "
            "MASTER_ADDR and MASTER_PORT."
        )
        show(
            [
                Row(
                    what="processes",
                    found=f"{socket.gethostname()}: {describe(error)}",
                    verdict="FAIL",
                    mend=mend,
                )
            ]
        )
        raise FailedTogether(
            "1 of 1 checks failed: processes; nothing else can be looked at"
        ) from error
    rows = [
        _processes_row(processes, hosts),
        _devices_row(hosts),
        _agreement_row(config),
        _reduction_row(),
        *_run_directory_rows(config),
        _loggers_row(config),
        *_data_and_size_rows(config, hosts),
    ]
    if rank() == 0:
        show(rows)
    failed = [row.what for row in rows if row.verdict == "FAIL"]
    if failed:
        raise FailedTogether(
            f"{len(failed)} of {len(rows)} checks failed: {', '.join(dict.fromkeys(failed))}"
        )
    if rank() == 0:
        print(f"all {len(rows)} checks passed")


def show(rows: Sequence[Row]) -> None:
    """Print the table: in colour on a terminal, plain text of a fixed width in a file."""
    console = Console(
        width=None if sys.stdout.isatty() else WIDTH_OF_A_LOG,
        markup=False,
        highlight=False,
        emoji=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("found", overflow="fold")
    for row in rows:
        table.add_row(
            row.what, row.verdict, row.found, style={"FAIL": "red", "-": "dim"}.get(row.verdict)
        )
        if row.mend and row.verdict == "FAIL":
            table.add_row("", "", Padding(f"mend: {row.mend}", (0, 0, 0, 2)))
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


# --- The rows' two kinds: what each rank finds for itself, and what all of them find together


def _row_of_every_rank(what: str, look: Callable[[], str], *, mend: str) -> Row:
    return _row_of_outcomes(what, on_every_rank(look), mend=mend)


def _row_of_outcomes(what: str, outcomes: Sequence[Outcome[str]], *, mend: str) -> Row:
    failures = {
        number: outcome.failure
        for number, outcome in enumerate(outcomes)
        if outcome.failure is not None
    }
    if not failures:
        return Row(what=what, found=str(outcomes[0].value))
    first, message = next(iter(failures.items()))
    others = f" (and {len(failures) - 1} other ranks)" if len(failures) > 1 else ""
    return Row(
        what=what,
        found=f"rank {first}{others}: {message}" if len(outcomes) > 1 else str(message),
        verdict="FAIL",
        mend=mend,
    )


def _row_found_together(what: str, look: Callable[[], str], *, mend: str) -> Row:
    """Of a collective that raises the same on all ranks."""
    try:
        return Row(what=what, found=look())
    except Exception as error:
        return Row(what=what, found=_failure_of_all(error), verdict="FAIL", mend=mend)


def _failure_of_all(error: Exception) -> str:
    """An error's message, where every rank has it; else raise it: the others are elsewhere."""
    if world_size() > 1 and not isinstance(error, ValueError):
        raise error
    return describe(error)


def _not_looked_at(what: str) -> Row:
    return Row(what=what, found="needs what failed above", verdict="-")


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
            described = (
                f"{device.name} ({size_in_words(device.total_memory)}, CUDA {torch.version.cuda})"
            )
        else:
            cores = (
                len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            )
            described = f"CPU ({cores} cores, {torch.get_num_threads()} thread(s) a process)"
        return cls(name=socket.gethostname(), device=described)


def _require_own_device(processes: Processes) -> None:
    if torch.cuda.is_available() and processes.local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {processes.local_rank} has no GPU of its own: this process sees "
            f"{torch.cuda.device_count()}, "
            f"with {processes.per_node} processes on the node"
        )


def _hosts() -> list[_Host]:
    """Of every rank; this is the first that all of them do together."""
    outcomes = on_every_rank(_Host.of_this_rank)
    for number, outcome in enumerate(outcomes):
        if outcome.failure is not None:
            raise ValueError(f"rank {number}: {outcome.failure}")
    return [outcome.value for outcome in outcomes if outcome.value is not None]


def _processes_row(processes: Processes, hosts: Sequence[_Host]) -> Row:
    launcher = (
        "torchrun"
        if "TORCHELASTIC_RUN_ID" in os.environ
        else "srun"
        if processes.count > 1
        else "python alone"
    )
    counts = Counter(host.name for host in hosts)
    named = [f"{name}: {count}" for name, count in list(counts.items())[:MOST_HOSTS_NAMED]]
    others = (
        [f"and {len(counts) - MOST_HOSTS_NAMED} more"] if len(counts) > MOST_HOSTS_NAMED else []
    )
    size = f"world size {world_size()}, {processes.num_nodes} node(s), backend {backend()}"
    return Row(what="processes", found=f"{launcher}; {size}; {', '.join(named + others)}")


def _devices_row(hosts: Sequence[_Host]) -> Row:
    counts = Counter(host.device for host in hosts)
    return Row(
        what="devices", found=", ".join(f"{count} x {device}" for device, count in counts.items())
    )


def _agreement_row(config: Config) -> Row:
    def look() -> str:
        require_same({**flat_keys(config.to_dict()), **software_versions()})
        return ", ".join(f"{name} {version}" for name, version in software_versions().items())

    return _row_found_together(
        "software, config", look, mend="Give all nodes one environment and one configuration."
    )


def _reduction_row() -> Row:
    if world_size() == 1:
        return Row(what="all_reduce", found="one process: nothing to reduce")
    small, large = (
        seconds_an_all_reduce(size) for size in (SCALE_REDUCTION_BYTES, LARGE_REDUCTION_BYTES)
    )
    rate = (
        f"{size_in_words(LARGE_REDUCTION_BYTES)} in {1e3 * large:.3g} ms, "
        f"{size_in_words(LARGE_REDUCTION_BYTES / large)}/s"
    )
    return Row(
        what="all_reduce", found=f"{SCALE_REDUCTION_BYTES} B in {1e3 * small:.3g} ms; {rate}"
    )


# --- Run directory


def _checkpoint(config: Config) -> Path | None:
    checkpoint = run_together(
        lambda: checkpoint_to_resume(config.train.resume, Path(config.train.run_dir))
    )
    require_same({"the checkpoint to resume": str(checkpoint)})
    return checkpoint


def _run_directory_rows(config: Config) -> Iterator[Row]:
    run_dir = Path(config.train.run_dir)

    def look() -> str:
        checkpoint = _checkpoint(config)
        run_on_rank_zero(lambda: require_claimable(run_dir, resuming=checkpoint is not None))
        return f"{run_dir.absolute()}: " + (
            f"goes on from {checkpoint}" if checkpoint else "free for a new run"
        )

    mend = (
        "Name another --train.run_dir, which every node sees and this user may write, or go on "
        "with --train.resume auto."
    )
    yield _row_found_together("run directory", look, mend=mend)


def _loggers_row(config: Config) -> Row:
    def look() -> str:
        if rank() == 0:  # which alone writes
            require_usable(config.train.trackers)
        return ", ".join(["csv", *config.train.trackers])

    mend = (
        "Install what is missing, see to it that rank 0's node reaches the server, or leave it "
        "out of --train.logger."
    )
    return _row_of_every_rank("loggers", look, mend=mend)


# --- Data


_STAGES = {
    "source": "probe and size",
    "subset": "subset",
    "normalization": "normalization",
    "nphotons": "nphotons",
    "intensity_scale": "intensity scale",
    "validation": "validation",
}
"""What the data module's setup finds, in this order, and the name of its row; where it stops is
what failed."""

_MENDS = {
    "source": "Give a probe of the patterns' size with --data.probe FILE; name each scan once, "
    "all of one size, as many modes each.",
    "subset": (
        "Change data.subset_size or what else data.sampling draws by, data.val_fraction or "
        "data.group_size; "
        "where ranks differ, give all nodes the same files."
    ),
    "normalization": "Repair the file, or leave it out; --data.measurement says whether it holds "
    "amplitude or counts.",
    "nphotons": "Say the dose: --data.nphotons NUMBER, or measured where the file holds counts or "
    "their square root.",
    "intensity_scale": "Repair the file, or leave it out.",
    "validation": "Repair the file, or leave it out.",
}


def rows_of_data(config: Config) -> tuple[ScanDataModule, list[Row]]:
    """What a run of this one process would take from its scans, from the files to the memory of a
    step; and the module that found it.

    The rows are those of `check`. The module has what its setup found before it failed, if it did.
    """
    data, failure = _set_up(config)
    return data, [
        *_data_rows(config, data, failure),
        *_size_rows(config, data, [_Host.of_this_rank()]),
    ]


def _data_and_size_rows(config: Config, hosts: Sequence[_Host]) -> Iterator[Row]:
    data, failure = _set_up(config)
    yield from _data_rows(config, data, failure)
    num_parameters = yield from _size_rows(config, data, hosts)
    yield _disk_row(config, num_parameters)
    if num_parameters:
        yield from _resume_rows(config, data)


def _set_up(config: Config) -> tuple[ScanDataModule, str | None]:
    """The data module, and what its setup failed at."""
    data = ScanDataModule(
        config.data,
        global_batch_size=config.train.global_batch_size,
        num_micro_batches=config.train.accumulate_grad_batches,
        seed=config.train.seed,
    )
    try:
        data.setup("fit")
    except Exception as error:
        return data, _failure_of_all(error)
    return data, None


def _data_rows(config: Config, data: ScanDataModule, failure: str | None) -> Iterator[Row]:
    file_rows = list(_file_rows(config, data))
    yield from file_rows
    yield from _scale_rows(
        data, failure, files_are_read=all(row.verdict == "ok" for row in file_rows)
    )


def _file_rows(config: Config, data: ScanDataModule) -> Iterator[Row]:
    """One a file. Where the data module stopped at one, the others are opened here, so that all
    that fail are shown."""
    mend = (
        "Give --data.path files that every node sees, in a form that docs/file_formats.md "
        "describes."
    )
    if hasattr(data, "scans"):
        yield from (Row(what="data file", found=_describe_scan(scan)) for scan in data.scans)
        return
    try:
        paths = config.data.paths
    except ValueError as error:
        yield Row(what="data file", found=str(error), verdict="FAIL", mend=mend)
        return
    for path in paths:
        yield _row_found_together("data file", partial(_open_scan, path, config), mend=mend)


def _open_scan(path: Path, config: Config) -> str:
    return _describe_scan(read_scan(path, options=config.data))


def _describe_scan(scan: Scan) -> str:
    size = (
        f"{scan.num_patterns} patterns of {scan.pattern_size} x {scan.pattern_size} "
        f"{scan.diffraction.dtype}"
    )
    masked = (
        "" if scan.mask is None else f", {scan.pattern_size**2 - scan.num_counted} pixels masked"
    )
    return (
        f"{scan.path}: {size}{masked}, {size_in_words(scan.num_bytes)}, {scan.measurement}, "
        f"{len(scan.probe)} probe mode(s); on every rank"
    )


def _scale_rows(
    data: ScanDataModule, failure: str | None, *, files_are_read: bool
) -> Iterator[Row]:
    stopped = not files_are_read
    for stage, what in _STAGES.items():
        if stopped:
            yield _not_looked_at(what)
        elif hasattr(data, stage) or failure is None:
            yield Row(what=what, found=_describe_stage(data, stage))
        else:
            yield Row(what=what, found=failure, verdict="FAIL", mend=_MENDS[stage])
            stopped = True


def _describe_stage(data: ScanDataModule, stage: str) -> str:
    match stage:
        case "source":
            modes, size, _ = data.scans[0].probe.shape
            return f"{modes} mode(s) of {size} x {size}, as the patterns"
        case "subset":
            train, validation = len(data.subset.train), len(data.subset.validation)
            counts = (
                f"{train} training patterns, {validation} validation patterns, groups of "
                f"{data.config.group_size}"
            )
            return f"{data.subset.description}; {counts}; fingerprint {data.subset.fingerprint}"
        case "normalization":
            return (
                f"r = {data.normalization.factor!r} from {data.normalization.num_patterns} patterns"
            )
        case "nphotons":
            return f"{data.nphotons.value!r} (source: {data.nphotons.source})"
        case "intensity_scale":
            return (
                f"s = {data.intensity_scale.value!r} from {data.intensity_scale.num_patterns} "
                "patterns"
            )
        case _:
            return f"{len(data.subset.validation)} patterns read"


# --- Network, memory, disk


def _size_rows(
    config: Config, data: ScanDataModule, hosts: Sequence[_Host]
) -> Generator[Row, None, int]:
    """Gives the number of the network's parameters, 0 where it can't be built."""
    precision = resolve_precision(config.train.precision)
    num_parameters = 0

    def look() -> str:
        nonlocal num_parameters
        with torch.device("meta"):  # takes no memory
            network = build_network(config.model, data.scans[0].pattern_size)
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        return f"{num_parameters} parameters, precision {precision}"

    row = _not_looked_at("network")
    if hasattr(data, "scans"):
        row = _row_of_every_rank(
            "network",
            look,
            mend="Take a window of a power of two, at least 16 pixels a side: --data.crop 64.",
        )
    yield row
    if row.verdict == "ok" and hasattr(data, "normalization"):
        num_groups, num_steps = _largest_micro_batch(data)
        batch = (
            f"{config.train.global_batch_size} groups of {config.data.group_size} a step, at "
            f"most {num_groups} at a time on a rank"
        )
        yield Row(
            what="batch", found=f"{batch}; {num_steps} steps an epoch, {config.train.epochs} epochs"
        )
        yield _memory_row(
            config,
            data,
            hosts,
            num_parameters=num_parameters,
            num_groups=num_groups,
            precision=precision,
        )
        yield Row(what="patterns", found="; ".join([str(data.placement), *data.reading_advice()]))
    else:
        yield _not_looked_at("memory")
    return num_parameters


def _largest_micro_batch(data: ScanDataModule) -> tuple[int, int]:
    """Groups that the busiest rank computes at a time, and steps an epoch."""
    sampler = data.train_sampler()
    return max(1, int(largest([len(next(iter(sampler)))])[0])), sampler.steps_per_epoch


def _memory_row(
    config: Config,
    data: ScanDataModule,
    hosts: Sequence[_Host],
    *,
    num_parameters: int,
    num_groups: int,
    precision: str | int,
) -> Row:
    mend = (
        "Raise train.accumulate_grad_batches (the step stays the same), start fewer ranks a node "
        "or more nodes, "
        "or lower train.global_batch_size."
    )
    # is not held against the run
    nobody_says = MemorySupply(host={}, slurm=None, own=0, device=None)
    supplies = [
        outcome.value or nobody_says for outcome in on_every_rank(MemorySupply.of_this_rank)
    ]
    of_hosts: dict[str, list[MemorySupply]] = {}
    for host, supply in zip(hosts, supplies, strict=True):
        of_hosts.setdefault(host.name, []).append(supply)

    def require_enough(step: StepMemory) -> str:
        left = {name: _require_enough(step, name, on_host) for name, on_host in of_hosts.items()}
        return f"{_describe_step(step)}; {next(iter(left.values()))}"

    weights = 4 * num_parameters
    bare = StepMemory(
        parameters=weights,
        gradients=weights,
        optimizer=2 * weights,
        activations=0,
        batch=0,
        patterns=0,
        loading=0,
    )
    try:
        require_enough(bare)
    except ValueError as error:  # before the network itself is made
        return Row(what="memory", found=str(error), verdict="FAIL", mend=mend)
    module = _build_module(config, data)
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    groups = np.concatenate([data.subset.train_groups, data.subset.validation_groups])
    positions_px = data.source.positions_px[groups]
    widest = positions_px[np.ptp(positions_px, axis=1).max(axis=1).argmax()]

    def look() -> str:
        step = estimate_step_memory(
            module.to(device),
            torch.from_numpy(widest),
            num_groups=num_groups,
            validates=len(data.subset.validation) > 0,
            precision=precision,
            num_ranks=world_size(),
            num_patterns=len(data.source.positions_px),
            held_bytes=data.placement.held_bytes,
        )
        return require_enough(step)

    return _row_of_every_rank("memory", look, mend=mend)


def _require_enough(step: StepMemory, host: str, on_host: Sequence[MemorySupply]) -> str:
    """What is left on a node, for a rank's GPU and for all its ranks together; raise where a step
    doesn't fit."""
    said = []
    on_gpu = [supply.device for supply in on_host if supply.device is not None]
    if on_gpu:
        said.append(f"{size_in_words(min(on_gpu))} free on the GPU")
        if step.for_step > min(on_gpu):
            raise ValueError(f"{_describe_step(step)}, but {host} has {said[-1]}")
    left = host_bytes_left(on_host)
    if left is not None:
        needed = len(on_host) * (step.loading + (0 if on_gpu else step.for_step))
        said.append(
            f"the node's ranks need {size_in_words(needed)}, {left[1]} has "
            f"{size_in_words(left[0])} left"
        )
        if needed > left[0]:
            raise ValueError(f"{_describe_step(step)}; {host}: {said[-1]}")
    return "; ".join(said) or "nobody says what is free"


def _describe_step(step: StepMemory) -> str:
    parts = (
        f"parameters {size_in_words(step.parameters)}, gradients "
        f"{size_in_words(step.gradients)}, Adam {size_in_words(step.optimizer)}"
    )
    if not step.activations:
        return f"at least {size_in_words(step.for_step)} a rank: {parts}"
    held = f", patterns {size_in_words(step.patterns)}" if step.patterns else ""
    rest = (
        f"activations {size_in_words(step.activations)}, batch "
        f"{size_in_words(step.batch)}{held}, loading {size_in_words(step.loading)}"
    )
    return f"{size_in_words(step.for_step + step.loading)} a rank: {parts}, {rest}"


def _build_module(config: Config, data: ScanDataModule) -> PtychographyModule:
    """Network and loss. Where nphotons is missing, with a scale of 1: it changes no size."""
    module = PtychographyModule(config.model, learning_rate=config.train.learning_rate)
    masks = stack_masks(data.scans)
    module.build(
        torch.from_numpy(np.stack([scan.probe for scan in data.scans])),
        getattr(data, "intensity_scale", 1.0),
        seed=config.train.seed,
        masks=None if masks is None else torch.from_numpy(masks),
    )
    return module


def _disk_row(config: Config, num_parameters: int) -> Row:
    """Whether rank 0 will find room. Quotas are not seen. Where the network is not known (0
    parameters), room for the rest at least."""
    run_dir = Path(config.train.run_dir)

    def look() -> str:
        # Weights and Adam's two moments; a new checkpoint is written beside the last one, which
        # goes only then.
        checkpoint_bytes = 3 * 4 * num_parameters
        lies_there = (
            last_checkpoint(run_dir).stat().st_size if last_checkpoint(run_dir).exists() else 0
        )
        needed = max(2 * checkpoint_bytes - lies_there, 0) + 4 * num_parameters + REST_OF_RUN_BYTES
        directory = nearest_directory(run_dir)
        free = shutil.disk_usage(directory).free
        what = (
            "two checkpoints, bundle and log need"
            if num_parameters
            else "log and pictures alone need"
        )
        said = f"{size_in_words(free)} free in {directory}; {what} {size_in_words(needed)}"
        if needed > free:
            raise ValueError(said)
        return said

    outcome = on_every_rank(lambda: look() if rank() == 0 else "")[0]  # rank 0 writes
    return _row_of_outcomes(
        "disk", [outcome], mend="Free some room, or name another --train.run_dir."
    )


def _resume_rows(config: Config, data: ScanDataModule) -> Iterator[Row]:
    try:
        checkpoint = _checkpoint(config)
    except ValueError:  # the run directory's row says it
        return
    if checkpoint is None or not hasattr(data, "intensity_scale"):
        return
    module = _build_module(config, data)
    found = {
        "intensity_scale": data.intensity_scale.value,
        "subset_fingerprint": data.subset.fingerprint,
    }
    module.save_hyperparameters({**found, "config": config.to_dict()})

    def look() -> str:
        content = WholeCheckpointIO().load_checkpoint(checkpoint, map_location="cpu")
        module.on_load_checkpoint(content)
        try:
            module.load_state_dict(content["state_dict"])
        except RuntimeError as error:  # a line for each weight that doesn't fit
            raise ValueError(
                f"{checkpoint}: the network is another one: {str(error).splitlines()[-1].strip()}"
            ) from error
        return (
            f"{checkpoint}: epoch {content['epoch']}, step {content['global_step']}, of these "
            "data and this network"
        )

    yield _row_of_every_rank(
        "checkpoint",
        look,
        mend="Train on with the data and the network of the checkpoint, or start anew elsewhere.",
    )
