"""The job: a frozen policy plays what the agent chooses, and the agent learns from what came of it.

All randomness is drawn from (seed, purpose, count), and the state is saved after each evaluation, between episodes: a
run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from finetune.common.decisions import DecisionReplay
from finetune.common.intervals import wilson
from finetune.common.macro import MacroEnv
from finetune.common.run import Run, metrics, pack, unpack
from finetune.tmrl.agent import TmrlAgent
from finetune.tmrl.base import LocalPolicy
from models.policies.steered.checkpoint import SteeredConfig, save_steered
from models.policies.steered.choice import ChoiceSpace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import gymnasium
    from numpy.typing import NDArray

    from finetune.common.decisions import Decisions
    from finetune.common.macro import Macro
    from finetune.tmrl.base import SteeredPolicy
    from finetune.tmrl.config import AgentConfig, TmrlConfig

_CHOOSING, _UPDATING, _EVALUATING = 0, 1, 2
_EVALUATION_SEEDS = 900_000
_TRAINING_SEEDS = 100_003


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

    def __call__(self, config: AgentConfig, space: ChoiceSpace, states: int, *, seed: int) -> SteeringAgent:
        """Return an agent with fresh weights."""
        ...


@dataclass(kw_only=True)
class Progress:
    """How far a run is: decisions, steps that they played, updates, episodes, seconds; the last hundred outcomes."""

    decisions: int = 0
    env_steps: int = 0
    updates: int = 0
    episodes: int = 0
    seconds: float = 0.0
    recent: list[bool] = field(default_factory=list)


class TmrlJob:
    """A run.

    Args:
        policy: the frozen one. `make`: makes the environment, once to learn in and once to be judged in.
        task: what it is called in the run's settings. `agent`: `TmrlAgent`, or another that chooses in its place.

    Raises:
        ValueError: the folder belongs to another run.
    """

    def __init__(
        self,
        config: TmrlConfig,
        policy: SteeredPolicy,
        make: Callable[[], gymnasium.Env[Any, Any]],
        *,
        task: str,
        agent: MakeAgent = TmrlAgent,
    ) -> None:
        self.config, self.policy = config, policy
        self._env = MacroEnv(make(), execute=policy.execute)
        self._judged = MacroEnv(make(), execute=policy.execute)
        states = int(np.prod(self._env.env.observation_space.shape or ()))
        rows, columns = policy.chunk
        self.space = ChoiceSpace.of(rows=rows, columns=columns, context_size=policy.context_size, **config.agent.bounds)
        self.agent = agent(config.agent, self.space, states, seed=config.seed)
        self.replay = DecisionReplay(
            capacity=min(config.capacity, config.decisions),
            state_size=states,
            choice_size=self.space.size,
            half_solved=config.half_solved,
        )
        self.progress = Progress()
        self.run = Run(
            config.out,
            {**config.identity, "task": task, "policy": policy.content_hash, "agent": type(self.agent).__name__},
        )
        self._restore()

    def train(self, report: Callable[[int, str], None]) -> None:
        """Go on to the last decision, and evaluate then.

        Args:
            report: told decisions made, and a word about how it goes.
        """
        started, facts = time.monotonic() - self.progress.seconds, defaultdict[str, float](float)
        while self.progress.decisions < self.config.decisions:
            before = self.progress.decisions
            self._episode(facts)
            report(self.progress.decisions, f"success {np.mean(self.progress.recent[-50:]):.2f}")
            every = self.config.evaluate_every
            if before // every != self.progress.decisions // every:
                self.progress.seconds = time.monotonic() - started
                self._log(facts)
                self._save()
                facts.clear()
        self.run.close()

    def export(self, folder: Path, *, name: str, revision: str) -> None:
        """Write what was learned as a policy that can be served: the frozen policy and the actor that steers it.

        Raises:
            TypeError: the frozen policy is behind a service, or the agent has another actor.
        """
        if not isinstance(self.policy, LocalPolicy) or not isinstance(self.agent, TmrlAgent):
            raise TypeError("export: needs a frozen policy that is here, and an agent of TMRL")
        rows = metrics(self.run.path)
        best = max((row["success"] for row in rows), default=0.0)
        card = (
            f"# {name}\n\nA high-level actor over {self.policy.folder.name}, after {self.progress.decisions} decisions "
            f"and {self.progress.env_steps} steps; success at the last evaluation "
            f"{rows[-1]['success'] if rows else 0.0:.2f}, at the best {best:.2f}.\n"
        )
        config = SteeredConfig(
            id=name,
            revision=revision,
            base_hash=self.policy.content_hash,
            space=self.space,
            states=self.agent.states,
            hidden=self.config.agent.hidden,
            integration_steps=self.policy.steps,
        )
        save_steered(folder, config, self.agent.actor, base=self.policy.folder, card=card)

    def _episode(self, facts: defaultdict[str, float]) -> None:
        progress = self.progress
        state = self._env.reset(seed=_TRAINING_SEEDS * self.config.seed + progress.episodes)
        over = False
        while not over:
            random = np.random.default_rng([self.config.seed, _CHOOSING, progress.decisions])
            choice = self._explore(state, random)
            steering = self.space.spread(choice[None], random)
            macro = self._env.step(self.policy.act(state[None], steering)[0])
            over = macro.over
            self._keep(state, choice, macro)
            _count(facts, {"decisions": 1, "level": float(steering.level[0])})
            state = macro.observations[-1]
            progress.decisions += 1
            progress.env_steps += len(macro.rewards)
            if progress.decisions >= self.config.warmup:
                self._update(facts)
        progress.episodes += 1
        progress.recent = [*progress.recent[-99:], macro.success]

    def _explore(self, state: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        if self.progress.decisions < self.config.warmup:
            return random.uniform(-1.0, 1.0, self.space.size).astype(np.float32)
        choice: NDArray[np.float32] = self.agent.choose(state[None], random)[0]
        return choice

    def _keep(self, state: NDArray[np.float32], choice: NDArray[np.float32], macro: Macro) -> None:
        self.replay.add(
            state,
            choice,
            float(macro.rewards.sum()),
            macro.observations[-1],
            done=macro.terminated,
            over=macro.over,
            success=macro.success,
        )

    def _update(self, facts: defaultdict[str, float]) -> None:
        for _ in range(self.config.updates):
            number = self.progress.updates
            batch = self.replay.sample(self.config.batch, np.random.default_rng([self.config.seed, _UPDATING, number]))
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)
            said = self.agent.update(batch, generator, actor=number % self.config.actor_every == 0)
            _count(facts, {"updates": 1, **said})
            self.progress.updates += 1

    def _log(self, facts: Mapping[str, float]) -> None:
        judged = evaluate(self.agent, self.policy, self._judged, episodes=self.config.episodes, seed=self.config.seed)
        updates, decisions = max(1, facts.get("updates", 0)), max(1, facts.get("decisions", 0))
        counts = ("updates", "decisions", "level")
        means = {name: value / updates for name, value in facts.items() if name not in counts}
        progress = self.progress
        online = {
            "online_success": float(np.mean(progress.recent)),
            "online_episodes": progress.episodes,
            "online_level": facts.get("level", 0.0) / decisions,
            "updates": progress.updates,
            "seconds": round(progress.seconds, 1),
        }
        self.run.log({"step": progress.decisions, "env_steps": progress.env_steps, **judged, **means, **online})

    def _save(self) -> None:
        counters = np.array([getattr(self.progress, name) for name in _COUNTERS], np.float64)
        arrays = {"replay": self.replay.state(), "progress": {"counters": counters, "recent": self._recent}}
        tensors = pack(modules=self.agent.modules, optimizers=self.agent.optimizers, arrays=arrays)
        self.run.save(self.progress.decisions, tensors)

    @property
    def _recent(self) -> NDArray[np.bool_]:
        return np.array(self.progress.recent, bool)

    def _restore(self) -> None:
        found = self.run.restore()
        if found is None:
            return
        arrays = unpack(found[1], modules=self.agent.modules, optimizers=self.agent.optimizers)
        self.replay.load(arrays["replay"])
        for name, value in zip(_COUNTERS, arrays["progress"]["counters"], strict=True):
            setattr(self.progress, name, type(getattr(self.progress, name))(value))
        self.progress.recent = [bool(value) for value in arrays["progress"]["recent"]]


_COUNTERS = ("decisions", "env_steps", "updates", "episodes", "seconds")


def _count(facts: defaultdict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        facts[name] += value


def evaluate(
    agent: SteeringAgent, policy: SteeredPolicy, env: MacroEnv, *, episodes: int, seed: int
) -> dict[str, float]:
    """Play fresh scenes, the same in every evaluation, with the agent's likeliest choices.

    Returns:
        `success` with its 95 % interval, `return` (mean), `steps` (mean of an episode), and the smallest, mean and
        largest level that was chosen with its deviation over states.
    """
    solved, returns, steps, levels = 0, [], [], []
    for episode in range(episodes):
        state = env.reset(seed=_EVALUATION_SEEDS + episode)
        paid, played, over = 0.0, 0, False
        while not over:
            random = np.random.default_rng([seed, _EVALUATING, episode, played])
            steering = agent.space.spread(agent.choose(state[None], None), random)
            macro = env.step(policy.act(state[None], steering)[0])
            paid, played, over = paid + float(macro.rewards.sum()), played + len(macro.rewards), macro.over
            state = macro.observations[-1]
            levels.append(float(steering.level[0]))
        solved += macro.success
        returns.append(paid)
        steps.append(played)
    low, high = wilson(solved, episodes)
    facts = {"success": solved / episodes, "success_low": low, "success_high": high, "episodes": float(episodes)}
    facts |= {"return": float(np.mean(returns)), "steps": float(np.mean(steps))}
    shown = np.array(levels)
    return facts | {
        "t_min": float(shown.min()),
        "t_mean": float(shown.mean()),
        "t_max": float(shown.max()),
        "t_std": float(shown.std()),
    }
