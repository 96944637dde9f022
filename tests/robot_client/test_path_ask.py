from __future__ import annotations

import json

import numpy as np
import pytest

from robot_client.subscribers.path_ask import PathAsked
from robot_client.subscribers.timing_log import TimingLog
from tests.robot_client.helpers import NeverThere, Watcher, episode, fast_link, point_server
from tests.serving.path_running import RunningPath
from tests.serving.paths import SayingEngine, path_server


class FirstSeen(Watcher):
    """Keeps the first picture."""

    needs_observations = True
    image = None

    def on_step(self, record, observation):
        super().on_step(record, observation)
        if self.image is None:
            self.image = observation.images["top"]


@pytest.fixture
def run(tmp_path):
    """Run an episode of a fifth of a second at 50 Hz with a subscriber; returns the path's file."""
    log = TimingLog(tmp_path)

    def run_one(make, *watchers):
        robot = NeverThere()
        asked = make(lambda: log.folder)
        with point_server(robot) as server, fast_link(server, robot) as link:
            report = episode(robot, link, log, asked, *watchers, max_seconds=0.2).run()
            again = episode(robot, link, log, asked, max_seconds=0.2).run()
        asked.close()
        assert {one.ended for one in (report, again)} == {"max_seconds"}
        return [json.loads(path.read_text("utf-8")) for path in sorted(tmp_path.glob("**/path.json"))]

    return run_one


def test_the_first_frame_of_each_episode_is_asked_about(run):
    engine, seen = SayingEngine(), FirstSeen()
    with RunningPath.of(path_server(engine)) as server:
        first, second = run(lambda folder: PathAsked(server.url, folder), seen)
    assert first["points"] == second["points"] == [[0.25, 0.5], [0.75, 0.2]]
    assert first["gripper_open"] == [False, True]
    assert (first["camera"], first["issues"]) == ("top", [])
    assert first["instruction"]
    assert len(engine.asked) == 2
    np.testing.assert_array_equal(engine.images[0], seen.image)


def test_a_predictor_that_fails_or_is_not_there_costs_the_path_and_nothing_else(run):
    engine = SayingEngine()
    with RunningPath.of(path_server(engine)) as server:
        engine.says = ["no path at all", "nor here"]
        failed = run(lambda folder: PathAsked(server.url, folder))
    absent = run(lambda folder: PathAsked("ws://127.0.0.1:9/path/mine", folder, timeout_s=0.5))
    assert ["invalid_output" in found["fault"] for found in failed] == [True, True]
    assert "unavailable" in absent[-1]["fault"]
