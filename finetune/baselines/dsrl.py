"""DSRL: soft actor-critic on the noise that a frozen policy starts from (arXiv 2506.15799), without distillation.

The policy is a part of the environment: what is chosen is z, bounded, and what is learned is Q(s, z). It keeps the
context as it is, and so can bring out only what the policy does there. TMRL without
its level and its context noise is this.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.common.critics import CriticEnsemble
from finetune.common.device import CPU, tensor
from finetune.common.updates import descend, ema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.common.decisions import Decisions
    from finetune.tmrl.config import AgentConfig
    from models.policies.steered.choice import ChoiceSpace


class NoiseActor(nn.Module):
    """A tanh-Gaussian over the initial noise."""

    def __init__(self, states: int, size: int, hidden: int) -> None:
        super().__init__()
        widths = (states, hidden, hidden, hidden)
        self.trunk = nn.Sequential(*(layer for width in widths for layer in (nn.Linear(width, hidden), nn.Mish())))
        self.head = nn.Linear(hidden, 2 * size)

    def forward(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return z (B, size) in [-1, 1] and its log-probability (B,), for standard normal noise (B, size)."""
        mean, raw = self.head(self.trunk(states)).chunk(2, dim=-1)
        log_std = 3.5 * raw.tanh() - 1.5  # -5 to 2
        before = mean + log_std.exp() * noise
        gaussian = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        bend = 2 * (math.log(2.0) - before - functional.softplus(-2 * before))
        return before.tanh(), (gaussian - bend).sum(dim=-1)


class DsrlAgent:
    """Actor, critics and one temperature.

    Args:
        config: its level and context bounds must be 0.
        states: numbers of an observation. `seed`: of the weights. `device`: where they are.

    Raises:
        ValueError: the context is to be modulated.
    """

    def __init__(
        self, config: AgentConfig, space: ChoiceSpace, states: int, *, seed: int, device: torch.device = CPU
    ) -> None:
        if config.level_bound or config.context_bound:
            raise ValueError("level_bound, context_bound: must be 0, for DSRL keeps the context as it is")
        torch.manual_seed(seed)
        self.config, self.space, self.device = config, space, device
        self.actor = NoiseActor(states, space.size, config.hidden).to(device)
        make = partial(CriticEnsemble, heads=config.critics, hidden=config.hidden, layers=config.layers)
        self.critics, self.target = (make(states + space.size).to(device) for _ in range(2))
        self.target.load_state_dict(self.critics.state_dict())
        self.target.requires_grad_(requires_grad=False)
        self.log_temperature = nn.Parameter(torch.tensor([math.log(config.temperature)], device=device))
        self.optimizers = {
            "actor": torch.optim.Adam(self.actor.parameters(), lr=config.learning_rate, fused=True),
            "critics": torch.optim.Adam(self.critics.parameters(), lr=config.learning_rate, fused=True),
            "temperature": torch.optim.Adam([self.log_temperature], lr=config.learning_rate, fused=True),
        }

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps."""
        temperature = nn.Module()
        temperature.log_temperature = self.log_temperature
        return {"actor": self.actor, "critics": self.critics, "target": self.target, "temperature": temperature}

    @torch.no_grad()
    def choose(self, states: NDArray[np.float32], random: np.random.Generator | None) -> NDArray[np.float32]:
        """Return z float32 (N, size) in [-1, 1] for states (N, S); without a source of noise, the likeliest."""
        shape = (len(states), self.space.size)
        noise = np.zeros(shape, np.float32) if random is None else random.standard_normal(shape, np.float32)
        z, _ = self.actor(tensor(states, self.device), tensor(noise, self.device))
        chosen: NDArray[np.float32] = z.cpu().numpy()
        return chosen

    def update(self, batch: Decisions, generator: torch.Generator, *, actor: bool) -> dict[str, float]:
        """Take one step of the critics, and of actor and temperature where `actor`; return what is logged."""
        states, after = tensor(batch.states, self.device), tensor(batch.after, self.device)
        shape = (len(states), self.space.size)
        with torch.no_grad():
            z, score = self.actor(after, torch.randn(shape, generator=generator).to(after))
            follows = self.target(torch.cat([after, z], dim=-1)).min(dim=0).values
            if self.config.entropy_backup:
                follows = follows - self.log_temperature.exp() * score
            alive = 1 - tensor(batch.done, self.device)
            target = tensor(batch.rewards, self.device) + alive * self.config.discount * follows
        values = self.critics(torch.cat([states, tensor(batch.choices, self.device)], dim=-1))
        loss = (values - target).square().mean()
        descend(self.optimizers["critics"], loss)
        facts = {"critic_loss": loss.item(), "value": values.mean().item()}
        if actor:
            facts |= self._improve(states, torch.randn(shape, generator=generator).to(states))
        ema(self.target, self.critics, self.config.target_rate)
        return facts

    def _improve(self, states: Tensor, noise: Tensor) -> dict[str, float]:
        z, score = self.actor(states, noise)
        value = self.critics(torch.cat([states, z], dim=-1)).min(dim=0).values
        temperature = self.log_temperature.exp().detach()
        loss = (temperature * score - value).mean()
        parameters = list(self.actor.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        self.optimizers["actor"].step()
        if self.config.learn_temperature:
            surplus = (score.detach() - self.space.size).mean()
            descend(self.optimizers["temperature"], -(self.log_temperature * surplus).sum())
        return {"actor_loss": loss.item(), "entropy_z": -score.mean().item(), "temperature_z": temperature.item()}
