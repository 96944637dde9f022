"""Soft actor-critic on one task, from a served reward, sparse success or the simulator's own dense reward.

A run folder holds `config.json`, `evaluations.jsonl`, `tensorboard/` and the newest `checkpoint-STEP/`, which a run
that is started again goes on from. A checkpoint is what stable-baselines3 writes, its replay buffer by pickle: a run is
to read only what it wrote itself, so a folder from somebody else must not be gone on with.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import gymnasium
import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

from clients.errors import RoboserveError
from clients.reward import RewardClient
from clients.reward_env import RewardEnv
from clients.reward_shaping import RewardShape
from finetune.sac.buffer import LabelledReplayBuffer
from finetune.sac.environment import MetaWorldEnv
from finetune.sac.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from finetune.sac.environment import OwnReward

SERVED = "served:"
_FIRST_EVALUATION_SEED = 900_000
_TRAINING_SEEDS = 10_000


@dataclass(frozen=True, kw_only=True)
class SacConfig:
    """A run.

    Attributes:
        out: run folder.
        task: a name of `robot_client.robots.metaworld_tasks`.
        reward: "sparse", "env" or "served:ADDRESS" of a reward model, whose values are then all that is learned from.
        shape: what a step is paid for what the served model says.
        weight: factor of every reward, whoever pays it: rewards far below 1 are drowned by what SAC pays for entropy.
        seed: of weights, exploration and scenes.
        steps: decisions in all; `warm_up`: uniformly random ones before learning.
        horizon: decisions of an episode; `repeat`: control steps of a decision, 2 for the 10 frames a second that the
            embedded reward model was trained at.
        buffer, batch, gamma, learning_rate, entropy, hidden: of SAC; `entropy` is where its coefficient starts.
        lag: most steps whose reward may be under way while the simulator goes on.
        patience_s: longest wait for a lost server.
        evaluate_every: decisions from one evaluation to the next; `episodes`: fresh scenes of each.
        checkpoint_every: decisions from one checkpoint to the next.
    """

    out: Path
    task: str
    reward: str
    shape: RewardShape = field(default_factory=RewardShape)
    weight: float = 1.0
    seed: int = 0
    steps: int = 20_000
    warm_up: int = 1000
    horizon: int = 75
    repeat: int = 2
    image_size: int = 96
    buffer: int = 100_000
    batch: int = 128
    gamma: float = 0.99
    learning_rate: float = 3e-4
    entropy: float = 0.1
    hidden: tuple[int, ...] = (256, 256)
    lag: int = 16
    patience_s: float = 120.0
    evaluate_every: int = 1000
    episodes: int = 10
    checkpoint_every: int = 2500
    threads: int = 1

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the run what it is; how it is watched, kept and served may change on the way."""
        aside = ("out", "steps", "lag", "patience_s", "checkpoint_every", "threads")
        facts = {name: value for name, value in asdict(self).items() if name not in aside}
        if self.reward.startswith(SERVED):
            facts["reward"] = "served"
        else:
            del facts["shape"]
        return {**facts, "hidden": list(self.hidden)}


def train(config: SacConfig, report: Callable[[int, float | None], None]) -> RunFolder:
    """Train, or go on where the run folder stands, and return the folder.

    Args:
        report: told the decisions made, and the latest evaluation's success, 0 to 1.

    Raises:
        RoboserveError: `invalid_request` for an unknown reward; what the reward's server refuses.
        ValueError: the folder holds a run with other settings, or from another reward model.
    """
    torch.set_num_threads(config.threads)
    env, facts = make_environment(config)
    try:
        folder = RunFolder(config.out, {**config.identity, "model": facts})
        model = _model(config, env, folder)
        if isinstance(env, RewardEnv):
            _buffer(model).labelled = env.labelled
        watch = _Watch(config, model, env, folder, report)
        left = config.steps - model.num_timesteps
        if left > 0:
            model.learn(left, callback=watch, reset_num_timesteps=False, log_interval=10)
    finally:
        env.close()
    return folder


def make_environment(config: SacConfig) -> tuple[gymnasium.Env[Any, Any], dict[str, str] | None]:
    """Return the environment that is learned in, and which reward model pays in it.

    Raises:
        RoboserveError: see `train`.
    """
    size: dict[str, Any] = {"horizon": config.horizon, "repeat": config.repeat, "image_size": config.image_size}
    if config.reward in ("sparse", "env"):
        own = MetaWorldEnv(config.task, own_reward=cast("OwnReward", config.reward), **size)
        return gymnasium.wrappers.TransformReward(own, lambda reward: config.weight * float(reward)), None
    if not config.reward.startswith(SERVED):
        raise RoboserveError("invalid_request", f"reward: {config.reward!r}; allowed are sparse, env, served:ADDRESS")
    client = RewardClient(config.reward.removeprefix(SERVED), codec="raw")
    plain = MetaWorldEnv(config.task, **size)
    shape = replace(
        config.shape,
        model_weight=config.weight * config.shape.model_weight,
        success_bonus=config.weight * config.shape.success_bonus,
    )
    env = RewardEnv(plain, client, plain.instruction, shape=shape, lag=config.lag, patience_s=config.patience_s)
    contract = client.contract
    names = ("model", "revision", "content_hash", "dtype", "prompt_version", "frame_policy")
    return env, {name: str(getattr(contract, name)) for name in names}


def _model(config: SacConfig, env: gymnasium.Env[Any, Any], folder: RunFolder) -> SAC:
    board = str(folder.path / "tensorboard")
    checkpoint = folder.restore()
    if checkpoint is not None:
        model = SAC.load(checkpoint / "model.zip", env=env, device="cpu", tensorboard_log=board)
        model.load_replay_buffer(checkpoint / "buffer.pkl")
        # a generator's state is in no checkpoint: a run that goes on explores, and sees scenes, as no run before
        model.set_random_seed(_TRAINING_SEEDS * config.seed + model.num_timesteps)
        return model
    return SAC(
        "MlpPolicy",
        env,
        learning_rate=config.learning_rate,
        buffer_size=config.buffer,
        batch_size=config.batch,
        gamma=config.gamma,
        learning_starts=config.warm_up,
        ent_coef=f"auto_{config.entropy}",
        policy_kwargs={"net_arch": list(config.hidden), "optimizer_kwargs": {"fused": True}},
        replay_buffer_class=LabelledReplayBuffer,
        tensorboard_log=board,
        seed=_TRAINING_SEEDS * config.seed,
        device="cpu",
    )


def _buffer(model: SAC) -> LabelledReplayBuffer:
    return cast("LabelledReplayBuffer", model.replay_buffer)


class _Watch(BaseCallback):
    """Evaluates, keeps and tells as the run goes: between decisions, when each is in the replay buffer."""

    def __init__(
        self,
        config: SacConfig,
        sac: SAC,
        env: gymnasium.Env[Any, Any],
        folder: RunFolder,
        report: Callable[[int, float | None], None],
    ) -> None:
        super().__init__()
        self._config, self._sac, self._env, self._folder, self._report = config, sac, env, folder, report
        self._success: float | None = None
        self._started = time.monotonic()

    def _on_training_start(self) -> None:
        self._first = self.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.num_timesteps > self._first:
            self._look(self.num_timesteps)

    def _on_training_end(self) -> None:
        self._look(self.num_timesteps)

    def _on_step(self) -> bool:
        return True

    def _look(self, step: int) -> None:
        config = self._config
        if step % config.evaluate_every == 0:
            self._evaluate(step)
        if step % config.checkpoint_every == 0 or step == config.steps:
            self._save(step)
        self._report(step, self._success)

    def _evaluate(self, step: int) -> None:
        seconds = time.monotonic() - self._started
        found = evaluate(self._sac, self._config)
        self._success = float(np.mean(found))
        row = {"success": self._success, "reward": _buffer(self._sac).latest(self._config.evaluate_every)}
        for name, value in row.items():
            self.logger.record(f"evaluation/{name}", value)
        self._folder.log({"step": step, **row, "episodes": len(found), "seconds": round(seconds, 1)})

    def _save(self, step: int) -> None:
        if isinstance(self._env, RewardEnv) and self._config.lag:
            _buffer(self._sac).settle(self._env.drain())
        with self._folder.checkpoint(step) as place:
            self._sac.save(place / "model.zip")
            self._sac.save_replay_buffer(place / "buffer.pkl")


def evaluate(model: Any, config: SacConfig) -> list[bool]:
    """Play fresh scenes, the same in every evaluation, without exploration; tell which were solved at some time."""
    env = MetaWorldEnv(config.task, horizon=config.horizon, repeat=config.repeat, image_size=config.image_size)
    solved = []
    try:
        for number in range(config.episodes):
            observation, _ = env.reset(seed=_FIRST_EVALUATION_SEED + number)
            done, truncated = False, False
            while not (done or truncated):
                action, _ = model.predict(observation, deterministic=True)
                observation, _, _, truncated, info = env.step(action)
                done = bool(info["is_success"])
            solved.append(done)
    finally:
        env.close()
    return solved
