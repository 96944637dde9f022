from __future__ import annotations

import io
import json
import threading

import numpy as np
import pytest

from robot_client.subscribers.console import ConsoleView, print_table
from robot_client.subscribers.recorder import EXTRAS, DatasetRecorder
from robot_client.subscribers.timing_log import TimingLog
from robot_client.subscribers.worker import Worker
from tests.robot_client.helpers import NeverThere, Watcher, episode, fast_link, point_server


def test_the_timing_log_tells_every_tick_and_request(tmp_path):
    robot, watcher, log = NeverThere(), Watcher(), TimingLog(tmp_path)
    with point_server(robot) as server, fast_link(server, robot) as link:
        server.faults.delay_s = 0.03
        report = episode(robot, link, log, watcher, max_seconds=0.8, task="drawer open", seed=4).run()
        episode(robot, link, log, max_seconds=0.2, task="drawer open", seed=5).run()
    folder = tmp_path / "0000-drawer-open-seed4"
    assert log.folder == tmp_path / "0001-drawer-open-seed5"
    ticks = [json.loads(line) for line in (folder / "ticks.jsonl").read_text().splitlines()]
    assert [line["tick"] for line in ticks] == [record.tick for record in watcher.ticks]
    played = next(line for line in ticks if line["source"] == "chunk")
    assert played["age_ms"] > 0
    index = [line["action"] for line in ticks].index(played["action"])
    assert played["action"] == pytest.approx(robot.told[index], abs=1e-6)
    requests = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    assert np.shape(requests[0]["actions"]) == (16, 2)
    assert requests[0]["timings"]["forward"] == 0.1
    assert requests[0]["latency_ms"] >= requests[0]["round_trip_ms"] >= 30.0
    summary = json.loads((folder / "episode.json").read_text())
    assert summary["ticks"] == report.ticks == len(ticks)
    assert set(summary["latency_ms"]) == {"p50", "p90", "p99", "max"}
    assert summary["held_ticks"] == sum(line["source"] == "hold" for line in ticks)
    assert summary["batch_sizes"] == {"1": report.requests["played"]}
    assert (summary["ended"], summary["success"], summary["unlogged"]) == ("max_seconds", None, 0)
    assert summary["events"][0]["kind"] == "connected"


def test_the_recorder_writes_episodes_that_the_dataset_reader_reads(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    from robot_client.dataset import DatasetReader

    robot, watcher = NeverThere(), Watcher()
    recorder = DatasetRecorder(tmp_path / "set")
    with point_server(robot) as server, fast_link(server, robot) as link:
        for seed in range(2):
            episode(robot, link, recorder, watcher, max_seconds=0.5, seed=seed).run()
    recorder.close()
    reader = DatasetReader(tmp_path / "set")
    assert len(reader.episodes) == 2
    table = reader.columns(reader.episodes[1])
    sent = [record for record in watcher.ticks if record.action is not None]
    assert len(table["action"]) == len(sent) or len(table["action"]) == len(sent) - 1
    np.testing.assert_allclose(table["action"], np.stack([record.action for record in sent][-len(table["action"]) :]))
    assert set(EXTRAS) <= set(table)
    assert (table["held"] == (table["chunk_id"] < 0)).all()
    assert reader.episodes[0].extra["ended"] == "max_seconds"
    assert reader.episodes[0].extra["success"] is False or reader.episodes[0].extra["success"] == 0


def test_the_recorder_may_keep_the_last_seconds_of_failures_only(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    from robot_client.dataset import DatasetReader
    from robot_client.robots.pointmass import PointMass

    failing, reaching = NeverThere(), PointMass()
    recorder = DatasetRecorder(tmp_path / "set", failures_last_s=0.2)
    with point_server(failing) as server, fast_link(server, failing) as link:
        episode(reaching, link, recorder, max_seconds=20.0).run()
        assert not (tmp_path / "set").exists()
        episode(failing, link, recorder, max_seconds=0.6).run()
    recorder.close()
    assert [item.length for item in DatasetReader(tmp_path / "set").episodes] == [10]


def test_a_recorder_whose_disk_fails_is_reported_and_the_robot_goes_on(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    blocker = tmp_path / "set"
    blocker.write_text("a file where a folder should be")
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot) as link:
        report = episode(robot, link, DatasetRecorder(blocker), max_seconds=0.5).run()
    assert report.ended == "max_seconds"
    assert [event.kind for event in report.events].count("subscriber_failed") == 1


def test_the_console_prints_events_and_a_table():
    robot, stream, table = NeverThere(), io.StringIO(), io.StringIO()
    with point_server(robot) as server, fast_link(server, robot) as link:
        report = episode(robot, link, ConsoleView(stream), max_seconds=0.3, task="reach").run()
    print_table([report], table)
    assert "connected: policy 'fake' revision 1" in stream.getvalue()
    for text in (stream.getvalue(), table.getvalue()):
        assert "reach" in text


def test_a_full_mailbox_refuses_without_waiting():
    release, handled = threading.Event(), []

    def handle(item):
        release.wait(10.0)
        handled.append(item)

    worker = Worker(handle, name="test", capacity=2)
    took = [worker.put(number) for number in range(6)]
    assert took.count(False) >= 3
    release.set()
    worker.finish()
    assert handled == [number for number, taken in enumerate(took) if taken]


def test_what_a_worker_raises_is_raised_to_who_asks_next():
    def handle(item):
        raise OSError("disk full")

    worker = Worker(handle, name="test", capacity=2)
    worker.put(1)
    with pytest.raises(OSError, match="disk full"):
        worker.finish()
