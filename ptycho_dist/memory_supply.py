"""How much memory there still is: on this process's node, and on its GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySupply:
    """What a rank may still take.

    Attributes
    ----------
    host
        Bytes of its node's memory, shared with the node's other ranks, by who says so; empty where
        nobody does (outside Linux).
    slurm
        Bytes that SLURM gave the job on the node, what it uses already included; None without such
        a limit.
    own
        Bytes of memory that are this process's alone by now.
    device
        Bytes free on its GPU; None without one.
    """

    host: dict[str, int]
    slurm: int | None
    own: int
    device: int | None

    @classmethod
    def of_this_rank(cls) -> MemorySupply:
        found = (
            {"the machine": available} if (available := _available_on_machine()) is not None else {}
        )
        in_groups = list(_available_in_control_groups())
        if in_groups:
            found["its control group"] = min(in_groups)
        device = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
        return cls(host=found, slurm=_slurm_allowance(), own=_own_bytes(), device=device)


def host_bytes_left(supplies: Sequence[MemorySupply]) -> tuple[int, str] | None:
    """Memory left on the node that these ranks share, and who says so."""
    found = [(left, who) for supply in supplies for who, left in supply.host.items()]
    in_use = sum(supply.own for supply in supplies)
    found += [
        (max(0, supply.slurm - in_use), "SLURM's allocation")
        for supply in supplies
        if supply.slurm is not None
    ]
    return min(found, default=None)


def _available_on_machine() -> int | None:
    meminfo = Path("/proc/meminfo")
    return _kilobytes(meminfo, "MemAvailable") if meminfo.exists() else None


def _available_in_control_groups(root: Path = Path("/")) -> Iterator[int]:
    """Limit less use, the page cache that can be dropped not counted, of every group that this
    process is in; versions 1 and 2."""
    own_groups = root / "proc/self/cgroup"
    for line in own_groups.read_text().splitlines() if own_groups.exists() else ():
        _, controllers, group = line.split(":", 2)
        hierarchy = root / "sys/fs/cgroup"
        if controllers == "":
            limit, used, cache = "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            hierarchy /= "memory"
            limit, used, cache = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        folder = hierarchy / group.lstrip("/")
        for ancestor in (folder, *folder.parents):
            if (
                ancestor.is_relative_to(hierarchy)
                and (ancestor / limit).exists()
                and (ancestor / limit).read_text().strip() != "max"
            ):
                statistics = dict(
                    entry.split() for entry in (ancestor / "memory.stat").read_text().splitlines()
                )
                yield (
                    int((ancestor / limit).read_text())
                    - int((ancestor / used).read_text())
                    + int(statistics[cache])
                )


def _slurm_allowance() -> int | None:
    env = os.environ
    megabytes = int(env.get("SLURM_MEM_PER_NODE", "0")) or int(
        env.get("SLURM_MEM_PER_CPU", "0")
    ) * int(env.get("SLURM_CPUS_ON_NODE", "0"))
    return megabytes << 20 if megabytes else None


def _own_bytes() -> int:
    """Neither the page cache nor libraries that processes share."""
    status = Path("/proc/self/status")
    return _kilobytes(status, "RssAnon") if status.exists() else 0


def _kilobytes(path: Path, key: str) -> int:
    """A line `key: 123 kB`, in bytes."""
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


def size_in_words(num_bytes: float) -> str:
    """Three digits and a unit: `67.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
