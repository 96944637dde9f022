"""The embedded Robometer, as it ships, on rollouts that are played here: it keeps its contract, looks and reads."""

from __future__ import annotations

import json

import numpy as np
import pytest

from finetune.rewards.rollouts import plan, replay
from models.folders import ZOO
from models.rewards.contract import Pair, Query
from models.rewards.load import load_reward
from models.robometer.reward import RobometerReward
from robot_client.robots.metaworld import CAMERA, MetaWorldRobot
from tests.models.reward_contract import RewardContract


@pytest.fixture(scope="module")
def model():
    return RobometerReward(RobometerReward.Config(checkpoint="zoo:metaworld-robometer", device="cpu"))


class TestEmbedded(RewardContract):
    """It keeps what every reward model promises."""


@pytest.mark.parametrize("name", ["metaworld-robometer", "metaworld-rewind"])
def test_the_cards_say_how_good_the_embedded_models_are(name):
    card = (ZOO / name / "README.md").read_text("utf-8")
    found = json.loads((ZOO / name / "evaluation.json").read_text("utf-8"))
    assert found["judges"][name]["model"]["content_hash"] == load_reward(f"zoo:{name}").spec.content_hash
    for group in found["judges"][name]["groups"][:2]:
        for figure in ("voc_pearson", "kendall", "confusion"):
            assert f"{group['figures'][figure]['value']:.2f}" in card
    assert sum(path.stat().st_size for path in (ZOO / name).rglob("*") if path.is_file()) < 25_000_000


def film(robot, kind, seed):
    rollout = plan(robot, kind, seed)
    assert rollout is not None
    played = replay(robot, rollout, every=2)
    return [robot.observe().images[CAMERA] for _, kept in played if kept]


@pytest.mark.slow
def test_it_tells_done_from_not_done_and_its_own_words_from_others(model):
    robot = MetaWorldRobot("drawer-close", image_size=(224, 224))
    try:
        done, idle = film(robot, "expert", 910_000), film(robot, "idle", 910_000)
    finally:
        robot.close()

    def shown(frames):
        picked = np.rint(np.linspace(0, len(frames) - 1, 8)).astype(int)
        return tuple(model.encode([model.prepare(frames[index]) for index in picked]))

    good, bad, words = shown(done), shown(idle), robot.task.instruction
    asked = [
        Query(instruction=words, frames=good),
        Query(instruction=words, frames=bad),
        Query(instruction="press the coffee machine's button", frames=good),
    ]
    success, failure, other = model.score(asked)
    assert success.progress[-1] > failure.progress[-1] + 0.3
    assert success.progress[-1] > other.progress[-1] + 0.3
    assert success.success[-1] > failure.success[-1]
    assert success.progress[-1] > success.progress[0] + 0.3
    forward, backward = model.compare(
        [Pair(instruction=words, first=good, second=bad), Pair(instruction=words, first=bad, second=good)]
    )
    assert forward > 0.5 > backward
