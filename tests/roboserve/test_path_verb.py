"""`roboserve path`: a path through a picture, drawn, by a served model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clients.errors import RoboserveError
from models.hamster.drawing import DEMO, overlay
from models.hamster.path import Path as GripperPath
from roboserve.cli import app
from roboserve.model_choice import PATH, chosen_model
from tests.serving.path_running import RunningPath
from tests.serving.paths import ANSWER, SayingEngine, path_server

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_platform(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ROBOSERVE_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)


@pytest.fixture
def image(tmp_path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def path(image: Path, *arguments: str, task: str = "close the drawer") -> Any:
    return CliRunner().invoke(app, ["path", str(image), "--task", task, *arguments])


def test_a_served_models_path_is_drawn_and_told(image: Path, pixels: np.ndarray, tmp_path: Path):
    out = tmp_path / "drawn.png"
    with RunningPath.of(path_server(SayingEngine())) as running:
        done = path(image, "--out", str(out), "--server", running.url)
        assert done.exit_code == 0, done.output
        assert "0.750" in done.output
        expected = overlay(
            pixels, GripperPath(points=[[0.25, 0.5], [0.75, 0.2]], gripper_open=[False, True]), style=DEMO
        )
        np.testing.assert_array_equal(np.asarray(Image.open(out)), expected)
        told = json.loads(path(image, "--out", str(out), "--server", running.url, "--json", "--audit").stdout)
        assert told["points"] == [[0.25, 0.5], [0.75, 0.2]]
        assert told["gripper_open"] == [False, True]
        assert told["answer"] == ANSWER
        running.server.engine.says = ["nothing"]
        failed = path(image, "--out", str(out), "--server", running.url)
        assert failed.exit_code == 1
        assert "no_answer" in failed.output


def test_what_is_no_picture_or_no_task_is_refused(image: Path, tmp_path: Path):
    out = tmp_path / "drawn.png"
    broken = tmp_path / "notes.png"
    broken.write_text("not a picture", "utf-8")
    for file, task, message in ((broken, "wave", "neither JPEG nor PNG"), (image, "  ", "task: empty")):
        done = path(file, "--out", str(out), "--server", "ws://127.0.0.1:9/path/x", task=task)
        assert done.exit_code == 1
        assert message in " ".join(done.output.split())
    assert not out.exists()


def test_which_model_is_asked():
    assert chosen_model(None, None, PATH) == "zoo:metaworld-vlm"
    assert chosen_model("zoo:other", None, PATH) == "zoo:other"
    assert chosen_model(None, "ws://127.0.0.1:9", PATH) == "ws://127.0.0.1:9/path/metaworld"
    assert chosen_model("mine", "ws://127.0.0.1:9", PATH) == "ws://127.0.0.1:9/path/mine"
    assert chosen_model(None, "ws://127.0.0.1:9/path/theirs", PATH) == "ws://127.0.0.1:9/path/theirs"
    with pytest.raises(RoboserveError, match="no platform runs"):
        chosen_model("mine", None, PATH)
