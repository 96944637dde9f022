"""What the baselines with a Gaussian actor share: soft actor-critic's actor, its temperature, and a step of both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.common.updates import ema

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAST_LOG_STD, _MOST_LOG_STD = -5.0, 2.0


class GaussianActor(nn.Module):
    """A tanh-Gaussian of `size` numbers in [-1, 1], and the temperature of its entropy.

    Args:
        inputs: numbers that it reads. `temperature`: at the start.
        quiet: start with a mean of exactly 0, as a residual must.
    """

    def __init__(self, inputs: int, size: int, *, hidden: int, temperature: float, quiet: bool = False) -> None:
        super().__init__()
        self.size = size
        self.trunk = nn.Sequential(
            nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.mean, self.spread = nn.Linear(hidden, size), nn.Linear(hidden, size)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        if quiet:
            nn.init.zeros_(self.mean.weight)
            nn.init.zeros_(self.mean.bias)

    def forward(self, inputs: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return draws (B, size) and their log-probabilities (B,); without a generator, the middle ones."""
        features = self.trunk(inputs)
        mean = self.mean(features)
        log_std = _LEAST_LOG_STD + (_MOST_LOG_STD - _LEAST_LOG_STD) / 2 * (self.spread(features).tanh() + 1)
        noise = torch.zeros_like(mean) if generator is None else torch.randn(mean.shape, generator=generator).to(mean)
        before = mean + log_std.exp() * noise
        bend = 2 * (math.log(2.0) - before - functional.softplus(-2 * before))  # log(1 - tanh^2), stable
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        return before.tanh(), (density - bend).sum(dim=-1)

    @property
    def optimized(self) -> list[nn.Parameter]:
        """Its parameters but the temperature."""
        return [parameter for name, parameter in self.named_parameters() if name != "log_temperature"]


def improve(
    actor: GaussianActor,
    optimizers: dict[str, torch.optim.Optimizer],
    value: Callable[[Tensor], Tensor],
    inputs: Tensor,
    generator: torch.Generator,
) -> dict[str, float]:
    """Take a step of actor and temperature; the entropy's target is minus half of the actor's size.

    Args:
        optimizers: "actor" and "temperature".
        value: of what the actor draws (B, size), (B,).
    """
    drawn, score = actor(inputs, generator)
    temperature = actor.log_temperature.exp().detach()
    loss = (temperature * score - value(drawn)).mean()
    parameters = actor.optimized
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizers["actor"].step()
    surplus = (score.detach() - actor.size / 2).mean()
    actor.log_temperature.grad = -surplus
    optimizers["temperature"].step()
    return {"policy_loss": loss.item(), "entropy": -score.mean().item(), "temperature": temperature.item()}


def regress(
    critics: nn.Module,
    target: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    wanted: Tensor,
    weights: Tensor,
    *,
    rate: float,
) -> dict[str, float]:
    """Take a step of critics (M, B) towards values (B,), weighed by (B,), and of their average."""
    values = critics(inputs)
    loss = ((values - wanted).square() * weights).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema(target, critics, rate)
    return {"critic_loss": loss.item(), "value": values.mean().item()}
