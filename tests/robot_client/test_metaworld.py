"""The simulated robot, through the four methods of a robot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from clients.errors import RoboserveError
from finetune.bc.expert import ScriptedExpert
from robot_client.robots.metaworld import MetaWorldRobot
from robot_client.robots.metaworld_tasks import TASKS, find_task

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def robot() -> Iterator[MetaWorldRobot]:
    made = MetaWorldRobot("drawer-open", max_steps=120)
    yield made
    made.close()


def test_a_seed_draws_the_scene(robot: MetaWorldRobot) -> None:
    scenes = []
    for seed in (1, 2, 1):
        robot.reset(seed)
        scenes.append((robot.privileged_observation, robot.observe().images["front"]))
    np.testing.assert_array_equal(scenes[0][0], scenes[2][0])
    np.testing.assert_array_equal(scenes[0][1], scenes[2][1])
    assert np.abs(scenes[0][0] - scenes[1][0]).max() > 0.01


def test_observations_are_what_the_interface_says(robot: MetaWorldRobot) -> None:
    robot.reset(3)
    seen = robot.observe()
    assert set(seen.images) == set(robot.interface.cameras)
    assert seen.images["front"].shape == (224, 224, 3)
    assert seen.images["front"].dtype == np.uint8
    assert seen.images["front"].std() > 10
    assert seen.state.shape == (robot.interface.state.size,)
    assert (seen.state >= robot.interface.state.low).all()
    assert (seen.state <= robot.interface.state.high).all()


def test_the_hand_goes_where_the_action_says(robot: MetaWorldRobot) -> None:
    robot.reset(4)
    before = robot.observe().state
    for _ in range(10):
        robot.act(np.array([0.5, 0, 0, -1], np.float32))
    moved = robot.observe().state - before
    assert moved[0] > 0.02
    assert abs(moved[1]) < 0.01


def test_the_scripted_expert_succeeds_and_idling_does_not(robot: MetaWorldRobot) -> None:
    robot.reset(5)
    expert = ScriptedExpert(robot)
    while robot.finished() is None:
        robot.act(expert.action())
    assert robot.finished() is True
    robot.reset(5)
    assert robot.finished() is None
    while robot.finished() is None:
        robot.act(np.zeros(4, np.float32))
    assert robot.finished() is False


@pytest.mark.parametrize("action", [np.zeros(3, np.float32), np.array([0, 0, np.nan, 0], np.float32)])
def test_actions_that_cannot_be_played_are_refused(robot: MetaWorldRobot, action: np.ndarray) -> None:
    robot.reset(1)
    with pytest.raises(RoboserveError, match="action"):
        robot.act(action)


def test_tasks_have_distinct_words_and_a_held_out_wording() -> None:
    assert len(TASKS) >= 10
    wordings = [words for task in TASKS.values() for words in (*task.training_instructions, task.held_out)]
    assert len(wordings) == len(set(wordings))
    with pytest.raises(RoboserveError, match="unknown"):
        find_task("fly")
