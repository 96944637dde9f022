"""A residual on a frozen policy: soft actor-critic on a bounded correction of the chunks that it draws.

As Policy Decorator (arXiv 2412.13630): the correction is bounded, learned off-policy, and mixed in with a
probability that grows over the first steps. Here it corrects all rows of a chunk that are played.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune.baselines.gaussian import GaussianActor, improve, regress
from finetune.common.critics import CriticEnsemble
from finetune.common.experience import Experience, ExperienceConfig, Sources
from finetune.common.macro import Chosen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from finetune.common.chunk_policy import ChunkPolicy
    from finetune.common.experience import Batch
    from finetune.common.learner import Mode
    from finetune.common.macro import Macro
    from models.policies.chunk_field import ChunkField


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """The method.

    Attributes:
        bound: of the correction, each number of it, in units of the actions; 0.03 to 0.3 is usual.
        mixed_after: steps after which every chunk is corrected; before, a growing share of them.
        temperature: of the entropy, at the start.
    """

    experience: ExperienceConfig = field(default_factory=ExperienceConfig)
    bound: float = 0.2
    mixed_after: int = 2000
    heads: int = 5
    hidden: int = 256
    layers: int = 3
    temperature: float = 0.05
    learning_rate: float = 3e-4
    target_rate: float = 0.01


class ResidualLearner:
    """See the module.

    Args:
        network: the frozen policy's. `seed`: of the weights, and of every update.
    """

    each_step = True

    def __init__(self, config: ResidualConfig, policy: ChunkPolicy, network: ChunkField, *, seed: int) -> None:
        self.config, self.policy, self.seed, self._steps = config, policy, seed, 0
        self.network = network.requires_grad_(requires_grad=False)
        torch.manual_seed(seed)
        size = policy.sizes
        self.execute = policy.config.execute
        numbers = self.execute * size.action_size
        inputs = size.state_size + numbers
        self.actor = GaussianActor(
            inputs, numbers, hidden=config.hidden, temperature=config.temperature, quiet=True
        ).to(policy.device)
        self.critics = CriticEnsemble(
            inputs, heads=config.heads, hidden=config.hidden, layers=config.layers, activation="relu"
        ).to(policy.device)
        self.target = copy.deepcopy(self.critics).requires_grad_(requires_grad=False)
        self.experience = Experience(
            config.experience,
            state_size=size.state_size,
            action_size=size.action_size,
            horizon=self.execute,
            normalize=policy.config.normalize,
            seed=seed,
            device=policy.device,
        )
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "actor": torch.optim.Adam(self.actor.optimized, lr=config.learning_rate),
            "temperature": torch.optim.Adam([self.actor.log_temperature], lr=config.learning_rate),
            "critics": torch.optim.Adam(self.critics.parameters(), lr=config.learning_rate),
        }
        self.judged: Mapping[str, Mode] = {"": "draw"}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps; the policy is as it was."""
        return {"actor": self.actor, "critics": self.critics, "target": self.target}

    @torch.no_grad()
    def act(self, states: NDArray[np.float32], generator: torch.Generator, mode: Mode) -> Chosen:
        """Return the policy's chunks, corrected: by chance and by draws to learn from, and else by the middle."""
        seen = self.policy.seen(states)
        chunks = self._base(seen, generator)
        residual, _ = self.actor(torch.cat([seen, chunks], dim=-1), generator if mode == "collect" else None)
        share = min(1.0, self._steps / max(1, self.config.mixed_after)) if mode == "collect" else 1.0
        mixed = (torch.rand(len(seen), 1, generator=generator) < share).to(seen) * residual
        return Chosen(chunks=self._corrected(chunks, mixed).reshape(len(seen), self.execute, -1).cpu().numpy())

    def keep(self, macro: Macro) -> None:
        """Keep what a chunk led to."""
        self.experience.replay.add(macro)
        self._steps += len(macro.rewards)

    def learn(self, steps: int) -> Iterator[dict[str, float]]:
        """Make the updates that are due."""
        for sources in self.experience.due(steps):
            yield self.update(sources)

    def facts(self) -> dict[str, float]:
        """Return updates made and steps kept."""
        return {"updates": self.experience.updates, "kept_steps": len(self.experience.replay)}

    def state(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return what must be saved beside modules and optimisers."""
        return {**self.experience.state(), "residual": {"steps": np.array(self._steps, np.int64)}}

    def load(self, state: dict[str, dict[str, NDArray[Any]]]) -> None:
        """Take what `state` gave."""
        self._steps = int(state["residual"]["steps"])
        self.experience.load(state)

    def update(self, sources: Sources) -> dict[str, float]:
        """Take a step of the critics, then of the actor; return what is logged."""
        config, batch = self.config, self.experience.sample(sources.rows)
        inputs = torch.cat([batch.states, batch.chunks.flatten(1)], dim=-1)
        wanted = self.targets(batch, sources.noise)
        rate = config.target_rate
        facts = regress(self.critics, self.target, self.optimizers["critics"], inputs, wanted, batch.weights, rate=rate)
        base = self._base(batch.states, sources.noise)

        def value(residual: Tensor) -> Tensor:
            corrected = self._corrected(base, residual)
            values: Tensor = self.critics(torch.cat([batch.states, corrected], dim=-1)).mean(dim=0)
            return values

        return facts | improve(
            self.actor, self.optimizers, value, torch.cat([batch.states, base], dim=-1), sources.noise
        )

    @torch.no_grad()
    def targets(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return y (B,), with the value of the policy's next chunk, corrected."""
        base = self._base(batch.after, generator)
        residual, _ = self.actor(torch.cat([batch.after, base], dim=-1), generator)
        corrected = self._corrected(base, residual)
        follows = self.target(torch.cat([batch.after, corrected], dim=-1)).mean(dim=0)
        wanted: Tensor = batch.returns + self.config.experience.discount**self.execute * batch.alive * follows
        return wanted

    def _base(self, seen: Tensor, generator: torch.Generator) -> Tensor:
        return self.policy.played(self.policy.draw(self.network, seen, generator))[:, : self.execute].flatten(1)

    def _corrected(self, base: Tensor, residual: Tensor) -> Tensor:
        return (base + self.config.bound * residual).clamp(-1.0, 1.0)
