"""OGPO as it reads: a loop over states, over the chains of each, over the steps of a chain, and over the critics.

The rival of `benchmarks.ogpo`. It draws its noise in the order in which ours does, so that both give one loss.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.support.plain_critics import separate
from models.policies.denoising import FlowSteps

if TYPE_CHECKING:
    from finetune.common.experience import Batch
    from finetune.ogpo.agent import OgpoLearner
    from models.policies.chunk_field import ChunkField

_CUT = 3.0


class PlainOgpo:
    """One learner's policy and critics, updated by loops.

    Args:
        learner: whose weights it takes; plain group advantages, without a success buffer.
        states_at_once: run each network on all states of the batch at a time, and loop over chains and heads alone:
            what a reader who knows batching would write.

    Raises:
        TypeError: the policy is not a flow.
    """

    def __init__(self, learner: OgpoLearner, *, states_at_once: bool) -> None:
        if not isinstance(learner.policy.steps, FlowSteps):
            raise TypeError("denoising: this reading is of a flow")
        self.learner, self.states_at_once, self.steps = learner, states_at_once, learner.policy.steps
        self.critics, self.target = separate(learner.critics), separate(learner.target)
        parameters = [parameter for head in self.critics for parameter in head.parameters()]
        config = learner.config
        self.optimizers = (
            torch.optim.Adam(learner.network.parameters(), lr=config.learning_rate, foreach=False),
            torch.optim.AdamW(
                parameters, lr=config.critic_learning_rate, weight_decay=config.weight_decay, foreach=False
            ),
        )

    def update(self, batch: Batch, generator: torch.Generator) -> float:
        """Take a step of policy and critics, and return the policy's loss."""
        policy, critics = self.optimizers
        loss = self.policy_loss(batch.states, generator)
        policy.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        policy.step()
        _average(self.learner.average, self.learner.network, self.learner.config.average_rate)
        regression = self.critic_loss(batch, generator)
        critics.zero_grad()
        regression.backward()  # type: ignore[no-untyped-call]
        critics.step()
        for target, head in zip(self.target, self.critics, strict=True):
            _average(target, head, self.learner.config.target_rate)
        return loss.item()

    def policy_loss(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """Return the clipped loss of a group of chains at each state, one after the other."""
        config, losses = self.learner.config, []
        noises = self._noises(len(states), config.group, generator)
        for rows in self._parts(len(states)):
            seen, ratios, values = states[rows], [], []
            for chain in range(config.group):
                points, old = self._chain(seen, [noise[rows, chain] for noise in noises])
                ratios.append(torch.exp(self._score(self.learner.network, seen, points) - old))
                values.append(self._value(self.target, seen, points[-1]))
            ratio, value = torch.stack(ratios), torch.stack(values)
            advantage = value - value.mean(dim=0)
            bound = ratio.clamp(1 - config.clip, 1 + config.clip)
            losses.append(-torch.minimum(ratio * advantage, bound * advantage).mean(dim=0))
        return torch.cat(losses).mean()

    def critic_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the squared error of every head, one after the other."""
        discount, losses = self.learner.config.experience.discount**self.learner.execute, []
        noises = self._noises(len(batch.states), 1, generator)
        for rows in self._parts(len(batch.states)):
            points, _ = self._chain(batch.after[rows], [noise[rows, 0] for noise in noises])
            follows = self._value(self.target, batch.after[rows], points[-1])
            wanted = batch.returns[rows] + discount * batch.alive[rows] * follows
            inputs = torch.cat([batch.states[rows], batch.chunks[rows].flatten(1)], dim=-1)
            errors = [(head(inputs)[:, 0] - wanted).square() for head in self.critics]
            losses.append((torch.stack(errors) * batch.weights[rows]).mean())
        return torch.stack(losses).mean()

    def _parts(self, number: int) -> list[slice]:
        return [slice(None)] if self.states_at_once else [slice(row, row + 1) for row in range(number)]

    def _noises(self, states: int, group: int, generator: torch.Generator) -> list[Tensor]:
        shape = (states * group, *self.learner.policy.chunk)
        drawn = [torch.randn(shape, generator=generator) for _ in range(self.steps.steps + 1)]
        return [noise.reshape(states, group, *shape[1:]) for noise in drawn]

    @torch.no_grad()
    def _chain(self, seen: Tensor, noises: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        points = [noises[0]]
        for step in range(self.steps.steps):
            mean, deviation = self._step(self.learner.average, seen, points[-1], step)
            points.append(mean + deviation * noises[step + 1].clamp(-_CUT, _CUT))
        return points, self._score(self.learner.average, seen, points)

    def _score(self, network: ChunkField, seen: Tensor, points: list[Tensor]) -> Tensor:
        whole = torch.zeros(len(seen))
        for step in range(self.steps.steps):
            mean, deviation = self._step(network, seen, points[step], step)
            distance = (points[step + 1] - mean) / deviation
            each = -0.5 * distance**2 - math.log(deviation) - 0.5 * math.log(2 * math.pi)
            whole = whole + each.sum(dim=(1, 2))
        return whole / ((self.steps.steps + 1) * self.learner.policy.size)

    def _step(self, network: ChunkField, seen: Tensor, point: Tensor, step: int) -> tuple[Tensor, float]:
        count = self.steps.steps
        left = 1 - step / count
        velocity = network.velocity(network.encode(seen), point, torch.full((len(seen),), left))
        score = -(1 - left) * velocity - point
        mean = point - velocity / count + self.steps.noise**2 / 2 * score
        return mean, self.steps.noise * math.sqrt(left)

    @torch.no_grad()
    def _value(self, heads: list[nn.Module], seen: Tensor, chunk: Tensor) -> Tensor:
        inputs = torch.cat([seen, chunk.clamp(-1.0, 1.0).flatten(1)], dim=-1)
        return torch.stack([head(inputs)[:, 0] for head in heads]).mean(dim=0)


def _average(average: nn.Module, network: nn.Module, rate: float) -> None:
    with torch.no_grad():
        for mean, value in zip(average.parameters(), network.parameters(), strict=True):
            mean.add_(value - mean, alpha=rate)
