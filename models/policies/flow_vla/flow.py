"""Flow matching over action chunks: the training loss and the integration of the learned field.

Noise time t runs from 1 (pure noise) to 0 (action): x_t = t * noise + (1 - t) * action, and the field is
v = d x_t / d t = noise - action (Lipman et al. 2023, rectified flow; the convention of pi0, arXiv 2410.24164).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.policies.flow_vla.rtc import guidance_weight

if TYPE_CHECKING:
    from models.policies.flow_vla.network import FlowVLANetwork, Prefix

Field = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, H, A), t (B,)) to the velocity (B, H, A)."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Real-time chunking for a batch.

    Attributes:
        leftover: (B, H, A), the rest of the previous chunks in model space, padded with zeros.
        weights: (B, H, 1), from `rtc.prefix_weights`; zeros leave an item unguided.
        maximum: cap of the guidance weight.
    """

    leftover: Tensor
    weights: Tensor
    maximum: float


def flow_loss(
    network: FlowVLANetwork,
    prefix: Prefix,
    actions: Tensor,
    mask: Tensor,
    *,
    samples: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the mean squared error of the predicted velocity, a scalar.

    Args:
        actions: (B, H, A), normalised; `mask`: (B, H), 1 where a row counts.
        samples: pairs of noise and time for each observation; the prefix is shared among them.
        generator: source of noise and times, on the CPU.
    """
    actions, mask = actions.repeat_interleave(samples, dim=0), mask.repeat_interleave(samples, dim=0)
    noise = torch.randn(actions.shape, generator=generator).to(actions)
    # more weight on early times, where the chunk's shape is decided (pi0: a beta distribution shifted to noise)
    time = (1.0 - 0.999 * torch.rand(len(actions), generator=generator) ** 1.5).to(actions)
    noisy = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
    error = (network.velocity(prefix.repeat(samples), noisy, time) - (noise - actions)) ** 2
    return (error.mean(dim=-1) * mask).sum() / mask.sum().clamp(min=1)


def integrate(field: Field, noise: Tensor, *, steps: int, guidance: Guidance | None = None) -> Tensor:
    """Integrate from noise at t = 1 to actions at t = 0 with Euler steps of equal size.

    With `guidance`, each step's field is corrected by the vector-Jacobian product of the predicted actions
    x_0 = x_t - t * v(x_t) (real-time chunking; equation 2 of arXiv 2506.07339, noise-time signs).

    Args:
        noise: (B, H, A); `steps`: 1 or more.

    Raises:
        ValueError: for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"integration_steps: {steps}, must be 1 or more")
    moving = noise
    for step in range(steps):
        time = 1.0 - step / steps
        times = torch.full((len(moving),), time, dtype=moving.dtype, device=moving.device)
        velocity = field(moving, times) if guidance is None else guided_velocity(field, moving, times, time, guidance)
        moving = moving - velocity / steps
    return moving


def guided_velocity(field: Field, moving: Tensor, times: Tensor, time: float, guidance: Guidance) -> Tensor:
    """Return the corrected velocity v - g * J^T (W * (leftover - x_0)), J = d x_0 / d x_t, (B, H, A)."""
    with torch.enable_grad():
        point = moving.detach().requires_grad_()
        velocity = field(point, times)
        predicted = point - time * velocity
        error = (guidance.leftover - predicted.detach()) * guidance.weights
        (correction,) = torch.autograd.grad(predicted, point, grad_outputs=error)
    return velocity.detach() - guidance_weight(time, guidance.maximum) * correction
