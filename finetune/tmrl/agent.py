"""The high-level agent: soft actor-critic over choices, with one temperature for each part of a choice.

With u = (z, t, eps) and N target critics, after one decision that was paid R in all and led to s':
y = R + (1 - done) gamma min_n Q'_n(s', u'), u' ~ pi(s'); the actor minimises the sum over the parts k of
alpha_k log pi_k, less min_n Q_n(s, u); each temperature follows its part's entropy towards its size (arXiv 2605.12236).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.common.critics import CriticEnsemble
from finetune.common.device import CPU, tensor
from finetune.common.updates import descend, ema
from models.policies.steered.actor import ChoiceActor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.common.decisions import Decisions
    from finetune.tmrl.config import AgentConfig
    from models.policies.steered.choice import ChoiceSpace

_LEVEL_FEATURES = 64


class TmrlAgent:
    """Actor, critics and temperatures.

    Args:
        states: numbers of an observation.
        seed: of the weights. `device`: where they are.
    """

    def __init__(
        self, config: AgentConfig, space: ChoiceSpace, states: int, *, seed: int, device: torch.device = CPU
    ) -> None:
        torch.manual_seed(seed)
        self.config, self.space, self.states, self.device = config, space, states, device
        self.actor = ChoiceActor(states, space.parts, config.hidden).to(device)
        inputs = states + space.size + (_LEVEL_FEATURES - 1 if space.level else 0)
        make = partial(CriticEnsemble, heads=config.critics, hidden=config.hidden, layers=config.layers)
        self.critics, self.target = make(inputs).to(device), make(inputs).to(device)
        self.target.load_state_dict(self.critics.state_dict())
        self.target.requires_grad_(requires_grad=False)
        temperatures = torch.full((len(space.parts),), math.log(config.temperature), device=device)
        self.log_temperatures = nn.Parameter(temperatures)
        self._wanted = -torch.tensor([float(size) for size in space.parts], device=device)
        self.optimizers = {
            "actor": torch.optim.Adam(self.actor.parameters(), lr=config.learning_rate, fused=True),
            "critics": torch.optim.Adam(self.critics.parameters(), lr=config.learning_rate, fused=True),
            "temperatures": torch.optim.Adam([self.log_temperatures], lr=config.learning_rate, fused=True),
        }

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps."""
        temperatures = nn.Module()
        temperatures.log_temperatures = self.log_temperatures
        return {"actor": self.actor, "critics": self.critics, "target": self.target, "temperatures": temperatures}

    @torch.no_grad()
    def choose(self, states: NDArray[np.float32], random: np.random.Generator | None) -> NDArray[np.float32]:
        """Return choices float32 (N, U) in [-1, 1] for states (N, S); without a source of noise, the likeliest ones."""
        noise = None
        if random is not None:
            noise = tensor(random.standard_normal((len(states), self.space.size), np.float32), self.device)
        choices, _ = self.actor(tensor(states, self.device), noise)
        chosen: NDArray[np.float32] = choices.cpu().numpy()
        return chosen

    def targets(self, batch: Decisions, noise: Tensor) -> Tensor:
        """Return y (B,)."""
        after = tensor(batch.after, self.device)
        with torch.no_grad():
            choices, scores = self.actor(after, noise)
            value = self.target(self.inputs(after, choices)).min(dim=0).values
            if self.config.entropy_backup:
                value = value - (self.log_temperatures.exp()[:, None] * scores).sum(dim=0)
            alive = 1 - tensor(batch.done, self.device)
            target: Tensor = tensor(batch.rewards, self.device) + alive * self.config.discount * value
        return target

    def update(self, batch: Decisions, generator: torch.Generator, *, actor: bool) -> dict[str, float]:
        """Take one step of the critics, and of actor and temperatures where `actor`; return what is logged."""
        states, shape = tensor(batch.states, self.device), (len(batch.states), self.space.size)
        target = self.targets(batch, torch.randn(shape, generator=generator).to(self.device))
        values = self.critics(self.inputs(states, tensor(batch.choices, self.device)))
        loss = (values - target).square().mean()
        descend(self.optimizers["critics"], loss)
        facts: dict[str, Any] = {"critic_loss": loss.item(), "value": values.mean().item()}
        if actor:
            facts |= self._improve(states, torch.randn(shape, generator=generator).to(self.device))
        ema(self.target, self.critics, self.config.target_rate)
        return facts

    def _improve(self, states: Tensor, noise: Tensor) -> dict[str, float]:
        choices, scores = self.actor(states, noise)
        value = self.critics(self.inputs(states, choices)).min(dim=0).values
        temperatures = self.log_temperatures.exp().detach()
        loss = ((temperatures[:, None] * scores).sum(dim=0) - value).mean()
        parameters = list(self.actor.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient  # the critics' own gradients, which are not wanted here, are never computed
        self.optimizers["actor"].step()
        if self.config.learn_temperature:
            surplus = (scores.detach() + self._wanted[:, None]).mean(dim=1)
            descend(self.optimizers["temperatures"], -(self.log_temperatures * surplus).sum())
        names = ("z", "t", "eps") if self.space.level else ("z",)
        facts = {f"entropy_{name}": -score.mean().item() for name, score in zip(names, scores, strict=False)}
        facts |= {f"temperature_{name}": value.item() for name, value in zip(names, temperatures, strict=False)}
        return {"actor_loss": loss.item(), **facts}

    def inputs(self, states: Tensor, choices: Tensor) -> Tensor:
        """States and choices, the level among them as sines and cosines of 100 t."""
        space = self.space
        if not space.level:
            return torch.cat([states, choices], dim=-1)
        level = space.level_of(choices[:, space.noise])
        places = torch.arange(_LEVEL_FEATURES // 2, device=choices.device) / (_LEVEL_FEATURES // 2 - 1)
        angle = 100.0 * level[:, None] * 1e-4**places
        rest = choices[:, space.noise + 1 :]
        return torch.cat([states, choices[:, : space.noise], angle.sin(), angle.cos(), rest], dim=-1)
