"""How much memory is left on this process's node and on its GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySupply:
    """Memory that a rank may still take.

    Attributes
    ----------
    host
        Bytes left on its node, shared with the node's other ranks, by who says so.
    slurm
        Bytes that Slurm gave the job on the node, including those in use; None without a limit.
    own
        Bytes of memory that this process alone uses now.
    device
        Bytes free on its GPU; None without one.
    """

    host: dict[str, int]
    slurm: int | None
    own: int
    device: int | None

    @classmethod
    def of_this_rank(cls) -> MemorySupply:
        found = {"the machine": _available_on_machine()}
        if in_groups := list(_available_in_control_groups()):
            found["its control group"] = min(in_groups)
        device = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
        used = psutil.Process().memory_info()
        # the page cache and libraries are shared with other processes
        own = used.rss - getattr(used, "shared", 0)
        return cls(host=found, slurm=_slurm_allowance(), own=own, device=device)


def host_bytes_left(supplies: Sequence[MemorySupply]) -> tuple[int, str] | None:
    """Return the memory left on the node that these ranks share, and who says so."""
    found = [(left, who) for supply in supplies for who, left in supply.host.items()]
    in_use = sum(supply.own for supply in supplies)
    found += [
        (max(0, supply.slurm - in_use), "SLURM's allocation")
        for supply in supplies
        if supply.slurm is not None
    ]
    return min(found, default=None)


def size_in_words(num_bytes: float) -> str:
    """Return a size with three digits and a unit: `67.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _available_on_machine() -> int:
    return psutil.virtual_memory().available


def _available_in_control_groups(root: Path = Path("/")) -> Iterator[int]:
    """Yield the memory left in every control group, version 1 or 2, that holds this process.

    That is its limit less its use, without the page cache, which can be dropped.
    """
    own_groups = root / "proc/self/cgroup"
    for line in own_groups.read_text().splitlines() if own_groups.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            mount, prefix = root / "sys/fs/cgroup", ""
            limit, used = "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mount, prefix = root / "sys/fs/cgroup/memory", "total_"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = mount / group.lstrip("/")
        for ancestor in (folder, *folder.parents):
            if not ancestor.is_relative_to(mount) or not (ancestor / limit).exists():
                continue
            if (allowed := (ancestor / limit).read_text().strip()) != "max":
                lines = (ancestor / "memory.stat").read_text().splitlines()
                cache = int(dict(line.split() for line in lines)[f"{prefix}inactive_file"])
                yield int(allowed) - int((ancestor / used).read_text()) + cache


def _slurm_allowance() -> int | None:
    per_node, per_cpu, cpus = (
        int(os.environ.get(f"SLURM_{name}", "0"))
        for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE")
    )
    return (per_node or per_cpu * cpus) << 20 or None
