"""TMRL as a learner of chunks: the agent chooses what steers a frozen policy, and learns from what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from finetune.common.decisions import DecisionReplay
from finetune.common.device import CPU
from finetune.common.experience import sources
from finetune.common.macro import Chosen
from finetune.tmrl.agent import TmrlAgent
from models.policies.steered.choice import ChoiceSpace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from finetune.common.decisions import Decisions
    from finetune.common.learner import Mode
    from finetune.common.macro import Macro
    from finetune.tmrl.base import SteeredPolicy
    from finetune.tmrl.config import AgentConfig, TmrlConfig


class SteeringAgent(Protocol):
    """Chooses for a frozen policy, and learns."""

    @property
    def space(self) -> ChoiceSpace:
        """What is chosen."""
        ...

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint keeps."""
        ...

    @property
    def optimizers(self) -> dict[str, torch.optim.Adam]:
        """Their optimisers."""
        ...

    def choose(self, states: NDArray[np.float32], random: np.random.Generator | None) -> NDArray[np.float32]:
        """Return choices float32 (N, U) in [-1, 1] for states (N, S)."""
        ...

    def update(self, batch: Decisions, generator: torch.Generator, *, actor: bool) -> dict[str, float]:
        """Learn from decisions and return what is logged."""
        ...


class MakeAgent(Protocol):
    """The class of an agent."""

    def __call__(
        self, config: AgentConfig, space: ChoiceSpace, states: int, *, seed: int, device: torch.device
    ) -> SteeringAgent:
        """Return an agent with fresh weights."""
        ...


class SteeringLearner:
    """A `finetune.common.learning.Learner`.

    Args:
        policy: the frozen one. `states`: numbers of what the agent is shown (`SteeredPolicy.look`).
        agent: `TmrlAgent`, or another that chooses in its place.
        seed: of weights and updates. `device`: of the agent.
    """

    each_step = False
    judged: dict[str, Mode] = {"": "draw"}  # noqa: RUF012  as the protocol has it

    def __init__(
        self,
        config: TmrlConfig,
        policy: SteeredPolicy,
        *,
        states: int,
        seed: int,
        agent: MakeAgent = TmrlAgent,
        device: torch.device = CPU,
    ) -> None:
        self.config, self.policy, self._seed = config, policy, seed
        rows, columns = policy.chunk
        self.space = ChoiceSpace.of(rows=rows, columns=columns, context_size=policy.context_size, **config.agent.bounds)
        self.agent = agent(config.agent, self.space, states, seed=seed, device=device)
        self.replay = DecisionReplay(
            capacity=config.capacity, state_size=states, choice_size=self.space.size, half_solved=config.half_solved
        )
        self.updates = self.decisions = self.kept = 0
        self._levels: list[float] = []
        self._collected: list[float] = []

    @property
    def execute(self) -> int:
        """Rows of a chunk that are played before the next decision."""
        return self.policy.execute

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint keeps; the frozen policy is not among it."""
        return self.agent.modules

    @property
    def optimizers(self) -> dict[str, torch.optim.Adam]:
        """Their optimisers."""
        return self.agent.optimizers

    def act(self, states: NDArray[np.float32], generator: torch.Generator, mode: Mode) -> Chosen:
        """Return chunks and note the choices behind them: explored, at first uniformly, or as the agent is judged."""
        random = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        if mode == "draw":
            choices = self.agent.choose(self.policy.look(states), random if self.config.playing == "drawn" else None)
        elif self.decisions < self.config.warmup:
            choices = random.uniform(-1.0, 1.0, (len(states), self.space.size)).astype(np.float32)
        else:
            choices = self.agent.choose(self.policy.look(states), random)
        steering = self.space.spread(choices, random)
        (self._levels if mode == "draw" else self._collected).extend(steering.level.tolist())
        if mode == "collect":
            self.decisions += len(choices)
        return Chosen(chunks=self.policy.act(states, steering), notes=tuple(choices))

    def keep(self, macro: Macro) -> None:
        """Keep what a choice led to."""
        before, after = self.policy.look(macro.observations[[0, -1]])
        self.replay.add(
            before,
            macro.note,
            float(macro.rewards.sum()),
            after,
            done=macro.terminated,
            over=macro.over,
            success=macro.success,
        )
        self.kept += 1

    def learn(self, steps: int) -> Iterator[dict[str, float]]:
        """Make the updates that the decisions kept since the warm-up have earned, however many steps they were."""
        del steps
        while self.updates < (self.kept - self.config.warmup) * self.config.updates:
            drawn = sources(self._seed, self.updates)
            batch = self.replay.sample(self.config.batch, drawn.rows)
            yield self.agent.update(batch, drawn.noise, actor=self.updates % self.config.actor_every == 0)
            self.updates += 1

    def facts(self) -> dict[str, float]:
        """Return decisions, updates, and what levels were chosen since the last call, judged and collected."""
        said = {"decisions": float(self.decisions), "updates": float(self.updates)}
        if self._levels:
            shown = np.array(self._levels)
            said |= {"t_min": float(shown.min()), "t_mean": float(shown.mean()), "t_max": float(shown.max())}
            said |= {"t_std": float(shown.std())}
        if self._collected:
            said["online_level"] = float(np.mean(self._collected))
        self._levels, self._collected = [], []
        return said

    def state(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return replay and counts; saved between episodes, when no choice waits."""
        counts = np.array([self.updates, self.decisions, self.kept], np.int64)
        return {"replay": self.replay.state(), "learner": {"counts": counts}}

    def load(self, state: dict[str, dict[str, NDArray[Any]]]) -> None:
        """Take what `state` gave."""
        self.replay.load(state["replay"])
        self.updates, self.decisions, self.kept = (int(value) for value in state["learner"]["counts"])
