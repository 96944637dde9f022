"""Soft actor-critic from a served reward: rewards reach the buffer in order, a run learns, is killed, goes on."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
from stable_baselines3 import SAC

from clients.errors import RoboserveError
from clients.reward import RewardClient
from clients.reward_env import RewardEnv
from clients.reward_shaping import RewardShape
from finetune.sac import train as recipe
from finetune.sac.buffer import LabelledReplayBuffer
from finetune.sac.curves import draw, gather, save, table
from finetune.sac.environment import MetaWorldEnv
from finetune.sac.run_folder import RunFolder, evaluations
from finetune.sac.train import SacConfig, train
from tests.serving.reward_running import RunningReward


class Dimmer(gymnasium.Env):
    """A light that goes up and down; it is solved where the light is bright, and only the camera's frames say so."""

    render_mode = "rgb_array"
    instruction = "make it bright"
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, task="dimmer", **options):
        self._horizon = options.get("horizon", 20)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._level, self._left, self._solved = 0.2, self._horizon, False
        return self._observe(), {}

    def step(self, action):
        self._level = float(np.clip(self._level + 0.1 * float(action[0]), 0.0, 1.0))
        self._left -= 1
        success = self._level > 0.9
        self._solved = self._solved or success
        return self._observe(), 0.0, False, self._left <= 0, {"success": success, "is_success": self._solved}

    def render(self):
        return np.full((32, 32, 3), round(255 * self._level), np.uint8)

    def _observe(self):
        return np.array([self._level, self._left / self._horizon], np.float32)


@pytest.fixture(scope="module")
def running():
    with RunningReward() as server:
        yield server


@pytest.fixture
def dimmer(monkeypatch):
    monkeypatch.setattr(recipe, "MetaWorldEnv", Dimmer)


def settings(out, running, **changes):
    known = {
        "task": "dimmer",
        "reward": f"served:{running.url}",
        "shape": RewardShape(),
        "steps": 600,
        "warm_up": 100,
        "horizon": 20,
        "hidden": (32, 32),
        "learning_rate": 3e-3,
        "batch": 64,
        "lag": 4,
        "evaluate_every": 300,
        "episodes": 2,
        "checkpoint_every": 300,
    }
    return SacConfig(out=out, **{**known, **changes})


def test_the_buffer_holds_what_a_synchronous_environment_would_have_given(running):
    buffers = []
    for lag in (0, 3):
        with RewardClient(running.url) as client:
            env = RewardEnv(Dimmer(), client, "x", shape=RewardShape(form="delta"), lag=lag)
            model = SAC(
                "MlpPolicy",
                env,
                seed=3,
                buffer_size=60,
                learning_starts=1000,
                replay_buffer_class=LabelledReplayBuffer,
                device="cpu",
            )
            if lag:
                model.replay_buffer.labelled = env.labelled
            model.learn(50)
            if lag:
                model.replay_buffer.settle(env.drain())
            env.close()
            buffers.append(model.replay_buffer)
    plain, late = buffers
    assert (plain.pos, late.pos) == (50, 50)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(late, name)[:50], getattr(plain, name)[:50], err_msg=name)
    np.testing.assert_allclose(late.rewards[:19, 0], np.diff(late.observations[:20, 0, 0]), atol=1 / 255)
    assert late.timeouts[:50, 0].nonzero()[0].tolist() == [19, 39]
    assert late.latest(10) == pytest.approx(late.rewards[40:50].mean())


def test_it_learns_from_the_served_reward_alone_and_goes_on_where_it_was_killed(dimmer, running, tmp_path):
    def kill(step, success):
        if step == 450:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path / "run", running), kill)
    assert [row["step"] for row in evaluations(tmp_path / "run")] == [300]
    seen = []
    folder = train(settings(tmp_path / "run", running), lambda step, success: seen.append(step))
    assert (seen[0], seen[-1]) == (301, 600)
    rows = evaluations(folder.path)
    assert [row["step"] for row in rows] == [300, 600]
    assert rows[-1]["success"] == 1.0
    config = json.loads((folder.path / "config.json").read_text())
    assert (config["reward"], config["model"]["model"]) == ("served", "mine")
    assert len(list(folder.path.glob("checkpoint-*"))) == 1
    assert list((folder.path / "tensorboard").rglob("events*"))
    with pytest.raises(ValueError, match="other gamma"):
        train(settings(tmp_path / "run", running, gamma=0.5), kill)
    train(settings(tmp_path / "run", running), kill)
    assert evaluations(folder.path) == rows, "a run that is complete has nothing left to do"


def test_unknown_rewards_are_refused(tmp_path, running):
    with pytest.raises(RoboserveError, match="allowed are sparse, env, served:ADDRESS"):
        train(settings(tmp_path, running, reward="guess"), lambda step, success: None)


def test_curves_average_over_seeds(tmp_path):
    folders = []
    for reward, seed, values in (("served", 0, (0.0, 1.0)), ("served", 1, (0.5, 0.5)), ("sparse", 0, (0.0, 0.0))):
        folder = RunFolder(tmp_path / f"{reward}{seed}", {"task": "t", "reward": reward, "seed": seed, "repeat": 2})
        for index, value in enumerate(values):
            folder.log({"step": 100 * (index + 1), "success": value, "episodes": 4, "seconds": 1.0})
        folders.append(folder.path)
    served, sparse = gather(folders)
    assert (served.steps, served.success) == ((200, 400), {0: (0.0, 1.0), 1: (0.5, 0.5)})
    assert served.areas.tolist() == [0.5, 0.5]
    assert "| served reward | 2 | 0.75 | 1.00, 0.50 | 0.50 |" in table([served, sparse])
    told = json.loads(save([served, sparse], tmp_path / "out").read_text())
    assert told[1]["success"] == {"0": [0.0, 0.0]}
    assert len(draw([served, sparse]).axes[0].lines) == 2
    with pytest.raises(ValueError, match="differ in their seed"):
        gather([folders[0], folders[0]])


def test_the_task_pays_nothing_but_what_is_asked_and_never_ends_early():
    sparse, dense = MetaWorldEnv("reach", horizon=5, image_size=32), MetaWorldEnv("reach", own_reward="env", horizon=5)
    first, _ = sparse.reset(seed=1)
    again, _ = dense.reset(seed=1)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (39,)
    assert np.any(first[-3:] != 0), "the goal is part of the state"
    steps = [sparse.step(np.ones(4, np.float32)) for _ in range(5)]
    assert [reward for _, reward, *_ in steps] == [float(info["success"]) for *_, info in steps]
    assert [(terminated, truncated) for _, _, terminated, truncated, _ in steps] == [(False, False)] * 4 + [
        (False, True)
    ]
    assert 0.0 < dense.step(np.ones(4, np.float32))[1] < 10.0
    assert sparse.render().shape == (32, 32, 3)
    sparse.close()
    dense.close()
