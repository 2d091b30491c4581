"""How much memory a rank's training step will take, found without taking it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ptycho_dist.data.batches import BATCHES_AHEAD, VALIDATION_BLOCK, Samples
from ptycho_dist.model.lightning_module import PtychographyModule

ALLOCATOR_FACTOR = 1.5
"""What the process holds for each byte of activations that lives at the peak. Allocators keep freed
pieces that nothing fits into: glibc's 1.37 to 1.63 times on the CPU (it is 1.00 to 1.02 with
MALLOC_MMAP_THRESHOLD_=65536); taken for CUDA's too."""

LOADING_BYTES_A_PIXEL = 32
"""Of a batch while it is read: the file's numbers, their float64, float32 amplitudes, the float64
product with r, float32 x_norm. Counted where patterns are held too: they were read like that
before, and the allocator keeps some of it."""


BYTES_A_PATTERN, BYTES_A_GROUPED_PATTERN = 48, 8
"""What remains of every pattern of the scans, whether its numbers are held or streamed: positions
of the scan and of all scans together (16 each), the subset's number, the place in the epoch's
order; and its group, C numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """Bytes that one rank takes for a training step, beyond what its process takes without one.

    Attributes
    ----------
    parameters, gradients, optimizer
        Weights; their gradients, and DDP's copy of these where there are several ranks; Adam's two
        moments.
    activations
        Of the larger of a micro-batch and a block of validation, at the peak, with what the
        allocator keeps beside them.
    batch
        Arrays of one batch on the device, two of them while one follows the other.
    patterns
        Normalised patterns, where the device holds them; the same on every rank. What is streamed
        takes none.
    loading
        Arrays on the host of what is read at a time, and of the batches that are ready; positions
        and groups of all patterns.
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
        """What lies where the step is computed."""
        return (
            self.parameters
            + self.gradients
            + self.optimizer
            + self.activations
            + self.batch
            + self.patterns
        )


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
    """Memory of a step, from its first two sizes.

    Two real steps are made, of two and of three groups, while the bytes of all tensors that live
    are counted after each operation. No layer mixes the samples of a batch, so the operations are
    the same for any number of groups and the bytes after each grow linearly with it: the two counts
    give those of `num_groups` groups, after each operation, and the largest of them is the peak. It
    equals the count of a whole step to the byte.

    Parameters
    ----------
    module
        Built, on the device that the step will be made on. Its gradients are changed.
    group_positions_px
        float64 (C, 2): the group that is spread widest, and so has the largest canvas.
    num_groups
        Groups in the largest micro-batch of a rank.
    validates
        Whether there are validation groups.
    precision
        As the trainer is given it.
    num_ranks
        DDP keeps a second copy of the gradients where there are several.
    num_patterns
        Of all scans.
    held_bytes
        Of the normalised patterns that the device holds; 0: they are streamed.
    """
    parameters = sum(parameter.nbytes for parameter in module.parameters())
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

    activations = _peak_bytes(train, num_groups)
    if validates:
        activations = max(activations, _peak_bytes(validate, VALIDATION_BLOCK))
    num_pixels = (
        max(num_groups, VALIDATION_BLOCK if validates else 0)
        * len(group_positions_px)
        * pattern_size**2
    )
    ready_bytes = 0 if held_bytes else 4 * BATCHES_AHEAD
    return StepMemory(
        parameters=parameters,
        gradients=parameters * (2 if num_ranks > 1 else 1),
        optimizer=2 * parameters,
        activations=int(ALLOCATOR_FACTOR * activations),
        batch=2 * 4 * num_pixels,
        patterns=held_bytes,
        loading=(LOADING_BYTES_A_PIXEL + ready_bytes) * num_pixels
        + num_patterns * (BYTES_A_PATTERN + BYTES_A_GROUPED_PATTERN * len(group_positions_px)),
    )


def _peak_bytes(step: Callable[[int], None], count: int) -> int:
    # From 2 and 3: operations may have a shorter way for a single sample.
    with _LiveBytes() as of_two:
        step(2)
    with _LiveBytes() as of_three:
        step(3)
    pairs = zip(of_two.after_each_operation, of_three.after_each_operation, strict=True)
    return max(two + (count - 2) * (three - two) for two, three in pairs)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that came into being inside and live, after each
    operation."""

    def __init__(self) -> None:
        super().__init__()
        self.after_each_operation: list[int] = []
        self._living: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        self.after_each_operation.append(sum(self._living.values()))
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._living:
            self._living[key] = storage.nbytes()
            weakref.finalize(storage, self._living.pop, key)
