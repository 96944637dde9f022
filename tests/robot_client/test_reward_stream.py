from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from clients.images import resize_with_pad
from robot_client.subscribers.reward_stream import RewardStream, RewardStreamConfig
from robot_client.subscribers.timing_log import TimingLog
from tests.robot_client.helpers import NeverThere, Watcher, episode, fast_link, point_server
from tests.serving.reward_running import RunningReward


class Seen(Watcher):
    """Keeps what the camera showed, by tick."""

    needs_observations = True

    def __init__(self):
        super().__init__()
        self.images = {}

    def on_step(self, record, observation):
        super().on_step(record, observation)
        self.images[record.tick] = observation.images["top"]


class FinishedWhen(NeverThere):
    """A robot that is done a quarter of a second after a condition holds."""

    def __init__(self, condition):
        super().__init__()
        self._condition, self._left = condition, 12

    def finished(self):
        self._left -= self._condition()
        return True if self._left <= 0 else None


@pytest.fixture
def run(tmp_path):
    """Run an episode of half a second at 50 Hz with a reward stream; returns the report and the curve's file."""
    log = TimingLog(tmp_path)

    def run_one(stream, *watchers, robot=None, max_seconds=0.5):
        robot = robot or NeverThere()
        with point_server(robot) as server, fast_link(server, robot) as link:
            report = episode(robot, link, log, stream, *watchers, max_seconds=max_seconds).run()
        assert report.ended in ("max_seconds", "finished")
        assert [event.kind for event in report.events] == ["connected"]
        return report, json.loads((log.folder / "reward.json").read_text("utf-8"))

    run_one.log = log
    return run_one


def stream_to(run, url, **settings):
    settings = {"rate_hz": 10.0, "codec": "raw", "timeout_s": 5.0, **settings}
    return RewardStream(RewardStreamConfig(url, **settings), lambda: run.log.folder)


def test_every_fifth_frame_and_the_last_are_judged_while_the_episode_runs(run):
    seen = Seen()
    with RunningReward() as reward:
        stream = stream_to(run, reward.url)
        _, curve = run(stream, seen)
        assert stream.latest == curve["values"][-1]["progress"]
        run(stream)
        stream.close()
        assert reward.server.streams.bytes == 0, "episodes that ended are forgotten by the server"
    ticks = [value["tick"] for value in curve["values"]]
    played = [record.tick for record in seen.ticks]
    assert ticks[-1] == played[-1]
    assert {tick // 5 for tick in ticks} == {tick // 5 for tick in played}
    assert (curve["offered"], curve["dropped"], curve["fault"]) == (len(ticks), 0, None)
    assert (curve["model"], curve["revision"], curve["rate_hz"]) == ("mine", "1", 10.0)
    shown = [resize_with_pad(seen.images[tick], 32, 32).mean() / 255 for tick in ticks]
    np.testing.assert_allclose([value["progress"] for value in curve["values"]], shown, atol=1e-6)
    assert all(value["latency_ms"] > 0 and value["time_s"] == value["tick"] / 50 for value in curve["values"])


def test_a_slow_reward_model_costs_frames_and_the_robot_nothing(run):
    with RunningReward(config={"seconds_per_frame": 0.05}) as reward:
        stream = stream_to(run, reward.url, rate_hz=50.0, capacity=2)
        report, curve = run(stream)
        stream.close()
    assert curve["dropped"] > 0
    assert curve["offered"] == report.ticks == len(curve["values"]) + curve["dropped"]
    assert curve["fault"] is None


def test_what_waits_when_the_episode_is_over_is_not_waited_for_for_ever(run):
    with RunningReward(config={"seconds_per_frame": 0.1}) as reward:
        stream = stream_to(run, reward.url, rate_hz=50.0, timeout_s=1.5)
        _, curve = run(stream)
        stream.close()
    assert curve["values"]
    assert curve["dropped"] > 0
    assert curve["offered"] == len(curve["values"]) + curve["dropped"]


def test_an_absent_or_lost_reward_model_is_told_and_a_returned_one_judges_again(run):
    reward = RunningReward()
    stopper = threading.Thread(target=reward.stop)
    stream = stream_to(run, reward.url)
    # Ten seconds at most; what ends it is that frames were offered to a server that is gone.
    robot = FinishedWhen(lambda: not stopper.is_alive() and stopper.ident is not None)
    watcher = Watcher(lambda record: stopper.start() if stream.latest is not None and stopper.ident is None else None)
    _, lost = run(stream, watcher, robot=robot, max_seconds=10.0)
    assert lost["values"]
    assert "unavailable" in lost["fault"]
    assert lost["offered"] > len(lost["values"])
    _, absent = run(stream)
    assert (absent["values"], absent["model"], "unavailable" in absent["fault"]) == ([], None, True)
    reward.start()
    _, back = run(stream)
    assert (back["fault"], len(back["values"])) == (None, back["offered"])
    stream.close()
    reward.stop()
