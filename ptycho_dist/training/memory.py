"""Estimate how much memory a rank's training step takes, without taking it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The extension point of PyTorch's own guide, "Extending PyTorch"; it has no other address.
from torch.utils._python_dispatch import TorchDispatchMode

from ptycho_dist.data.batches import BATCHES_AHEAD, VALIDATION_BLOCK, Samples
from ptycho_dist.model.lightning_module import PtychographyModule

ALLOCATOR_FACTOR = 1.5
"""Bytes that the process holds per byte of activations at the peak. Allocators keep freed pieces
that nothing fits into: glibc 1.37 to 1.63 times on the CPU (1.00 to 1.02 with
MALLOC_MMAP_THRESHOLD_=65536); assumed for CUDA too."""

LOADING_BYTES_A_PIXEL = 32
"""Of a batch while it is read: the file's numbers, their float64, float32 amplitudes, the float64
product with r, float32 x_norm. Counted for held patterns too: they were read like that before, and
the allocator keeps some of it."""

BYTES_A_PATTERN, BYTES_A_GROUPED_PATTERN = 48, 8
"""Kept for every pattern of the scans, held or streamed: its position in its scan and among all
scans (16 each), its number, its place in the epoch's order; and its group of C numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """Bytes that one rank takes for a training step, beyond what its process takes without one.

    Attributes
    ----------
    parameters, gradients, optimizer
        Weights; their gradients, with DDP's copy where there are several ranks; Adam's two moments.
    activations
        Peak of a micro-batch or of a block of validation, whichever is larger, with what the
        allocator keeps beside it.
    batch
        One batch on the device, twice: one follows the other.
    patterns
        Normalised patterns that the device holds, the same on every rank; 0 if they are streamed.
    loading
        On the host: what is read at a time, batches that are ready, positions and groups of all
        patterns.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    batch: int
    patterns: int
    loading: int

    @property
    def for_step(self) -> int:
        """Bytes on the device that computes the step."""
        on_device = self.parameters + self.gradients + self.optimizer
        return on_device + self.activations + self.batch + self.patterns


def estimate_step_memory(
    module: PtychographyModule,
    group_positions_px: Tensor,
    *,
    num_groups: int,
    validates: bool,
    precision: str | int,
    num_ranks: int,
    num_patterns: int,
    held_bytes: int,
) -> StepMemory:
    """Estimate a step's memory from two small steps.

    Parameters
    ----------
    module
        Complete, on the device that computes the step. Its gradients are overwritten.
    group_positions_px
        float64 (C, 2): the group that is spread widest, and so has the largest canvas.
    num_groups
        Groups in a rank's largest micro-batch.
    validates
        True if there are validation groups.
    precision
        As for the trainer.
    num_ranks
        DDP keeps a second copy of the gradients if there are several.
    num_patterns
        Number of patterns of all scans.
    held_bytes
        Size of the normalised patterns that the device holds; 0 if they are streamed.
    """
    parameters = sum(parameter.nbytes for parameter in module.parameters())
    train, validate = _steps(module, group_positions_px, precision)
    activations, most_groups = _peak_bytes(train, num_groups), num_groups
    if validates:
        activations = max(activations, _peak_bytes(validate, VALIDATION_BLOCK))
        most_groups = max(num_groups, VALIDATION_BLOCK)
    group_size = len(group_positions_px)
    num_pixels = most_groups * group_size * module.probes.shape[-1] ** 2
    ready_bytes = 0 if held_bytes else 4 * BATCHES_AHEAD
    return StepMemory(
        parameters=parameters,
        gradients=parameters * (2 if num_ranks > 1 else 1),
        optimizer=2 * parameters,
        activations=int(ALLOCATOR_FACTOR * activations),
        batch=2 * 4 * num_pixels,
        patterns=held_bytes,
        loading=(LOADING_BYTES_A_PIXEL + ready_bytes) * num_pixels
        + num_patterns * (BYTES_A_PATTERN + BYTES_A_GROUPED_PATTERN * group_size),
    )


def _steps(
    module: PtychographyModule, group_positions_px: Tensor, precision: str | int
) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """Return a training and a validation step, each of a number of groups."""
    device, pattern_size = module.device, module.probes.shape[-1]
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)  # as all steps but the first find them

    def predict(count: int) -> tuple[Tensor, Tensor, Tensor | None]:
        samples = Samples(
            x_norm=torch.ones(
                count, len(group_positions_px), pattern_size, pattern_size, device=device
            ),
            positions_px=group_positions_px.expand(count, -1, -1).to(device),
            scan=torch.zeros(count, dtype=torch.int64, device=device),
        )
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            return module(samples), samples.x_norm, module.mask(samples)

    def train(count: int) -> None:
        module.loss.deviance(*predict(count)).sum(dtype=torch.float64).backward()

    @torch.no_grad()
    def validate(count: int) -> None:
        prediction = predict(count)
        module.loss.deviance(*prediction).sum(dtype=torch.float64)
        module.loss.negative_log_likelihood(*prediction).sum()

    return train, validate


def _peak_bytes(step: Callable[[int], None], count: int) -> int:
    """Return the peak of the bytes that live in a step of `count` groups, exactly.

    No layer mixes the samples of a batch, so the operations are the same for any number of groups,
    and the bytes that live after each of them grow linearly with it: steps of two and of three
    groups give those of any other. (An operation may have a shorter way for a single group.)
    """
    with LiveBytes() as of_two:
        step(2)
    with LiveBytes() as of_three:
        step(3)
    pairs = zip(of_two.after_each_operation, of_three.after_each_operation, strict=True)
    return max(two + (count - 2) * (three - two) for two, three in pairs)


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the tensors that were made inside and live, after each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.after_each_operation: list[int] = []
        self._living: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        self.after_each_operation.append(sum(self._living.values()))
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        address = storage.data_ptr()  # no other storage has it while this one lives
        if address not in self._living and storage.nbytes():
            self._living[address] = storage.nbytes()
            weakref.finalize(storage, self._living.pop, address)
