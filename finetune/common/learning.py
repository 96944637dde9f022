"""The job of every method that improves a policy of action chunks: play, keep, learn, evaluate, save.

All randomness is drawn from (seed, purpose, count), and the state is saved after each evaluation, between episodes: a
run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  a run's settings are read by tools
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.common.judging import evaluate, noise
from finetune.common.macro import HandedOver, MacroEnv, PaidMacros
from finetune.common.rewards import RewardConfig
from finetune.common.run import Run, pack, unpack
from finetune.common.worker_envs import played

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import gymnasium

    from finetune.common.learner import Learner, Mode
    from finetune.common.macro import Wait
    from finetune.common.workers import Worker

    Evaluated = Callable[[Mapping[str, float]], object]

_CHOOSING = 0
_RECENT = 100
_TRAINING_SEEDS = 100_003


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """A run.

    Attributes:
        out: run folder.
        steps: of the environment; the episode that is under way then is played to its end.
        evaluate_every, episodes: steps between evaluations, each followed by a checkpoint, and episodes of each;
            `lanes` of them are played side by side.
        reward: who pays in the environment that is learned in. Evaluations are by the environment's own word, always.
        workers: processes that play, as Ray actors; 0 plays in this one. The run is the same either way, and one that
            dies is replaced (`finetune.common.workers`).
        envs: environments to learn in, side by side: decisions are made in batches, and workers share the play. Each
            plays an episode, and the next begin when all are over. With more than one the learner gets to know of an
            episode when it is over.
    """

    out: Path
    steps: int = 10_000
    evaluate_every: int = 1000
    episodes: int = 50
    lanes: int = 50
    seed: int = 0
    reward: RewardConfig = field(default_factory=RewardConfig)
    workers: int = 0
    envs: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.evaluate_every, self.episodes, self.lanes, self.envs) < 1 or self.workers < 0:
            raise ValueError(
                "steps, evaluate_every, episodes, lanes, envs, workers: must be 1 or more, the last 0 or more"
            )


@dataclass(kw_only=True)
class Counts:
    """How far a run is: steps, chunks, episodes, seconds, and which of the latest episodes succeeded."""

    steps: int = 0
    chunks: int = 0
    episodes: int = 0
    seconds: float = 0.0
    recent: list[bool] = field(default_factory=list)


class LearningJob:
    """A run.

    Args:
        make: makes the environment, `envs` times to learn in and `lanes` times to be judged in; it goes to the workers.
        identity: what makes the run what it is beside its settings: method, its settings, task, policy.

    Raises:
        ValueError: the folder belongs to another run.
    """

    def __init__(
        self,
        config: JobConfig,
        learner: Learner,
        make: Callable[[], gymnasium.Env[Any, Any]],
        *,
        identity: Mapping[str, Any],
    ) -> None:
        self.config, self.learner = config, learner
        self.counts = Counts()
        settings = {name: getattr(config, name) for name in ("steps", "evaluate_every", "episodes", "lanes", "seed")}
        reward = config.reward.identity if config.reward.served else {}
        reward |= {"envs": config.envs} if config.envs > 1 else {}
        self.run = Run(folder=config.out, identity={**settings, **identity, **reward}, board=True)
        self._opened = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            self._open(make, opened)
            self._restore()
            self._opened = opened.pop_all()

    def _open(self, make: Callable[[], gymnasium.Env[Any, Any]], opened: contextlib.ExitStack) -> None:
        config, execute = self.config, self.learner.execute
        lanes = min(config.lanes, config.episodes)
        self.workers: list[Worker] = []
        self._threads: ThreadPoolExecutor | None = None
        learning: Sequence[gymnasium.Env[Any, Any]]
        judged: Sequence[gymnasium.Env[Any, Any]]
        if config.workers:
            there = opened.enter_context(
                played(make, workers=config.workers, learning=config.envs, judged=lanes, draw=config.reward.served)
            )
            learning, judged, self.workers = there.learning, there.judged, there.workers
            self._threads = opened.enter_context(ThreadPoolExecutor(max(lanes, config.envs), "roboserve-lane"))
        else:
            learning, judged = [make() for _ in range(config.envs)], [make() for _ in range(lanes)]
        for env in judged:
            opened.callback(env.close)
        each_step = self.learner.each_step
        self._envs = [PaidMacros(self._paid(env, opened), execute=execute, each_step=each_step) for env in learning]
        self._handed = HandedOver(self._envs)
        self._judged = [MacroEnv(env, execute=execute, each_step=False) for env in judged]

    def _paid(self, env: gymnasium.Env[Any, Any], opened: contextlib.ExitStack) -> gymnasium.Env[Any, Any]:
        if self.config.reward.served:
            client = self.config.reward.connect()
            opened.callback(client.close)
            env = self.config.reward.wrap(env, client)
        opened.callback(env.close)
        return env

    def train(
        self,
        report: Callable[[int, str], None],
        *,
        evaluated: Evaluated | None = None,
    ) -> None:
        """Go on to the last step; evaluate at the start, every so often, and at the end.

        Args:
            report: told steps made, and a word about how it goes.
            evaluated: told the figures of each evaluation, before the state is saved: a run that is killed in between
                tells them again.
        """
        with self._opened:
            self._train(report, evaluated)

    def _train(self, report: Callable[[int, str], None], evaluated: Evaluated | None) -> None:
        started, facts = time.monotonic() - self.counts.seconds, _Means()
        if not self.counts.steps:
            self._checkpoint(facts, evaluated)
        while self.counts.steps < self.config.steps:
            before = self.counts.steps
            self._round(facts)
            report(self.counts.steps, f"success {np.mean(self.counts.recent[-50:]):.2f}")
            every = self.config.evaluate_every
            if before // every != self.counts.steps // every or self.counts.steps >= self.config.steps:
                self.counts.seconds = time.monotonic() - started
                self._checkpoint(facts, evaluated)
                facts = _Means()

    def _round(self, facts: _Means) -> None:
        """Play an episode in each environment, and learn meanwhile."""
        counts, seed, envs = self.counts, self.config.seed, self._envs
        side_by_side = map if self._threads is None else self._threads.map
        first = _TRAINING_SEEDS * (seed + 1) + counts.episodes
        lanes = range(len(envs))
        begun = side_by_side(lambda lane: envs[lane].reset(seed=first + lane), lanes)
        states, ends = dict(zip(lanes, begun, strict=True)), dict.fromkeys(lanes, False)
        while states:
            live = list(states)
            chosen = self.learner.act(np.stack(list(states.values())), noise(seed, _CHOOSING, counts.chunks), "collect")
            notes = [chosen.note(index) for index in range(len(live))]
            macros = side_by_side(lambda lane, *told: envs[lane].step(*told), live, chosen.chunks, notes)
            for lane, macro in zip(live, macros, strict=True):
                states[lane], ends[lane] = macro.observations[-1], macro.success
                counts.steps += len(macro.rewards)
                counts.chunks += 1
                if macro.over:
                    del states[lane]
            self._keep()
            for said in self.learner.learn(counts.steps):
                facts.add(said)
        counts.episodes += len(envs)
        counts.recent = [*counts.recent, *ends.values()][-_RECENT:]

    def _keep(self, *, wait: Wait = "no") -> None:
        for macro in self._handed.labelled(wait=wait):
            self.learner.keep(macro)

    def _checkpoint(self, facts: _Means, evaluated: Evaluated | None) -> None:
        row: dict[str, float] = {"env_steps": self.counts.steps}
        for before, mode in self.learner.judged.items():
            row |= {f"{before}{name}": value for name, value in self._evaluate(mode).items()}
        if self.counts.recent:
            row["online_success"] = float(np.mean(self.counts.recent))
        row |= {**facts.means, **self.learner.facts(), "online_episodes": self.counts.episodes}
        self.run.step, self.run.seconds = self.counts.steps, self.counts.seconds
        self.run.log(**row)
        self._keep(wait="all")
        if evaluated is not None:
            evaluated(row)
        self._save()

    def _evaluate(self, mode: Mode) -> dict[str, float]:
        config = self.config
        return evaluate(
            self.learner, self._judged, episodes=config.episodes, seed=config.seed, mode=mode, threads=self._threads
        )

    def _save(self) -> None:
        counters = np.array([getattr(self.counts, name) for name in _COUNTERS], np.float64)
        recent = np.array(self.counts.recent, bool)
        arrays = {**self.learner.state(), "job": {"counters": counters, "recent": recent}}
        tensors = pack(modules=self.learner.modules, optimizers=self.learner.optimizers, arrays=arrays)
        self.run.write(tensors)

    def _restore(self) -> None:
        kept = self.run.read()
        if not kept:
            return
        arrays = unpack(kept, modules=self.learner.modules, optimizers=self.learner.optimizers)
        job = arrays.pop("job")
        self.learner.load(arrays)
        for name, value in zip(_COUNTERS, job["counters"], strict=True):
            setattr(self.counts, name, type(getattr(self.counts, name))(value))
        self.counts.recent = [bool(value) for value in job["recent"]]


_COUNTERS = ("steps", "chunks", "episodes", "seconds")


class _Means:
    """Means of what updates say, each over the updates that said it."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._numbers: dict[str, int] = {}

    def add(self, said: Mapping[str, float]) -> None:
        for name, value in said.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._numbers[name] = self._numbers.get(name, 0) + 1

    @property
    def means(self) -> dict[str, float]:
        return {name: value / self._numbers[name] for name, value in self._sums.items()}
