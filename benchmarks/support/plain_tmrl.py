"""TMRL's update as it reads: a network for each critic, one after another, and one average for each parameter.

The rival of `benchmarks.tmrl`. It draws its noise in the order in which ours does, so that both give one loss.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.support.plain_critics import separate

if TYPE_CHECKING:
    from finetune.common.decisions import Decisions
    from finetune.tmrl.agent import TmrlAgent


class PlainTmrl:
    """One agent's actor, critics and temperatures, updated by loops over critics and, if wanted, over decisions.

    Args:
        agent: whose weights it takes.
        decision_by_decision: run each network on one decision of the batch at a time.
    """

    def __init__(self, agent: TmrlAgent, *, decision_by_decision: bool) -> None:
        self.agent, self._one_by_one = agent, decision_by_decision
        self.actor = copy.deepcopy(agent.actor)
        self.critics, self.targets = separate(agent.critics), separate(agent.target)
        self.log_temperatures = nn.Parameter(agent.log_temperatures.detach().clone())
        rate = agent.config.learning_rate
        critics = [parameter for critic in self.critics for parameter in critic.parameters()]
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=rate)
        self._critic_optimizer = torch.optim.Adam(critics, lr=rate)
        self._temperature_optimizer = torch.optim.Adam([self.log_temperatures], lr=rate)

    def update(self, batch: Decisions, generator: torch.Generator) -> tuple[float, float]:
        """Take one step of everything, and return the critics' and the actor's loss before it."""
        states, choices = torch.from_numpy(batch.states), torch.from_numpy(batch.choices)
        shape = (len(states), self.agent.space.size)
        target = self._target(batch, torch.randn(shape, generator=generator))
        values = self._values(self.critics, states, choices)
        critic_loss = torch.stack([(value - target).square().mean() for value in values]).mean()
        _step(self._critic_optimizer, critic_loss)
        chosen, scores = self._choices(states, torch.randn(shape, generator=generator))
        value = torch.stack(self._values(self.critics, states, chosen)).min(dim=0).values
        temperatures = self.log_temperatures.exp().detach()
        actor_loss = (sum(t * s for t, s in zip(temperatures, scores, strict=True)) - value).mean()
        _step(self._actor_optimizer, actor_loss)
        wanted = -torch.tensor([float(size) for size in self.agent.space.parts])
        surplus = (scores.detach() + wanted[:, None]).mean(dim=1)
        _step(self._temperature_optimizer, -(self.log_temperatures * surplus).sum())
        self._average()
        return critic_loss.item(), actor_loss.item()

    @torch.no_grad()
    def _target(self, batch: Decisions, noise: Tensor) -> Tensor:
        after = torch.from_numpy(batch.after)
        choices, _ = self._choices(after, noise)
        value = torch.stack(self._values(self.targets, after, choices)).min(dim=0).values
        paid, done = torch.from_numpy(batch.rewards), torch.from_numpy(batch.done)
        return paid + (1 - done) * self.agent.config.discount * value

    def _choices(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        if not self._one_by_one:
            choices, scores = self.actor(states, noise)
            return choices, scores
        answers = [self.actor(state[None], one[None]) for state, one in zip(states, noise, strict=True)]
        return torch.cat([choices for choices, _ in answers]), torch.cat([scores for _, scores in answers], dim=1)

    def _values(self, critics: list[nn.Module], states: Tensor, choices: Tensor) -> list[Tensor]:
        inputs = self.agent.inputs(states, choices)
        if not self._one_by_one:
            return [critic(inputs)[:, 0] for critic in critics]
        return [torch.cat([critic(one[None])[:, 0] for one in inputs]) for critic in critics]

    @torch.no_grad()
    def _average(self) -> None:
        for critic, target in zip(self.critics, self.targets, strict=True):
            for new, kept in zip(critic.parameters(), target.parameters(), strict=True):
                kept.mul_(1 - self.agent.config.target_rate).add_(self.agent.config.target_rate * new)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
