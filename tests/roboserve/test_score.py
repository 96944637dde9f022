"""`roboserve score`: values, a plot and a film of one video."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clients.errors import RoboserveError
from roboserve import score as verb
from roboserve.cli import app
from roboserve.film import short_title
from roboserve.model_choice import REWARD, chosen_model
from robot_client.video import VideoEncoder
from serving.clips import ClipLimits
from tests.serving.reward_running import RunningReward

if TYPE_CHECKING:
    from pathlib import Path

BRIGHTNESS = "models.rewards.scripted:BrightnessReward"
LEVELS = np.linspace(20, 220, 12).round().astype(int)


@pytest.fixture(autouse=True)
def no_platform(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ROBOSERVE_STATE_DIR", str(tmp_path / "state"))


def write_video(path: Path, *, width: int = 48) -> Path:
    encoder = VideoEncoder(path, fps=10, size=(32, width))
    for level in LEVELS:
        encoder.add(np.full((32, width, 3), level, np.uint8))
    encoder.close()
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4")


def score(video: Path, out: Path, *arguments: str, task: str = "make it brighter") -> Any:
    return CliRunner().invoke(app, ["score", str(video), "--task", task, "--out", str(out), *arguments])


def film(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_values_plot_and_film(video: Path, tmp_path: Path):
    done = score(video, tmp_path / "out", "--model", BRIGHTNESS)
    assert done.exit_code == 0, done.output
    assert "12 frames at 10 a second, prefix" in " ".join(done.output.split())
    found = json.loads((tmp_path / "out/values.json").read_text("utf-8"))
    assert [value["progress"] for value in found["values"]] == pytest.approx(LEVELS / 255, abs=0.02)
    assert [value["seconds"] for value in found["values"]] == pytest.approx(np.arange(12) / 10)
    assert found["model"]["id"] == "brightness"
    with Image.open(tmp_path / "out/curve.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24)) > 10
    frames = film(tmp_path / "out/film.mp4")
    assert len(frames) == len(LEVELS)
    left = frames[-1].shape[0] * 48 // 32
    assert [frame[:, 20 : left - 20].mean() for frame in frames] == pytest.approx(LEVELS, abs=4), "the clip itself"
    painted = [float((frame[:, left:].astype(int).max(axis=2) < 200).mean()) for frame in frames]
    assert painted[-1] > painted[0], "the curve grows"


def test_fps_takes_fewer_frames_at_their_times(video: Path, tmp_path: Path):
    done = score(video, tmp_path / "out", "--model", BRIGHTNESS, "--fps", "5")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out/values.json").read_text("utf-8"))
    assert [value["progress"] for value in found["values"]] == pytest.approx(LEVELS[::2] / 255, abs=0.02)
    assert [value["seconds"] for value in found["values"]] == pytest.approx(np.arange(6) / 5)


@pytest.mark.parametrize(("mode", "count"), [("single_pass", 8), ("final", 1)])
def test_modes(video: Path, tmp_path: Path, mode: str, count: int):
    done = score(video, tmp_path / "out", "--model", BRIGHTNESS, "--mode", mode)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out/values.json").read_text("utf-8"))["values"]
    assert len(found) == count
    assert found[-1]["frame"] == len(LEVELS) - 1
    assert len(film(tmp_path / "out/film.mp4")) == len(LEVELS)


def test_a_served_model_gives_the_values_it_gives_here(tmp_path: Path):
    video = write_video(tmp_path / "square.mp4", width=32)
    with RunningReward() as running:
        done = score(video, tmp_path / "served", "--server", running.url)
    assert done.exit_code == 0, done.output
    score(video, tmp_path / "local", "--model", BRIGHTNESS)
    there, here = (
        json.loads((tmp_path / name / "values.json").read_text("utf-8"))["values"] for name in ("served", "local")
    )
    assert there == here


def test_which_model_is_asked(tmp_path: Path):
    assert chosen_model(None, None, REWARD) == "zoo:metaworld-robometer"
    assert chosen_model("zoo:other", None, REWARD) == "zoo:other"
    assert chosen_model(None, "ws://127.0.0.1:9", REWARD) == "ws://127.0.0.1:9/reward/robometer"
    assert chosen_model("mine", "ws://127.0.0.1:9", REWARD) == "ws://127.0.0.1:9/reward/mine"
    assert chosen_model(None, "ws://127.0.0.1:9/reward/theirs", REWARD) == "ws://127.0.0.1:9/reward/theirs"
    with pytest.raises(RoboserveError, match="no platform runs"):
        chosen_model("mine", None, REWARD)


def test_what_is_no_video_or_no_task_is_refused(video: Path, tmp_path: Path):
    broken = tmp_path / "notes.mp4"
    broken.write_text("not a film", "utf-8")
    for file, task, message in (
        (broken, "wave", "is no mp4 video"),
        (video, "  ", "task: empty"),
        (video, "x" * 600, "instruction: 600 characters"),
    ):
        done = score(file, tmp_path / "out", "--model", BRIGHTNESS, task=task)
        assert done.exit_code == 1
        assert message in " ".join(done.output.split())
    broken.write_bytes(b"")
    assert "is no mp4 video" in " ".join(score(broken, tmp_path / "out", "--model", BRIGHTNESS).output.split())
    assert not (tmp_path / "out").exists()


def test_a_video_that_is_too_long_is_refused_whole(video: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(verb, "LIMITS", ClipLimits(frames=10, pixels=10**6))
    done = score(video, tmp_path / "out", "--model", BRIGHTNESS)
    assert done.exit_code == 1
    assert "12 frames, limit 10; a lower --fps" in " ".join(done.output.split())
    assert score(video, tmp_path / "out", "--model", BRIGHTNESS, "--fps", "5").exit_code == 0


def test_long_tasks_are_cut_in_the_picture():
    lines = short_title("put the cup " * 40).split("\n")
    assert len(lines) == 2
    assert lines[-1].endswith("...")
