"""A path, asked for once before the episode and drawn on every image that the policy sees."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from clients.errors import RoboserveError
from clients.images import resize_with_pad
from models.hamster.drawing import POLICY, overlay
from models.hamster.path import Path
from robot_client.cli import main
from robot_client.planner import PlannerConfig
from robot_client.robots.pointmass import PointMass
from robot_client.subscribers.timing_log import TimingLog
from tests.robot_client.helpers import Watcher, episode, fast_link, point_server
from tests.serving.path_running import RunningPath
from tests.serving.paths import SayingEngine, path_server

POINTS = [[0.25, 0.5], [0.75, 0.2]]


@pytest.fixture
def planner():
    with RunningPath.of(path_server(SayingEngine())) as running:
        yield running


@pytest.fixture
def policy():
    with point_server(PointMass()) as running:
        yield running


class Still(PointMass):
    """A point mass whose camera shows what it showed first."""

    def observe(self):
        seen = super().observe()
        self.frame = getattr(self, "frame", seen.images["top"])
        return type(seen)(images={"top": self.frame}, state=seen.state)


def test_the_path_is_asked_for_once_and_drawn_on_every_image(policy, planner, tmp_path):
    robot = Still()
    with fast_link(policy, robot, codec="raw") as link:
        log = TimingLog(tmp_path)
        report = episode(robot, link, log, planner=PlannerConfig(planner.url), max_seconds=0.5).run()
    acts = policy.acts()
    assert len(acts) > 1
    assert len(planner.server.engine.asked) == 1
    np.testing.assert_array_equal(planner.server.engine.images[0], robot.frame)
    fitted = resize_with_pad(robot.frame, 32, 48)
    path = Path(points=POINTS, gripper_open=[False, True])
    drawn = overlay(fitted, path, style=POLICY)
    assert (drawn != fitted).any()
    if robot.frame.shape[:2] == (32, 48):
        np.testing.assert_array_equal(acts[0]["observation"]["images"]["top"], drawn)
    for act in acts:
        image = act["observation"]["images"]["top"]
        assert image.shape == (32, 48, 3)
        np.testing.assert_array_equal(image, acts[0]["observation"]["images"]["top"])
        assert (image != fitted).any()
    assert report.info.path is not None
    assert report.info.path.points.tolist() == POINTS
    told = json.loads(next(tmp_path.glob("*/episode.json")).read_text("utf-8"))["path"]
    assert (told["camera"], told["points"], told["gripper_open"]) == ("top", POINTS, [False, True])
    assert told["model"]["id"] == "mine"


def test_without_a_path_no_episode_begins(policy, planner):
    planner.server.engine.says = ["I see nothing"]
    robot = Still()
    with fast_link(policy, robot) as link:
        with pytest.raises(RoboserveError, match="no_answer"):
            episode(robot, link, planner=PlannerConfig(planner.url)).run()
        with pytest.raises(RoboserveError, match="planner camera: 'wrist'; policy and robot share top"):
            episode(robot, link, planner=PlannerConfig(planner.url, camera="wrist")).run()
        with pytest.raises(RoboserveError, match="unavailable"):
            episode(robot, link, planner=PlannerConfig("ws://127.0.0.1:9/path/x", timeout_s=0.1)).run()
        assert policy.acts() == []
        assert episode(robot, link, max_seconds=0.3).run().info.path is None


def test_a_new_path_is_asked_for_while_the_robot_moves_and_a_failed_question_keeps_the_old_one(policy, planner):
    robot, asked = Still(), []

    def on_tick(record):
        if record.tick == 5:
            planner.server.engine.says = ["<ans>[(0.1, 0.9), (0.9, 0.9)]</ans>"]
            running.replan()
        if record.tick == 20:
            planner.server.engine.says = ["I see nothing"]
            running.replan()
        asked.append(len(planner.server.engine.asked))

    with fast_link(policy, robot, codec="raw") as link:
        running = episode(robot, link, Watcher(on_tick), planner=PlannerConfig(planner.url), max_seconds=1.0)
        with pytest.raises(RoboserveError, match="no episode with a planner runs"):
            running.replan()
        report = running.run()
    seen = [act["observation"]["images"]["top"] for act in policy.acts()]
    changes = [not np.array_equal(one, other) for one, other in pairwise(seen)]
    assert sum(changes) == 1
    assert [event.kind for event in report.events if event.kind.startswith("path")] == ["path", "path_failed"]
    assert len(planner.server.engine.asked) == 3
    assert report.info.path.points.tolist() == POINTS


def test_the_planner_may_be_asked_at_intervals(policy, planner):
    robot = Still()
    with fast_link(policy, robot) as link:
        episode(robot, link, planner=PlannerConfig(planner.url, every_s=0.25), max_seconds=0.9).run()
    assert len(planner.server.engine.asked) > 2


def test_the_command_line_takes_a_planner(policy, planner, tmp_path, capsys):
    arguments = ["run", "--robot", "pointmass", "--server", policy.url, "--quiet", "--max-seconds", "0.3"]
    arguments += ["--codec", "png", "--planner", planner.url, "--planner-view", "center_crop", "--log", str(tmp_path)]
    assert main(arguments) == 0
    image = np.asarray(Image.open(io.BytesIO(policy.acts()[0]["observation"]["images"]["top"])))
    assert (image == POLICY.closed).all(axis=2).any()
    told = json.loads(next(tmp_path.glob("*/episode.json")).read_text("utf-8"))["path"]
    assert told["points"] != POINTS, "seen through a crop, told for the whole image"
    assert main([*arguments[:-4], "--planner-camera", "wrist"]) == 1
    assert "planner camera" in capsys.readouterr().err
