"""Decoded frames are kept by what their datasets hold, not by where these lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from clients.errors import RoboserveError
from finetune.bc.frames import Frames, load_frames
from robot_client.dataset import DatasetWriter

LENGTH, SIDE = 4, 32


def write(root: Path, *, level: int = 50, speed: float = 0.0, task: str = "lift it") -> Path:
    names = {"state_names": ["x"], "action_names": ["x"], "robot_type": "none"}
    writer = DatasetWriter.create(root, fps=10, cameras={"front": (SIDE, SIDE)}, **names)
    writer.begin()
    for _ in range(LENGTH):
        image = np.full((SIDE, SIDE, 3), level, np.uint8)
        writer.add({"front": image}, np.zeros(1, np.float32), np.full(1, speed, np.float32))
    writer.end(task=task)
    writer.close()
    return root


class Loader:
    """Loads through one cache, and counts the episodes that were decoded."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.decoded = cache, 0

    def __call__(self, *folders: Path) -> Frames:
        def count(_done: int, _total: int) -> None:
            self.decoded += 1

        return load_frames(folders, SIDE, self.cache, progress=count)


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    return Loader(tmp_path / "cache")


def brightness(frames: Frames) -> float:
    return float(frames.images.mean())


def test_what_has_not_changed_is_decoded_once(tmp_path: Path, load: Loader) -> None:
    first = load(write(tmp_path / "set"))
    again = load(tmp_path / "set")
    moved = load(Path(shutil.copytree(tmp_path / "set", tmp_path / "elsewhere")))
    assert load.decoded == 1
    for frames in (again, moved):
        np.testing.assert_array_equal(frames.images, first.images)


@pytest.mark.parametrize("change", [{"level": 200}, {"speed": 1.0}, {"task": "drop it"}])
def test_another_dataset_at_the_same_place_is_not_taken_for_the_old_one(
    tmp_path: Path, load: Loader, change: dict
) -> None:
    load(write(tmp_path / "set"))
    shutil.rmtree(tmp_path / "set")
    found = load(write(tmp_path / "set", **change))
    assert load.decoded == 2
    assert brightness(found) == pytest.approx(change.get("level", 50), abs=4)
    np.testing.assert_array_equal(found.action, np.full((LENGTH, 1), change.get("speed", 0.0)))
    assert found.instructions == (change.get("task", "lift it"),)


def test_a_video_that_was_replaced_is_seen_though_no_table_tells(tmp_path: Path, load: Loader) -> None:
    old, new = write(tmp_path / "old"), write(tmp_path / "new", level=200)
    before = load(old)
    for path in (new / "videos").rglob("*.mp4"):
        shutil.copy2(path, old / path.relative_to(new))
    assert brightness(load(old)) == pytest.approx(200, abs=4)
    assert brightness(before) == pytest.approx(50, abs=4), "whoever loaded it before still has what was loaded"


def test_the_order_of_datasets_counts_and_a_file_that_is_missing_is_named(tmp_path: Path, load: Loader) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two", level=200)
    assert float(load(one, two).images[0].mean()) < float(load(two, one).images[0].mean())
    (path,) = (one / "videos").rglob("*.mp4")
    path.unlink()
    with pytest.raises(RoboserveError, match=r"file-000\.mp4 is missing"):
        load(one)
