"""Ranks without torchrun: processes of a forkserver that has PyTorch and the package loaded, 0.1 s
for two of them."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist

from tests import figures

TIMEOUT_SECONDS = 120

forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(
    ["torch", "ptycho_dist.training.train", "ptycho_dist.training.report"]
)


def run_on_ranks(world_size: int, body: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run `body`, a function of a module, on gloo ranks; return what each rank returned.

    Fails with the tracebacks of all ranks if one raises. Ranks that hang are killed.
    """
    results = forkserver.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            forkserver.Process(
                target=_run_rank,
                args=(rank, world_size, f"{folder}/store", body, arguments, results),
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            answers = sorted(results.get(timeout=TIMEOUT_SECONDS) for _ in processes)
        finally:
            for process in processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
    errors = [f"rank {rank}:\n{error}" for rank, error, _ in answers if error]
    assert not errors, "\n".join(errors)
    return [value for _, _, value in answers]


def _run_rank(
    rank: int,
    world_size: int,
    store: str,
    body: Callable[..., Any],
    arguments: tuple[Any, ...],
    results: Any,
) -> None:
    figures.skip_drawing()
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
        )
        dist.barrier()  # a rank that is done early must not leave while others still connect to it
        results.put((rank, "", body(*arguments)))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
    # The result is on its way before anything below can block; peers may still read what this rank
    # sent in its last collective.
    results.close()
    results.join_thread()
    with suppress(RuntimeError, ValueError):
        dist.barrier()
    os._exit(0)
