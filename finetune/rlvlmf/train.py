"""The method's loop around stable-baselines3's soft actor-critic.

Random steps, pre-training on the entropy of states, then sessions: pairs are drawn and labelled, the ensemble is
trained on all labels so far, and every reward of the replay buffer is told anew. After the first session the critic is
made anew, for all that it knows is of another reward, and caught up.

A run holds its pictures in memory and is not gone on with; its labels are kept as they come, so that the same run,
started again, asks for none of them twice.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

from finetune.common.run import Run
from finetune.preference.judges import AskOptions
from finetune.rlvlmf.buffer import PictureBuffer, StateEntropy
from finetune.rlvlmf.ensemble import RewardEnsemble
from finetune.rlvlmf.environment import PictureEnv, make_environment
from finetune.rlvlmf.labels import LabelBook, LabelCounts
from finetune.rlvlmf.queries import Queries
from models.rewards.metrics import spearman

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import gymnasium

    from finetune.preference.judges import PairJudge
    from finetune.rlvlmf.config import RlVlmfConfig
    from finetune.rlvlmf.ensemble import Fit
    from finetune.rlvlmf.queries import Session

LABELS, SESSIONS = "labels.jsonl", "sessions.jsonl"
_FIRST_EVALUATION_SEED = 900_000
_TRAINING_SEEDS = 10_000
_LOOKED_AT = 2000
"""Newest states whose learned rewards are compared with the true ones, beside all states."""


def train(
    config: RlVlmfConfig,
    judge: PairJudge | None,
    report: Callable[[int, str], None],
    *,
    labels: Path | None = None,
) -> LabelCounts:
    """Train a policy and return where its labels came from.

    The folder gets `config.json`, `metrics.jsonl`, `sessions.jsonl`, `labels.jsonl`, and in the end `policy.zip` and
    `reward.safetensors`. Every line of metrics: `step` (decisions made), `return` and `success` (means over `episodes`
    fresh scenes), `spearman` and `spearman_newest` (of learned and true rewards, over all states so far and over the
    newest 2000; null before a reward was learned), `labels` (requested so far), `seconds`.

    Args:
        judge: who labels; None replays what `labels` holds, or is for runs that learn from no labels.
        report: told decisions made, and a word about how it goes.
        labels: file of labels that are known already, and where new ones go; None is the run's own.

    Raises:
        ValueError: the folder, or the labels, belong to another run; nobody is to be asked, and no labels are there.
        RoboserveError: the labeller's refusal, `budget_exhausted` among them.
    """
    torch.set_num_threads(config.threads)
    run = Run(folder=config.out, identity=config.identity, board=True)
    run.read()
    (run.folder / SESSIONS).unlink(missing_ok=True)
    size = {"horizon": config.horizon, "repeat": config.repeat, "image_size": config.image_size}
    env, wording = make_environment(config.task, **size)
    try:
        model = _model(config, PictureEnv(env))
        queries, counts = None, LabelCounts()
        if config.learn == "preferences":
            options = AskOptions(
                protocol=config.protocol,
                order_swap=config.order_swap,
                votes=config.votes,
                tie_threshold=config.tie_threshold,
                audit=config.audit,
            )
            book = LabelBook(labels or run.folder / LABELS, judge, options)
            schedule, counts = config.schedule, book.counts
            queries = Queries(
                book, config.goal or wording, batch=schedule.query_batch, most=schedule.max_labels, seed=config.seed
            )
        loop = Loop(config, model, run, queries, report)
        model.learn(config.schedule.env_steps, callback=loop, log_interval=1_000_000)
    finally:
        env.close()
    model.save(run.folder / "policy.zip")
    if queries is not None:
        save_file(loop.ensemble.members.state_dict(), run.folder / "reward.safetensors")
    return counts


def reset_critic(model: SAC) -> None:
    """Give the model a new critic and its target, of fresh weights, with a fresh optimiser."""
    policy: Any = model.policy
    policy.critic = policy.make_critic(features_extractor=None)
    policy.critic_target = policy.make_critic(features_extractor=None)
    policy.critic_target.load_state_dict(policy.critic.state_dict())
    policy.critic.optimizer = policy.optimizer_class(
        policy.critic.parameters(), lr=model.lr_schedule(1), **policy.optimizer_kwargs
    )
    policy.critic_target.set_training_mode(False)
    model._create_aliases()  # noqa: SLF001  the model keeps references of its own to these networks


class Loop(BaseCallback):
    """What happens between decisions.

    Args:
        queries: None for a run that learns from no labels.
    """

    def __init__(
        self,
        config: RlVlmfConfig,
        sac: SAC,
        run: Run,
        queries: Queries | None,
        report: Callable[[int, str], None],
    ) -> None:
        super().__init__()
        self._config, self._sac, self._run, self._queries, self._report = config, sac, run, queries, report
        schedule = config.schedule
        self.ensemble = RewardEnsemble(
            config.image_size,
            members=config.ensemble,
            rate=schedule.reward_rate,
            batch=schedule.reward_batch,
            seed=config.seed,
        )
        self._entropy = StateEntropy(neighbours=config.neighbours, among=config.entropy_states, seed=config.seed)
        self._first = schedule.seed_steps + schedule.unsup
        self._started = time.monotonic()
        self._note = ""

    @property
    def _buffer(self) -> PictureBuffer:
        return cast("PictureBuffer", self._sac.replay_buffer)

    def _on_rollout_start(self) -> None:
        self._between(self.num_timesteps)

    def _on_training_end(self) -> None:
        self._look(self.num_timesteps)

    def _on_step(self) -> bool:
        return True

    def _between(self, step: int) -> None:
        config = self._config
        if step == 0 and config.learn != "true":
            self._buffer.entropy = self._entropy
        if self._queries is not None and step >= self._first and not self._queries.over:
            since = step - self._first
            if since % config.schedule.interval == 0:
                self._session(step)
            if since == 0:
                self._buffer.entropy = None
                reset_critic(self._sac)
                self._sac.train(gradient_steps=config.catch_up, batch_size=config.schedule.sac_batch)
        if step and step % config.evaluate_every == 0:
            self._look(step)
        if step % 100 == 0:
            self._report(step, self._note)

    def _session(self, step: int) -> None:
        config, buffer = self._config, self._buffer
        queries = cast("Queries", self._queries)
        session = queries.ask(buffer.all_trajectories(), buffer.pictures, buffer.true_rewards)
        fit: Fit | None = None
        if len(queries.labels):
            fit = self.ensemble.fit(
                queries.images,
                queries.pairs,
                queries.labels,
                epochs=config.schedule.reward_epochs,
                stop=config.stop_accuracy,
            )
        buffer.judge = self.ensemble.reward
        buffer.relabel()
        self._note = f"{queries.requested} labels"
        self._log_session(step, session, fit)

    def _log_session(self, step: int, session: Session, fit: Fit | None) -> None:
        row: dict[str, Any] = {"step": step, **asdict(session), **self._agreement()}
        row |= {"epochs": 0, "accuracy": None} if fit is None else asdict(fit)
        with (self._run.folder / SESSIONS).open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(row) + "\n")

    def _agreement(self) -> dict[str, float | None]:
        """Return how learned rewards rank states beside the true ones; None before a reward was learned."""
        buffer = self._buffer
        size, newest = buffer.size(), max(0, buffer.size() - _LOOKED_AT)
        if buffer.judge is None or size < 2:
            return {"spearman": None, "spearman_newest": None}
        learned, true = buffer.rewards[:size, 0], buffer.true_rewards[:size]
        return {"spearman": spearman(learned, true), "spearman_newest": spearman(learned[newest:], true[newest:])}

    def _look(self, step: int) -> None:
        returns, solved = evaluate(self._sac, self._config)
        row = {
            "success": float(np.mean(solved)),
            "return": float(np.mean(returns)),
            **self._agreement(),
            "labels": 0 if self._queries is None else self._queries.requested,
            "episodes": len(returns),
        }
        self._run.step, self._run.seconds = step, time.monotonic() - self._started
        self._run.log(**row)
        self._note = f"return {row['return']:.1f}, {row['labels']} labels"
        self._report(step, self._note)


def evaluate(model: Any, config: RlVlmfConfig) -> tuple[list[float], list[bool]]:
    """Play fresh scenes, the same in every evaluation, without exploration; return true returns and successes."""
    size = {"horizon": config.horizon, "repeat": config.repeat, "image_size": config.image_size}
    env, _ = make_environment(config.task, **size)
    try:
        played = [_episode(model, env, _FIRST_EVALUATION_SEED + number) for number in range(config.episodes)]
    finally:
        env.close()
    return [paid for paid, _ in played], [success for _, success in played]


def _episode(model: Any, env: gymnasium.Env[Any, Any], seed: int) -> tuple[float, bool]:
    observation, _ = env.reset(seed=seed)
    paid, over, success = 0.0, False, False
    while not over:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, info = env.step(action)
        paid += float(reward)
        success = bool(info["success"])
        over = terminated or truncated
    return paid, success


def _model(config: RlVlmfConfig, env: gymnasium.Env[Any, Any]) -> SAC:
    schedule = config.schedule
    return SAC(
        "MlpPolicy",
        env,
        learning_rate=schedule.sac_rate,
        buffer_size=schedule.env_steps,
        batch_size=schedule.sac_batch,
        gamma=config.gamma,
        learning_starts=schedule.seed_steps,
        train_freq=config.train_every,
        # One kernel for all parameters: with small layers, a step is mostly the starting of kernels.
        policy_kwargs={"net_arch": list(schedule.hidden), "optimizer_kwargs": {"fused": True}},
        replay_buffer_class=PictureBuffer,
        replay_buffer_kwargs={"image_size": config.image_size},
        seed=_TRAINING_SEEDS * config.seed,
        device="cpu",
    )
