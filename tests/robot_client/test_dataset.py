"""LeRobot v3 datasets: what is written is read back, and a kill loses the open episode at most."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clients.errors import RoboserveError
from robot_client.dataset import DatasetReader, DatasetWriter

ROOT = Path(__file__).parent.parent.parent


def picture(number: int) -> np.ndarray:
    y, x = np.mgrid[0:32, 0:48]
    return np.stack([x * 5, y * 7, np.full_like(x, number * 20 % 256)], axis=2).astype(np.uint8)


def make(root: Path) -> DatasetWriter:
    return DatasetWriter.create(
        root,
        fps=20.0,
        cameras={"front": (32, 48)},
        state_names=("x", "y"),
        action_names=("dx", "dy", "grip"),
        robot_type="test",
    )


def write(writer: DatasetWriter, length: int, task: str) -> None:
    writer.begin()
    for frame in range(length):
        state = np.array([frame, length], np.float32)
        writer.add({"front": picture(frame)}, state, np.array([0.1 * frame, -1, 1], np.float32))
    writer.end(task=task)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    writer = make(folder)
    for length, task in ((5, "open"), (9, "close"), (3, "open")):
        write(writer, length, task)
    writer.close()
    return folder


def test_episodes_come_back_with_their_rows_frames_and_words(root: Path) -> None:
    reader = DatasetReader(root)
    assert [episode.length for episode in reader.episodes] == [5, 9, 3]
    assert [episode.tasks for episode in reader.episodes] == [("open",), ("close",), ("open",)]
    assert reader.frames == 17
    for episode in reader.episodes:
        columns = reader.columns(episode)
        np.testing.assert_array_equal(columns["observation.state"][:, 0], np.arange(episode.length))
        np.testing.assert_allclose(columns["action"][:, 0], 0.1 * np.arange(episode.length), atol=1e-6)
        np.testing.assert_allclose(columns["timestamp"], np.arange(episode.length) / 20, atol=1e-6)
        frames = list(reader.images(episode, "front"))
        assert len(frames) == episode.length
        for number, frame in enumerate(frames):
            assert frame.shape == (32, 48, 3)
            assert abs(float(frame[..., 2].mean()) - number * 20) < 8


def test_the_layout_is_lerobots(root: Path) -> None:
    info = json.loads((root / "meta" / "info.json").read_text("utf-8"))
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["fps"]) == (3, 17, 20)
    features = info["features"]
    assert features["observation.images.front"]["dtype"] == "video"
    assert features["observation.state"]["shape"] == [2]
    assert features["action"]["names"] == ["dx", "dy", "grip"]
    table = pq.read_table(root / "data" / "chunk-000" / "file-000.parquet")
    assert {"timestamp", "frame_index", "episode_index", "index", "task_index"} <= set(table.column_names)
    assert table.column("index").to_pylist() == list(range(17))
    assert (root / "meta" / "tasks.parquet").is_file()
    assert (root / "meta" / "stats.json").is_file()
    assert (root / "videos" / "observation.images.front" / "chunk-000" / "file-000.mp4").is_file()
    episodes = pq.read_table(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    starts = [row["videos/observation.images.front/from_timestamp"] for row in episodes]
    np.testing.assert_allclose(starts, [0, 5 / 20, 14 / 20], atol=1e-6)


def test_statistics_are_those_of_the_data(root: Path) -> None:
    stats = DatasetReader(root).stats["action"]
    values = np.concatenate([0.1 * np.arange(length) for length in (5, 9, 3)])
    assert stats["mean"][0] == pytest.approx(values.mean(), abs=1e-5)
    assert stats["std"][0] == pytest.approx(values.std(), abs=1e-4)
    assert stats["max"][0] == pytest.approx(values.max(), abs=1e-5)


def test_a_dataset_grows_after_it_was_closed_and_a_discarded_episode_leaves_nothing(root: Path) -> None:
    writer = DatasetWriter.resume(root)
    writer.begin()
    writer.add({"front": picture(0)}, np.zeros(2, np.float32), np.zeros(3, np.float32))
    writer.discard()
    write(writer, 4, "push")
    writer.close()
    reader = DatasetReader(root)
    assert [episode.length for episode in reader.episodes] == [5, 9, 3, 4]
    assert len(list(reader.images(reader.episodes[3], "front"))) == 4


def test_a_killed_writer_loses_the_open_episode_only(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, pathlib\n"
        "from tests.robot_client.test_dataset import make, write, picture\n"
        "import numpy as np\n"
        "writer = make(pathlib.Path(sys.argv[1]))\n"
        "write(writer, 6, 'open')\n"
        "writer.begin()\n"
        "for n in range(3): writer.add({'front': picture(n)}, np.zeros(2, np.float32), np.zeros(3, np.float32))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script, str(target)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    writer = DatasetWriter.resume(target)
    write(writer, 2, "close")
    writer.close()
    reader = DatasetReader(target)
    assert [episode.length for episode in reader.episodes] == [6, 2]
    assert len(list(reader.images(reader.episodes[1], "front"))) == 2


def test_damage_is_named(root: Path) -> None:
    (root / "videos" / "observation.images.front" / "chunk-000" / "file-000.mp4").unlink()
    reader = DatasetReader(root)
    with pytest.raises(RoboserveError, match=r"file-000\.mp4 is missing"):
        list(reader.images(reader.episodes[0], "front"))
    with pytest.raises(RoboserveError, match="'wrist' is not in the dataset"):
        list(reader.images(reader.episodes[0], "wrist"))
    (root / "meta" / "info.json").write_text("{", "utf-8")
    with pytest.raises(RoboserveError, match=r"info\.json"):
        DatasetReader(root)


def test_frames_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    writer = make(tmp_path / "set")
    writer.begin()
    with pytest.raises(RoboserveError):
        writer.add({"front": np.zeros((8, 8, 3), np.uint8)}, np.zeros(2, np.float32), np.zeros(3, np.float32))
    with pytest.raises(RoboserveError):
        writer.add({"front": picture(0)}, np.zeros(3, np.float32), np.zeros(3, np.float32))
    with pytest.raises(RoboserveError):
        writer.add({}, np.zeros(2, np.float32), np.zeros(3, np.float32))


def test_a_refused_frame_leaves_no_trace_in_the_other_cameras(tmp_path: Path) -> None:
    writer = DatasetWriter.create(
        tmp_path / "set",
        fps=20.0,
        cameras={"front": (32, 48), "wrist": (32, 48)},
        state_names=("x",),
        action_names=("dx",),
        robot_type="test",
    )
    writer.begin()
    one = np.zeros(1, np.float32)
    with pytest.raises(RoboserveError):
        writer.add({"front": picture(9), "wrist": picture(9)[:8]}, one, one)
    for number in range(2):
        writer.add({"front": picture(number), "wrist": picture(number)}, one, one)
    writer.end(task="open")
    reader = DatasetReader(tmp_path / "set")
    front, wrist = (list(reader.images(reader.episodes[0], camera)) for camera in ("front", "wrist"))
    assert len(front) == len(wrist) == 2
    for number, (one_camera, other) in enumerate(zip(front, wrist, strict=True)):
        for frame in (one_camera, other):
            assert abs(float(frame[..., 2].mean()) - number * 20) < 8


@pytest.mark.parametrize("lengths", [[], [5]], ids=["first episode", "later episode"])
@pytest.mark.parametrize("goes_on", ["in the same process", "resumed"])
def test_an_episode_whose_end_fails_at_any_file_damages_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_on: str, lengths: list[int]
) -> None:
    for failing in range(20):
        root = tmp_path / str(failing)
        writer = make(root)
        for length in lengths:
            write(writer, length, "open")
        replace, calls = Path.replace, []

        def fail(self: Path, target: Path, *, at: int = failing, replace=replace, calls=calls) -> Path:
            calls.append(self)
            if len(calls) > at:
                raise OSError("disk full")
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", fail)
            try:
                write(writer, 7, "close")
            except OSError:
                survived = False
            else:
                survived = True
        if goes_on == "resumed":
            writer = DatasetWriter.resume(root)
        write(writer, 3, "push")
        writer.close()
        committed = len(DatasetReader(root).episodes) == len(lengths) + 2
        check_consistent(root, [*lengths, *([7] if committed else []), 3])
        if survived:
            assert committed
            return
    pytest.fail("an episode's end replaced more than 20 files")


def check_consistent(root: Path, lengths: list[int]) -> None:
    reader = DatasetReader(root)
    assert [episode.length for episode in reader.episodes] == lengths
    for episode in reader.episodes:
        columns = reader.columns(episode)
        np.testing.assert_array_equal(columns["index"], episode.start + np.arange(episode.length))
        np.testing.assert_array_equal(columns["observation.state"][:, 1], np.full(episode.length, episode.length))
        for number, frame in enumerate(reader.images(episode, "front")):
            assert abs(float(frame[..., 2].mean()) - number * 20) < 8
    files = sorted((root / "data").rglob("*.parquet"))
    indices = np.concatenate([pq.read_table(path).column("index").to_numpy() for path in files])
    np.testing.assert_array_equal(indices, np.arange(sum(lengths)))
    info = json.loads((root / "meta" / "info.json").read_text("utf-8"))
    assert (info["total_episodes"], info["total_frames"]) == (len(lengths), sum(lengths))
    values = np.concatenate([0.1 * np.arange(length) for length in lengths])
    assert reader.stats["action"]["count"] == [sum(lengths)]
    assert reader.stats["action"]["mean"][0] == pytest.approx(values.mean(), abs=1e-5)
    assert reader.stats["action"]["std"][0] == pytest.approx(values.std(), abs=1e-4)


@pytest.mark.parametrize(
    "path", ["/etc/file-{file_index:03d}", "../other/{chunk_index}", "{nobody}", "{chunk_index.x}"]
)
@pytest.mark.parametrize("key", ["data_path", "video_path"])
def test_a_dataset_cannot_name_files_outside_of_itself(root: Path, key: str, path: str) -> None:
    info = json.loads((root / "meta" / "info.json").read_text("utf-8"))
    (root / "meta" / "info.json").write_text(json.dumps(info | {key: path}), "utf-8")
    reader = DatasetReader(root)
    with pytest.raises(RoboserveError, match=key):
        reader.files()
    with pytest.raises(RoboserveError, match=key):
        _ = reader.columns(reader.episodes[0]) if key == "data_path" else reader.images(reader.episodes[0], "front")


def test_a_video_that_is_a_list_of_other_files_is_not_followed(root: Path) -> None:
    reader = DatasetReader(root)
    path = root / reader.video(reader.episodes[0], "front")[0]
    path.rename(path.with_name("real.mp4"))
    path.write_text("ffconcat version 1.0\nfile real.mp4\n", "utf-8")
    with pytest.raises(RoboserveError, match="cannot be read"):
        next(reader.images(reader.episodes[0], "front"))
