"""`launch/train.py --check`: the table says what the run would find, or why it would fail, and
leaves no trace."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml

from ptycho_dist import memory_supply as memory_module
from ptycho_dist.config import ModelConfig, parse_mapping
from ptycho_dist.data.batches import Samples
from ptycho_dist.data.readers import read_scan
from ptycho_dist.data.subset import select_subset
from ptycho_dist.distributed import FailedTogether
from ptycho_dist.model.lightning_module import PtychographyModule
from ptycho_dist.preflight import check as check_module
from ptycho_dist.preflight import memory as memory_row_module
from ptycho_dist.preflight.check import check
from ptycho_dist.training import memory as step_memory
from ptycho_dist.training.processes import Processes
from tests.calibrations import made_up_calibration
from tests.disks import READ_ONLY, REMOUNT, mount
from tests.scans import MASKED_HDF5, dead_pixels, small_scan_arrays
from tests.training.runs import act_as_torchrun, settings, told_by, train_one

Launch = Callable[..., subprocess.CompletedProcess[str]]
OnRanks = Callable[..., list[Any]]
Capture = pytest.CaptureFixture[str]


def table(output: str) -> dict[str, tuple[str, str]]:
    """Verdict and text (found, and after `fix:` the fix) of each row; the texts of rows of one
    name are joined."""
    rows: dict[str, tuple[str, str]] = {}
    name = ""
    in_table = False
    for line in output.splitlines():
        in_table = in_table or line.startswith("check  ")
        match = re.match(r"(\S.*?) {2,}(ok|FAIL|-) +(\S.*)", line)
        if in_table and match:
            name, verdict, found = match.groups()
            earlier_verdict, earlier = rows.get(name, ("", ""))
            rows[name] = (
                "FAIL" if "FAIL" in (verdict, earlier_verdict) else verdict,
                f"{earlier} {found}".strip(),
            )
        elif in_table and name and line.startswith("   "):
            rows[name] = (rows[name][0], f"{rows[name][1]} {line.strip()}")
        else:
            name = ""
    return rows


def everything_in(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Names, sizes and times of change."""
    states = {path: path.stat() for path in sorted(folder.rglob("*"))}
    return {
        str(path): (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        for path, state in states.items()
    }


def check_on_this_rank(concerns: dict[str, Any]) -> str:
    """What a rank of torchrun prints."""
    act_as_torchrun()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        check(parse_mapping(concerns))
    return printed.getvalue()


@pytest.mark.parametrize("nproc", [None, 2])
def test_good_job_shows_what_the_run_then_finds(
    launch: Launch,
    on_ranks: OnRanks,
    write_scan: Callable[..., Path],
    tmp_path: Path,
    nproc: int | None,
) -> None:
    concerns = settings(write_scan(), tmp_path / "run")
    before = everything_in(tmp_path)
    if nproc is None:
        checked = launch("train.py", "--check", *told_by(concerns))
        assert checked.returncode == 0, checked.stdout
        printed = checked.stdout
    else:
        printed, silence = on_ranks(nproc, check_on_this_rank, concerns)
        assert silence == ""  # rank 0 says it
    assert everything_in(tmp_path) == before
    assert "\x1b" not in printed
    rows = table(printed)
    assert {verdict for verdict, _ in rows.values()} == {"ok"}, printed

    on_ranks(1, train_one, concerns)  # the run directory is free for it
    hparams = yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text())
    assert f"s = {hparams['intensity_scale']!r} from 33 patterns" in rows["intensity scale"][1]
    assert (
        f"r = {hparams['calibration']['rms_factor']!r} from 33 patterns" in rows["normalization"][1]
    )
    assert rows["nphotons"][1] == "1000000.0 (source: config)"
    assert hparams["calibration"]["subset_fingerprint"] in rows["subset"][1]
    assert rows["subset"][1].startswith(
        "37 of 37 patterns, full; 33 training patterns, 4 validation patterns, groups of 4"
    )
    assert f"torch {hparams['versions']['torch']}" in rows["software, config"][1]
    launcher = (
        "torchrun; world size 2, 1 node(s), backend gloo"
        if nproc
        else "python alone; world size 1, 1 node(s), backend none"
    )
    assert rows["processes"][1].startswith(launcher)
    assert re.search(
        r"552 B in .* ms; 16.8 MB in .* ms, .*/s" if nproc else "nothing to reduce",
        rows["all_reduce"][1],
    )
    assert rows["batch"][1].startswith(
        f"8 groups of 4 per step, at most {4 if nproc else 8} at a time on a rank; 5 steps per "
        "epoch, 2 epochs"
    )


Refused = Callable[[dict[str, Any]], dict[str, tuple[str, str]]]


@pytest.fixture
def refused(on_ranks: OnRanks, capsys: Capture) -> Refused:
    """`refused(settings)`: the table of a check that fails, and leaves nothing, of a run that fails
    too."""

    def look(concerns: dict[str, Any]) -> dict[str, tuple[str, str]]:
        rows = rows_of_failed_check(concerns, capsys)
        on_ranks(1, run_fails, concerns)
        return rows

    return look


def run_fails(concerns: dict[str, Any]) -> None:
    with pytest.raises((ValueError, OSError)):
        train_one(concerns)


def rows_of_failed_check(concerns: dict[str, Any], capture: Capture) -> dict[str, tuple[str, str]]:
    before = everything_in(Path(concerns["train"]["run_dir"]).parent)
    with pytest.raises(FailedTogether, match="checks failed") as caught:
        check(parse_mapping(concerns))
    rows = table(capture.readouterr().out)
    failed = [name for name, (verdict, _) in rows.items() if verdict == "FAIL"]
    assert str(caught.value).endswith(", ".join(failed))
    assert all(" fix: " in text for verdict, text in rows.values() if verdict == "FAIL")
    assert everything_in(Path(concerns["train"]["run_dir"]).parent) == before
    return rows


def failures(rows: dict[str, tuple[str, str]]) -> list[str]:
    return [name for name, (verdict, _) in rows.items() if verdict == "FAIL"]


def test_missing_data(write_scan: Callable[..., Path], tmp_path: Path, refused: Refused) -> None:
    """Each file that can't be read is named, not only the first."""
    paths = ["missing.npz", str(write_scan()), "missing_too.npz"]
    rows = refused(settings(tmp_path, tmp_path / "run", data__path=paths))
    assert failures(rows) == ["data file"]
    for said in (
        "missing.npz: file: found no such file",
        "scan.npz: 37 patterns of 16 x 16",
        "missing_too.npz: file: found no such file",
    ):
        assert said in rows["data file"][1]
    assert "fix: Give --data.path files that every node sees" in rows["data file"][1]
    assert rows["intensity scale"] == rows["memory"] == ("-", "needs what failed above")


@pytest.mark.parametrize(
    ("changes", "row", "found", "fix"),
    [
        ({"data__path": None}, "data file", "data.path is None", "Give --data.path"),
        (
            {"data__nphotons": None},
            "nphotons",
            "no _metadata physics_parameters.nphotons",
            "Give the dose: --data.nphotons NUMBER",
        ),
        (
            {"data__subset_size": 38},
            "subset",
            "data.subset_size is 38, but",
            "Change data.subset_size",
        ),
        (
            {"data__sampling": "index_file", "data__index_file": "gone.txt"},
            "subset",
            "gone.txt: file: found no such file, expected a list of pattern numbers",
            "Change data.subset_size or whatever else data.sampling draws by",
        ),
        (
            {"train__resume": "gone.ckpt"},
            "run directory",
            "found no file gone.ckpt",
            "Name another --train.run_dir",
        ),
    ],
)
def test_configuration_that_the_data_refuse(
    write_scan: Callable[..., Path],
    tmp_path: Path,
    refused: Refused,
    changes: dict[str, Any],
    row: str,
    found: str,
    fix: str,
) -> None:
    rows = refused(settings(write_scan(), tmp_path / "run", **changes))
    assert failures(rows) == [row]
    assert found in rows[row][1]
    assert f"fix: {fix}" in rows[row][1]


@pytest.mark.parametrize(("number", "row"), [(1, "normalization"), (0, "validation")])
def test_bad_pixel(
    write_scan: Callable[..., Path], tmp_path: Path, refused: Refused, number: int, row: str
) -> None:
    """In a pattern of each side: number 1 is trained on, all but number 0 are."""
    diffraction = small_scan_arrays()["diffraction"]
    validation = {0: 0.03, 1: 0.0}[number]  # one pattern, or none
    concerns = settings(
        write_scan(), tmp_path / "run", data__val_fraction=validation, data__group_size=1
    )
    if number == 0:
        number = int(
            select_subset(
                [read_scan(tmp_path / "scan.npz", "amplitude")], parse_mapping(concerns).data
            ).validation[0]
        )
    diffraction[number, 3, 4] = -1
    write_scan(diffraction=diffraction)
    rows = refused(concerns)
    assert failures(rows) == [row]
    assert f"found -1.0 at pixel [3, 4] of pattern {number}" in rows[row][1]


def test_patterns_of_a_size_that_the_network_does_not_take(
    write_scan: Callable[..., Path], tmp_path: Path, refused: Refused
) -> None:
    rows = refused(
        settings(write_scan(arrays=small_scan_arrays(pattern_size=24)), tmp_path / "run")
    )
    assert failures(rows) == ["network"]
    assert "power of two" in rows["network"][1]


def test_checkpoint_in_the_way(
    on_ranks: OnRanks,
    write_scan: Callable[..., Path],
    tmp_path: Path,
    capsys: Capture,
    refused: Refused,
) -> None:
    concerns = settings(write_scan(), tmp_path / "run", train__epochs=1)
    on_ranks(1, train_one, concerns)
    rows = refused(concerns)
    assert failures(rows) == ["run directory"]
    assert "found the checkpoint of an earlier run" in rows["run directory"][1]
    assert "or go on with --train.resume auto" in rows["run directory"][1]

    concerns["train"]["resume"] = "auto"
    check(parse_mapping(concerns))
    rows = table(capsys.readouterr().out)
    assert failures(rows) == []
    assert rows["checkpoint"][1].endswith("epoch 0, step 5, of these data and this network")

    concerns["data"]["nphotons"] = 2e6
    rows = refused(concerns)
    assert failures(rows) == ["checkpoint"]
    assert "the checkpoint was trained with intensity_scale" in rows["checkpoint"][1]
    concerns["data"]["nphotons"], concerns["model"]["base_width"] = 1e6, 8
    with pytest.raises(FailedTogether, match=r"1 of \d+ checks failed: checkpoint"):
        check(parse_mapping(concerns))
    assert (
        "the network is another one: size mismatch"
        in table(capsys.readouterr().out)["checkpoint"][1]
    )


def test_another_run_in_the_directory(
    write_scan: Callable[..., Path], tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = refused(settings(write_scan(), tmp_path / "run"))
    assert failures(rows) == ["run directory"]
    assert "another run is writing here" in rows["run directory"][1]


def test_run_directory_that_may_not_be_written(
    write_scan: Callable[..., Path],
    small_disk: Callable[[int], Path],
    tmp_path: Path,
    refused: Refused,
) -> None:
    disk = small_disk(1 << 22)
    mount(disk, READ_ONLY | REMOUNT, "")
    rows = refused(settings(write_scan(), disk / "run"))
    assert failures(rows) == ["run directory"]
    assert (
        f"{disk}: may not be written by this user, or its file system is read-only"
        in rows["run directory"][1]
    )
    rows = refused(settings(tmp_path / "scan.npz", tmp_path / "scan.npz" / "run"))
    assert "scan.npz is a file, expected a directory" in rows["run directory"][1]


def test_full_disk(
    write_scan: Callable[..., Path], small_disk: Callable[[int], Path], refused: Refused
) -> None:
    """All that fails is shown at once: the disk, the dose and the checkpoint in the way."""
    disk = small_disk(1 << 16)
    (disk / "run" / "checkpoints").mkdir(parents=True)
    (disk / "run" / "checkpoints" / "last.ckpt").touch()
    rows = refused(settings(write_scan(), disk / "run", data__nphotons=None))
    assert failures(rows) == ["run directory", "nphotons", "disk"]
    found = re.search(
        r"(\S+) kB free in \S+; two checkpoints, bundle and log need (\S+) MB fix: Free some room",
        rows["disk"][1],
    )
    assert float(found.group(1)) <= 65.6
    assert float(found.group(2)) >= 1


def test_room_for_checkpoints_is_what_they_take(
    on_ranks: OnRanks, write_scan: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    concerns = settings(write_scan(), tmp_path / "run", train__epochs=1, model__base_width=48)
    check(parse_mapping(concerns))
    needed = (
        float(re.search(r"log need (\S+) MB", table(capsys.readouterr().out)["disk"][1]).group(1))
        * 1e6
    )
    on_ranks(1, train_one, concerns)
    checkpoint = (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_size
    taken = checkpoint + sum(
        path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file()
    )
    # which is kept for what does not grow with the network
    assert taken <= needed <= taken + (1 << 20)


def test_batch_too_large_for_memory(
    write_scan: Callable[..., Path], tmp_path: Path, capsys: Capture, monkeypatch: Any
) -> None:
    """A million groups of 16 x 16 at a time; and weights alone that no machine holds, which are not
    even made."""
    monkeypatch.setattr(check_module, "_largest_micro_batch", lambda data: (1_000_000, 1))
    concerns = settings(write_scan(), tmp_path / "run")
    for changes, said in (({}, "activations"), ({"base_width": 200_000}, "at least ")):
        concerns["model"].update(changes)
        with pytest.raises(FailedTogether, match=r"checks failed: memory"):
            check(parse_mapping(concerns))
        rows = table(capsys.readouterr().out)
        assert rows["memory"][0] == "FAIL"
        assert said in rows["memory"][1]
        assert re.search(
            r"the node's ranks need \S+ [GT]B, .* has \S+ [GMk]?B left fix: Raise train.accumulate",
            rows["memory"][1],
        )


def test_batch_counts_once_accumulated(
    write_scan: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    check(parse_mapping(settings(write_scan(), tmp_path / "run", train__accumulate_grad_batches=3)))
    assert (
        "8 groups of 4 per step, at most 3 at a time on a rank"
        in table(capsys.readouterr().out)["batch"][1]
    )


PEAK_OF_A_RUN = """
import json, sys
from pathlib import Path
from ptycho_dist.config import ModelConfig, parse_mapping
from ptycho_dist.training import train as run

run.write_training_report = lambda *arguments: None  # its pictures take more than such small steps

def memory(key):
    return 1024 * int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1])

first, second = map(parse_mapping, json.loads(sys.argv[1]))
run.train(first)  # what a process takes once
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
run.train(second)
print("peak", memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 2])
def test_memory_of_a_real_run_is_as_estimated(
    tmp_path: Path, capsys: Capture, accumulated: int
) -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system keeps no peak of memory that can be reset")
    np.savez(tmp_path / "scan.npz", **small_scan_arrays(num_patterns=70, pattern_size=64))
    batch = {
        "train__global_batch_size": 32,
        "train__accumulate_grad_batches": accumulated,
        "model__base_width": 8,
        "train__epochs": 1,
    }
    concerns = settings(tmp_path / "scan.npz", tmp_path / "run", **batch)
    first = settings(
        tmp_path / "scan.npz",
        tmp_path / "first",
        train__global_batch_size=1,
        data__subset_size=20,
        train__epochs=1,
    )
    check(parse_mapping(concerns))
    estimated = float(
        re.match(r"(\S+) MB a rank", table(capsys.readouterr().out)["memory"][1]).group(1)
    )
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_A_RUN, json.dumps([first, concerns])],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = int(done.stdout.split()[-1]) / 1e6
    # Measured 0.83 to 1.06 of the estimate: the allocator keeps less than it may, and a batch is
    # gone before the activations' peak.
    assert 0.7 * estimated < measured < 1.15 * estimated


def check_with_fault_on_rank_1(concerns: dict[str, Any], fault: str) -> str:
    act_as_torchrun()
    if dist.get_rank() == 1:
        if fault == "file":
            concerns["data"]["path"] = "scan.npz"
            os.chdir("/")
        elif fault == "memory":
            memory_module._available_on_machine = lambda: 1000
            memory_module._available_in_control_groups = lambda: ()
        elif fault == "version":
            versions = check_module.software_versions()
            check_module.software_versions = lambda: {**versions, "torch": "1.0"}
        else:
            memory_row_module.estimate_step_memory = lambda *args, **kwargs: 1 / 0
    elif fault == "file":
        os.chdir(Path(concerns["data"]["path"]).parent)
        concerns["data"]["path"] = "scan.npz"
    read, write = os.pipe()
    os.dup2(write, 1)
    with pytest.raises(FailedTogether, match="checks failed"):
        check(parse_mapping(concerns))
    os.close(write)
    os.close(1)
    return os.read(read, 1 << 16).decode()


@pytest.mark.parametrize(
    ("fault", "row", "message"),
    [
        ("file", "data file", "rank 1: scan.npz: file: found no such file, expected a scan file"),
        ("memory", "memory", "the machine has 1 kB left"),
        ("version", "software, config", "ranks differ: torch is '1.0' on rank 1"),
        ("sample", "memory", "rank 1: ZeroDivisionError: division by zero"),
    ],
)
def test_fault_of_one_rank_is_a_row_of_the_one_table(
    on_ranks: OnRanks,
    write_scan: Callable[..., Path],
    tmp_path: Path,
    fault: str,
    row: str,
    message: str,
) -> None:
    outputs = on_ranks(
        3, check_with_fault_on_rank_1, settings(write_scan(), tmp_path / "run"), fault
    )
    assert outputs[1:] == ["", ""]  # rank 0 says it
    rows = table(outputs[0])
    assert failures(rows) == [row]
    assert message in rows[row][1]
    assert not (tmp_path / "run").exists()


def test_processes_that_do_not_meet(
    write_scan: Callable[..., Path], tmp_path: Path, capsys: Capture, monkeypatch: Any
) -> None:
    def fail(self: Processes) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(Processes, "join", fail)
    with pytest.raises(FailedTogether, match="1 of 1 checks failed: processes"):
        check(parse_mapping(settings(write_scan(), tmp_path / "run")))
    rows = table(capsys.readouterr().out)
    assert failures(rows) == list(rows) == ["processes"]
    assert re.search(
        r"RuntimeError: no route to host fix: Start one process per GPU with torchrun or srun",
        rows["processes"][1],
    )


def test_more_processes_than_gpus(monkeypatch: Any) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_module._require_own_device(Processes(per_node=4, local_rank=1))
    with pytest.raises(
        ValueError,
        match=r"local rank 2 has no GPU of its own: this process sees 2, with 4 processes on the node",
    ):
        check_module._require_own_device(Processes(per_node=4, local_rank=2))


@pytest.fixture
def supply() -> Iterator[Callable[..., memory_module.MemorySupply]]:
    def make(**changes: Any) -> memory_module.MemorySupply:
        return memory_module.MemorySupply(
            **{"host": {"the machine": 1000}, "slurm": None, "own": 100, "device": None, **changes}
        )

    return make


def test_memory_of_a_node_is_the_least_that_anybody_leaves(
    supply: Callable[..., memory_module.MemorySupply],
) -> None:
    left = memory_module.host_bytes_left
    assert left([supply(), supply(host={"the machine": 900})]) == (900, "the machine")
    assert left([supply(host={"the machine": 900, "its control group": 50})]) == (
        50,
        "its control group",
    )
    # both use 100 of it
    assert left([supply(slurm=700), supply(slurm=700)]) == (500, "SLURM's allocation")
    assert left([supply(host={})]) is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_MEM_PER_NODE": "4096"}, 4096 << 20),
        ({"SLURM_MEM_PER_NODE": "0"}, None),
        ({"SLURM_MEM_PER_CPU": "1000", "SLURM_CPUS_ON_NODE": "8"}, 8000 << 20),
    ],
)
def test_allocation_of_slurm(
    monkeypatch: Any, variables: dict[str, str], expected: int | None
) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert memory_module._slurm_allowance() == expected


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups(tmp_path: Path, version: int) -> None:
    """The job's group has a limit, its step's has none: what the job leaves is what there is."""
    folder = tmp_path / "sys/fs/cgroup" / ("memory" if version == 1 else "") / "job"
    (folder / "step").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(
        "4:memory,hugetlb:/job/step\n3:cpu:/x\n" if version == 1 else "0::/job/step\n"
    )
    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if version == 1
        else ("memory.max", "memory.current")
    )
    (folder / limit).write_text("1000\n")
    (folder / used).write_text("600\n")
    (folder / "memory.stat").write_text("inactive_file 150\ntotal_inactive_file 150\n")
    if version == 2:
        (folder / "step" / limit).write_text("max\n")
    assert list(memory_module._available_in_control_groups(tmp_path)) == [1000 - 600 + 150]


def test_masked_scan_passes_and_its_step_is_counted_with_the_mask(
    write_masked_scan: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    check(
        parse_mapping(
            settings(
                write_masked_scan("scan.h5", dead_pixels(0)),
                tmp_path / "run",
                data__hdf5=MASKED_HDF5,
            )
        )
    )
    rows = table(capsys.readouterr().out)
    assert failures(rows) == []
    assert (
        f"16 x 16 float32, {np.count_nonzero(~dead_pixels(0))} pixels masked"
        in rows["data file"][1]
    )

    positions_px = torch.rand(4, 2, dtype=torch.float64)
    module = PtychographyModule(
        ModelConfig(base_width=4),
        made_up_calibration(),
        torch.ones(1, 1, 16, 16, dtype=torch.complex64),
        torch.from_numpy(dead_pixels(0))[None],
    )
    estimated = step_memory.estimate_step_memory(
        module,
        positions_px,
        num_groups=5,
        validates=False,
        precision="32",
        num_ranks=1,
        num_patterns=37,
        held_bytes=0,
    )
    with step_memory.LiveBytes() as live:
        samples = Samples(
            torch.ones(5, 4, 16, 16),
            positions_px.expand(5, -1, -1),
            torch.zeros(5, dtype=torch.int64),
        )
        prediction = module(samples), samples.x_norm, module.mask(samples)
        del samples
        module.loss.deviance(*prediction).sum(dtype=torch.float64).backward()
    assert estimated.activations == int(
        step_memory.ALLOCATOR_FACTOR * max(live.after_each_operation)
    )
