"""What a gradient must be before the optimizer takes a step with it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ptycho_dist.distributed import FailedTogether

LARGEST_SURPRISE = 2.0
"""Norm of a gradient, in units of its usual one, above which a step is shortened."""


def require_finite_gradient(parameters: Iterable[tuple[str, nn.Parameter]], step: int) -> None:
    """Refuse a gradient that is NaN or infinite before it reaches the weights."""
    gradients = {name: weight.grad for name, weight in parameters if weight.grad is not None}
    if not flat(gradients.values()).isfinite().all():
        name = next(name for name, gradient in gradients.items() if not gradient.isfinite().all())
        raise FailedTogether(
            f"the gradient of {name} is not finite at step {step}; the step was not taken"
        )


def limit_surprise(optimizer: torch.optim.Optimizer) -> None:
    """Shorten a gradient whose norm exceeds its usual one by more than `LARGEST_SURPRISE`.

    The usual norm is the root of Adam's second moments. Adam would take ten ordinary steps along a
    single gradient that is far out of the ordinary, and end where no gradient leads back. A fixed
    limit would depend on the photons; this one has no state of its own, so a resumed run ends with
    the same bits.
    """
    parameters = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    if not all(parameter in optimizer.state for parameter in parameters):
        return  # the first step: nothing is usual yet
    states = [optimizer.state[parameter] for parameter in parameters]
    gradients = [parameter.grad for parameter in parameters]
    beta, step = optimizer.param_groups[0]["betas"][1], states[0]["step"]
    usual_energy = flat(state["exp_avg_sq"] for state in states).sum() / (1 - beta**step)
    ratio = (usual_energy / flat(gradients).square().sum()).sqrt()
    shorter = (LARGEST_SURPRISE * ratio).nan_to_num(nan=1.0).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(shorter)  # 1 where both are zero


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Return all numbers in a row: one operation then serves all weights of a network."""
    return torch.cat([tensor.flatten() for tensor in tensors])
