"""The report: one file over a run folder, whatever happened in it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from roboserve.report import write_report
from roboserve.report.episodes import read_episodes, rows
from robot_client.video import VideoEncoder

if TYPE_CHECKING:
    from pathlib import Path


def reward(*progress: float, fault: str | None = None) -> dict:
    values = [
        {"tick": 2 * place, "time_s": place / 10, "progress": value, "success": value / 2, "latency_ms": 9.0}
        for place, value in enumerate(progress)
    ]
    model = {"model": "robometer", "revision": "3", "content_hash": "0"} if progress else {"model": None}
    return {**model, "rate_hz": 10.0, "values": values, "offered": 3, "dropped": 0, "fault": fault}


def episode(
    folder: Path,
    task: str,
    *,
    success: bool,
    latency_ms: float,
    events: list[dict] | None = None,
    judged: dict | None = None,
) -> None:
    folder.mkdir(parents=True)
    ticks = [
        {
            "tick": number,
            "scheduled_s": number / 20,
            "actual_s": number / 20,
            "lateness_ms": 0.1,
            "source": "hold" if number == 0 else "chunk",
            "age_ms": None if number == 0 else 50.0 * number,
        }
        for number in range(5)
    ]
    request = {
        "latency_ms": latency_ms,
        "round_trip_ms": latency_ms - 5,
        "encode_ms": 1.0,
        "batch_size": 2,
        "timings": {"queue": 1.0, "batch_wait": 0.5, "decode": 0.5, "forward": 10.0, "encode": 0.1, "total": 12.5},
    }
    refused = {**request, "round_trip_ms": None, "batch_size": None, "timings": {}}
    summary = {
        "task": task,
        "instruction": f"do <b>{task}</b>",
        "seed": 7,
        "success": success,
        "ended": "finished" if success else "max_seconds",
        "seconds": 0.25,
        "ticks": 5,
        "control_hz": 20.0,
        "rate_hz": 20.0,
        "within_2ms": 1.0,
        "held_ticks": 1,
        "holds": {"waiting": 1},
        "events": [{"kind": "connected", "time_s": -1.0, "message": "connected", "code": None}, *(events or [])],
        "model": "metaworld",
        "revisions": ["1"],
    }
    (folder / "ticks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ticks), "utf-8")
    (folder / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (request, refused)), "utf-8")
    (folder / "episode.json").write_text(json.dumps(summary), "utf-8")
    if judged is not None:
        (folder / "reward.json").write_text(json.dumps(judged), "utf-8")
    video = VideoEncoder(folder / "video.mp4", fps=20, size=(32, 32))
    for _ in range(5):
        video.add(np.full((32, 32, 3), 128, np.uint8))
    video.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "demo.json").write_text(
        json.dumps({"started_unix": 0, "seconds": 9.0, "command": "roboserve demo"}), "utf-8"
    )
    lost = {"kind": "lost", "time_s": 1.5, "message": "the server <closed> the connection", "code": "unavailable"}
    folder = tmp_path / "episodes"
    episode(folder / "open" / "0000", "open", success=True, latency_ms=20.0, judged=reward(0.1, 0.5, 0.9))
    episode(folder / "open" / "0001", "open", success=True, latency_ms=40.0, judged=reward(0.2, 0.7))
    gone = reward(fault="unavailable: the server <left>")
    episode(folder / "shut" / "0000", "shut", success=False, latency_ms=60.0, events=[lost], judged=gone)
    return tmp_path


def test_rows_add_up(run: Path) -> None:
    first, second, total = rows(read_episodes(run))
    assert (first.task, first.successes, first.episodes, first.p50_ms, first.batch) == ("open", 2, 2, 30.0, 2.0)
    assert (second.successes, second.events) == (0, 1)
    assert (first.progress, second.progress, total.progress) == (pytest.approx(0.8), None, pytest.approx(0.8))
    assert (total.successes, total.episodes, total.holds, total.events) == (2, 3, 3, 1)


def test_the_page_stands_alone_and_tells_all(run: Path) -> None:
    page = write_report(run).read_text("utf-8")
    assert "2 of 3 episodes succeeded" in page
    assert page.count("data:video/mp4;base64,") == 2  # one success of each task, and every failure
    assert page.count("<svg") == 4 + 1 + 1  # charts; the curve of the film that has one; the curves of its task
    assert "the server &lt;closed&gt; the connection" in page
    assert "do &lt;b&gt;open&lt;/b&gt;" in page
    for outside in ('src="http', 'href="http', "<script src", "<link"):
        assert outside not in page


def test_the_page_shows_each_episode_as_the_reward_model_saw_it(run: Path) -> None:
    page = write_report(run).read_text("utf-8")
    (values,) = re.findall(r'data-values="(.*?)"', page)
    assert json.loads(values) == [[0.0, 0.1, 0.05], [0.1, 0.5, 0.25], [0.2, 0.9, 0.45]]
    assert len(re.findall(r'<polyline class="won"', page)) == 2
    assert "robometer, revision 3" in page
    assert "1 of 3 episodes have no whole reward curve: unavailable: the server &lt;left&gt;" in page
    assert "1 frames without a value" not in page, "the film of the episode whose frames were all judged"


def test_a_predicted_path_lies_over_its_film(run: Path) -> None:
    path = {"points": [[0.1, 0.2], [0.5, 0.5], [0.9, 0.4]], "gripper_open": [True, True, False]}
    told = {**path, "model": "planner", "revision": "4", "issues": []}
    (run / "episodes" / "open" / "0000" / "path.json").write_text(json.dumps(told), "utf-8")
    lost = {"camera": "front", "instruction": "shut", "fault": "unavailable: nobody <there>"}
    (run / "episodes" / "shut" / "0000" / "path.json").write_text(json.dumps(lost), "utf-8")
    page = write_report(run).read_text("utf-8")
    [drawn] = re.findall(r'<svg class="plan".*?</svg>', page)
    assert drawn.count("<line") == 2
    assert re.findall(r'<circle class="(\w+)" cx="([\d.]+)" cy="([\d.]+)"', drawn) == [
        ("open", "10.0", "20.0"),
        ("closed", "90.0", "40.0"),
    ]
    assert "planner, revision 4" in page
    assert "nobody &lt;there&gt;" in page


def test_without_a_reward_model_the_page_says_nothing_of_one(run: Path) -> None:
    for path in run.glob("episodes/*/*/reward.json"):
        path.unlink()
    page = write_report(run).read_text("utf-8")
    assert "reward model" not in page.partition("<script>")[0]


def test_a_run_without_an_episode_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps({"started_unix": 0, "seconds": 1.0, "command": "x"}), "utf-8")
    assert "0 of 0 episodes" in write_report(tmp_path).read_text("utf-8")
