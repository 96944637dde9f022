"""Served rewards around a Gymnasium environment whose frames say what the model answers: a real server and sockets."""

from __future__ import annotations

import importlib
import itertools
import math
import sys
import threading
import time

import gymnasium
import numpy as np
import pytest

from clients.errors import RoboserveError
from clients.reward import Clip, RewardClient
from clients.reward_env import RewardEnv
from clients.reward_shaping import RewardShape
from tests.serving.reward_running import RunningReward


class Lamp(gymnasium.Env):
    """A lamp that an action makes brighter or darker; it draws every frame into the same memory."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as Gymnasium has it
    observation_space = gymnasium.spaces.Dict(
        {
            "level": gymnasium.spaces.Box(0, 255, (1,), np.float32),
            "pixels": gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8),
        }
    )
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, *, steps=8, seconds=0.0, render_mode="rgb_array"):
        self.render_mode = render_mode
        self._steps, self._seconds = steps, seconds
        self._canvas = np.zeros((32, 32, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._level, self._step = int(self.np_random.integers(40, 80)), 0
        return self._observe(), {}

    def step(self, action):
        time.sleep(self._seconds)
        self._level = int(np.clip(self._level + 20 * float(action[0]), 0, 255))
        self._step += 1
        return self._observe(), -1.0, False, self._step >= self._steps, {"level": self._level}

    def render(self):
        self._canvas[:] = self._level
        return self._canvas

    def _observe(self):
        return {"level": np.array([self._level], np.float32), "pixels": self.render().copy()}


ACTIONS = [np.array([value], np.float32) for value in (1.0, 0.5, -0.5, 1.0, 1.0, 1.0, -1.0, 1.0)]


@pytest.fixture(scope="module")
def running():
    with RunningReward() as server:
        yield server


@pytest.fixture
def client(running):
    with RewardClient(running.url, timeout_s=20.0) as connected:
        yield connected


def play(env, *, seed=0, actions=ACTIONS):
    """Play an episode; returns the levels (T + 1,) and what each step gave."""
    observation, _ = env.reset(seed=seed)
    levels, steps = [float(observation["level"][0])], []
    for action in actions:
        steps.append(env.step(action))
        levels.append(float(steps[-1][0]["level"][0]))
    return np.array(levels), steps


def test_rewards_are_those_of_the_plain_client(client):
    levels, steps = play(RewardEnv(Lamp(), client, "light up"))
    frames = np.stack([np.full((32, 32, 3), level, np.uint8) for level in levels])
    [expected] = client.score([Clip("light up", frames)]).clips
    np.testing.assert_allclose([reward for _, reward, *_ in steps], expected.progress[1:], atol=1e-6)
    infos = [info for *_, info in steps]
    assert [info["progress"] for info in infos] == pytest.approx(list(levels[1:] / 255), abs=1e-6)
    assert all(info["reward_ready"] and info["env_reward"] == -1.0 and "level" in info for info in infos)
    assert [truncated for *_, truncated, _ in steps] == [False] * 7 + [True]


@pytest.mark.parametrize(
    "frames", [None, "pixels", lambda env, observation: {"front": env.render(), "wrist": observation["pixels"]}]
)
def test_frames_come_from_where_they_are_said_to(client, frames):
    env = RewardEnv(Lamp(), client, "x", frames=frames, shape=RewardShape(form="delta"))
    levels, steps = play(env)
    np.testing.assert_allclose([reward for _, reward, *_ in steps], np.diff(levels) / 255, atol=1e-6)


def test_every_frame_goes_up_the_wire_once(running, client):
    env = RewardEnv(Lamp(), client, "x", every=3, lag=4)
    before = running.server.model.forwards
    play(env)
    done = env.drain()
    assert running.server.model.forwards - before == 4, "frames 0, 3, 6 and the last"
    assert [each.judged for each in done] == [False, False, True, False, False, True, False, True]
    assert [each.reward for each in done if not each.judged] == [0.0] * 5
    env.close()


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("form", ["progress", "delta", "potential"])
def test_asynchronous_equals_synchronous_over_episodes(client, form, every):
    shape = RewardShape(form=form, gamma=0.9, env_weight=0.5, success_bonus=2.0, threshold=0.5)
    wait, go = (RewardEnv(Lamp(), client, "x", shape=shape, every=every, lag=lag) for lag in (0, 3))
    expected, found = [], []
    for seed in range(3):
        _, steps = play(wait, seed=seed)
        expected += steps
        _, blank = play(go, seed=seed)
        assert all(math.isnan(reward) and not info["reward_ready"] for _, reward, _, _, info in blank)
        found += go.labelled()
    found += go.drain()
    assert [(each.episode, each.step) for each in found] == [(e, s) for e in range(3) for s in range(1, 9)]
    for each, (observation, reward, terminated, truncated, info) in zip(found, expected, strict=True):
        assert each.reward == pytest.approx(reward)
        assert (each.progress, each.success_probability) == (info["progress"], info["success_probability"])
        assert (each.success, each.env_reward) == (info["served_success"], -1.0)
        assert (each.terminated, each.truncated) == (terminated, truncated)
        assert each.next_observation["level"] == observation["level"]
    for before, after in itertools.pairwise(found):
        if before.episode == after.episode:
            assert before.next_observation["level"] == after.observation["level"]
    assert go.labelled() == [], "what was taken does not come again"
    go.close()


def test_the_simulator_does_not_wait_within_the_lag_and_waits_beyond_it():
    with RunningReward({"seconds_per_frame": 0.05}) as server, RewardClient(server.url) as client:
        env = RewardEnv(Lamp(steps=50), client, "x", frame_policy="last-1", lag=5)
        most, blocked = 0, 0
        env.reset(seed=0)
        for _ in range(20):
            waiting = env.outstanding
            env.step(ACTIONS[0])
            most = max(most, env.outstanding)
            blocked += waiting == 5
        assert most == 5
        assert blocked > 0
        assert len(env.drain()) == 20
        env.close()


def test_success_that_the_model_sees_ends_the_episode(client):
    shape = RewardShape(terminate=True, threshold=0.5)
    up = [ACTIONS[0]] * 12
    levels, steps = play(RewardEnv(Lamp(steps=12), client, "x", shape=shape), actions=up)
    bright = levels[1:] > 127.5
    expected = [bool(bright[index] and (index and bright[index - 1])) for index in range(12)]
    assert [terminated for _, _, terminated, *_ in steps] == expected
    env = RewardEnv(Lamp(steps=200, seconds=0.01), client, "x", shape=shape, lag=2)
    env.reset(seed=0)
    taken = next(step for step in range(1, 200) if env.step(ACTIONS[0])[2])
    assert expected.index(True) + 1 < taken <= expected.index(True) + 1 + 3
    done = env.drain()
    assert [each.terminated for each in done] == [False] * (taken - 1) + [True]
    env.close()


@pytest.mark.parametrize("lag", [0, 4])
def test_a_lost_server_gets_the_episode_again_and_nothing_twice(lag):
    with RunningReward() as server, RewardClient(server.url, timeout_s=20.0) as client:
        env = RewardEnv(
            Lamp(), client, "x", shape=RewardShape(form="delta"), frame_policy="all", lag=lag, patience_s=30.0
        )
        observation, _ = env.reset(seed=1)
        levels, rewards = [observation["level"][0]], []
        for index, action in enumerate(ACTIONS):
            if index == 5:
                server.stop()
                again = threading.Timer(0.4, server.start)
                again.start()
            observation, reward, *_ = env.step(action)
            levels.append(observation["level"][0])
            rewards.append(reward)
        done = env.drain() if lag else []
        again.join()
        assert not lag or [each.step for each in done] == list(range(1, 9))
        found = [each.reward for each in done] if lag else rewards
        np.testing.assert_allclose(found, np.diff(levels) / 255, atol=1e-6)
        env.close()


def test_a_lost_server_is_a_typed_error_without_patience_and_a_reset_goes_on():
    with RunningReward() as server, RewardClient(server.url, timeout_s=20.0) as client:
        env, lagged = RewardEnv(Lamp(), client, "x"), RewardEnv(Lamp(), client, "x", lag=8)
        env.reset()
        lagged.reset()
        lagged.step(ACTIONS[0])
        lagged_before = len(lagged.drain())
        server.stop()
        lagged.step(ACTIONS[0])
        for act in (lambda: env.step(ACTIONS[0]), lagged.drain, lambda: lagged.step(ACTIONS[0]), env.reset):
            with pytest.raises(RoboserveError) as caught:
                act()
            assert caught.value.code == "unavailable"
        server.start()
        with pytest.raises(RoboserveError, match="reset it"):
            env.step(ACTIONS[0])
        _, info = lagged.reset()
        assert (lagged_before, info["rewards_lost"]) == (1, 1)
        lagged.step(ACTIONS[0])
        assert [(each.episode, each.step) for each in lagged.drain()] == [(1, 1)]
        assert env.reset()[1]["rewards_lost"] == 0
        lagged.close()
        env.close()


def test_what_cannot_work_is_refused(client):
    with pytest.raises(RoboserveError, match="render_mode: None"):
        RewardEnv(Lamp(render_mode=None), client, "x")
    with pytest.raises(RoboserveError, match="every: 0"):
        RewardEnv(Lamp(), client, "x", every=0)
    env = RewardEnv(Lamp(), client, "x")
    with pytest.raises(RoboserveError, match="reset must come before"):
        env.step(ACTIONS[0])
    with pytest.raises(RoboserveError, match="step returns the reward"):
        env.labelled()
    env = RewardEnv(Lamp(), client, "x", frames=lambda env, observation: observation["level"])
    with pytest.raises(RoboserveError, match=r"frame of front: float32 \(1,\)"):
        env.reset()


def test_without_gymnasium_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "clients.reward_env")
    with pytest.raises(ImportError, match="the extra `sim`"):
        importlib.import_module("clients.reward_env")


def test_the_environment_keeps_gymnasiums_own_rules(client):
    from gymnasium.utils.env_checker import check_env

    check_env(RewardEnv(Lamp(), client, "x"), skip_render_check=True)
