"""`roboserve relabel`: whole runs on Ray Data, killed and resumed ones, and what one worker does with one episode."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from clients.errors import RoboserveError
from finetune.relabel import job as relabel
from finetune.relabel import terminal
from finetune.relabel.cache import content_key
from finetune.relabel.config import Plan, RelabelConfig
from finetune.relabel.frames import FrameStore
from finetune.relabel.local import LocalLabeller, load_model
from finetune.relabel.merge import merge
from finetune.relabel.parts import Parts
from finetune.relabel.sources import generic_text, open_source
from finetune.relabel.worker import EpisodeWorker, Job
from models.rewards.frames import FramePolicy
from models.rewards.scripted import BrightnessReward
from robot_client.dataset import DatasetReader, DatasetWriter
from robot_client.video import VideoEncoder

ROOT = Path(__file__).parent.parent.parent
MODEL = "models.rewards.scripted:BrightnessReward"
EPISODES, LENGTH = 6, 12


def level(episode: int, frame: int, camera: int = 0) -> int:
    """Grey value of a frame: some episodes rise, some fall."""
    return (200 - 14 * frame if episode % 2 else 20 + 16 * frame) + episode + 5 * camera


def add_episode(writer: DatasetWriter, episode: int, task: str, length: int = LENGTH) -> None:
    writer.begin()
    for frame in range(length):
        images = {
            name: np.full((32, 32, 3), level(episode, frame, at), np.uint8)
            for at, name in enumerate(writer.info.cameras)
        }
        writer.add(images, np.zeros(1, np.float32), np.zeros(1, np.float32))
    writer.end(task=task)


def make_dataset(
    root: Path, *, cameras: tuple[str, ...] = ("front",), episodes: int = EPISODES, **options: Any
) -> Path:
    sizes = dict.fromkeys(cameras, (32, 32))
    names = {"state_names": ["x"], "action_names": ["x"], "robot_type": "none"}
    writer = DatasetWriter.create(root, fps=10, cameras=sizes, **names, **options)
    for episode in range(episodes):
        add_episode(writer, episode, f"push button {episode}")
    writer.close()
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def ray_address() -> Any:
    """One Ray for all runs: those in this process, and those in processes of their own."""
    import ray

    context = ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def unbroken(dataset: Path, ray_address: str, tmp_path_factory) -> tuple[RelabelConfig, relabel.RelabelReport]:
    folder = tmp_path_factory.mktemp("unbroken")
    config = RelabelConfig(dataset=dataset, model=MODEL, out=folder / "labels.parquet", cache=folder / "cache")
    return config, relabel.run(config)


# One worker, without Ray.


def settled(config: RelabelConfig, folder: Path, **plan: Any) -> Job:
    facts = LocalLabeller(BrightnessReward(BrightnessReward.Config())).facts
    settings = {"mode": config.mode, "frame_policy": config.frame_policy or facts.frame_policy, "every": config.every}
    (folder / "parts").mkdir(exist_ok=True)
    config = replace(config, cache=folder / "cache")
    return Job(config=config, plan=Plan(**{**settings, **plan}), facts=facts, parts=folder / "parts")


def rows_of(job: Job, item: Any) -> dict[str, list[Any]]:
    outcome = EpisodeWorker(job).process(item)
    assert outcome.error == ""
    return parquet.read_table(job.parts / outcome.part).to_pydict()


def decoded(dataset: Path, episode: int, camera: str = "front") -> np.ndarray:
    """Brightness of the frames as the codec left them."""
    reader = DatasetReader(dataset)
    images = reader.images(reader.episodes[episode], camera)
    return np.array([np.float32(image.mean() / 255.0) for image in images], np.float32)


def test_every_frame_has_its_value_and_the_file_joins_with_the_dataset(dataset, unbroken) -> None:
    config, report = unbroken
    table = parquet.read_table(config.out)
    assert (report.labelled, report.cached, report.kept, report.failed) == (EPISODES, 0, 0, {})
    assert report.asked == report.rows == table.num_rows == EPISODES * LENGTH
    reader, found = DatasetReader(dataset), table.to_pydict()
    wanted: dict[str, list[Any]] = {"index": [], "episode_index": [], "frame_index": []}
    for episode in reader.episodes:
        for name, column in reader.columns(episode).items():
            if name in wanted:
                wanted[name] += column.tolist()
    assert {name: found[name] for name in wanted} == wanted
    brightness = np.concatenate([decoded(dataset, episode) for episode in range(EPISODES)])
    np.testing.assert_allclose(found["progress"], brightness, atol=1e-6)
    np.testing.assert_allclose(found["progress"], [level(e, f) / 255 for e in range(6) for f in range(12)], atol=0.02)
    assert found["progress_sparse"] == found["progress"]
    assert found["success"] == (brightness > 0.5).astype(float).tolist()
    said = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert said["reward_model_path"] == said["model"] == "brightness"
    assert (said["content_hash"], said["revision"], said["architecture"]) == ("0" * 64, "1", "scripted")
    assert (said["dtype"], said["prompt_version"], said["every"]) == ("float32", "none", "1")
    assert (said["mode"], said["frame_policy"]) == ("prefix", "linspace-8")
    assert json.loads(relabel.report_path(config.out).read_text("utf-8"))["asked"] == EPISODES * LENGTH
    assert list(config.out.parent.glob(".*")) == [], "nothing unfinished is left"


def test_a_second_run_asks_the_model_for_nothing_and_writes_the_same_bytes(unbroken, tmp_path) -> None:
    config, _ = unbroken
    again = replace(config, out=tmp_path / "again.parquet", model_config={"poison": 0}, workers=1)
    report = relabel.run(again)
    assert (report.asked, report.cached, report.labelled) == (0, EPISODES, 0)
    assert (tmp_path / "again.parquet").read_bytes() == config.out.read_bytes()


def test_killed_twice_and_resumed_the_file_is_that_of_an_unbroken_run(dataset, unbroken, ray_address, tmp_path) -> None:
    config, _ = unbroken
    out = tmp_path / "labels.parquet"
    command = [sys.executable, "-m", "finetune.relabel", str(dataset), "--out", str(out), "--model", MODEL]
    command += ["--cache", str(tmp_path / "cache"), "--workers", "1"]
    slow = ["--model-config", json.dumps({"seconds_per_frame": 0.015})]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_ADDRESS": ray_address}
    parts = tmp_path / ".labels.parquet.parts"
    finished: set[Path] = set()
    for wanted in (1, 3):
        process = subprocess.Popen([*command, *slow], env=environment, cwd=ROOT, stdout=subprocess.PIPE)
        while len(list(parts.glob("*.parquet"))) < wanted and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        said, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
        assert not out.exists()
        assert finished <= set(parts.glob("*.parquet")), "what was finished stays"
        finished = set(parts.glob("*.parquet"))
    assert len(finished) < EPISODES
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert out.read_bytes() == config.out.read_bytes()
    report = json.loads(relabel.report_path(out).read_text("utf-8"))
    assert report["kept"] >= len(finished)
    assert report["kept"] + report["cached"] + report["labelled"] == EPISODES
    assert report["asked"] == LENGTH * report["labelled"]
    assert not parts.exists()


def test_a_folder_of_videos_with_a_damaged_one_and_one_generic_text(ray_address, tmp_path, capsys) -> None:
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    for at, name in enumerate(("a.mp4", "more/b.mp4", "z.mp4")):
        encoder = VideoEncoder(folder / name, fps=5, size=(32, 32))
        for frame in range(5 + at):
            encoder.add(np.full((32, 32, 3), level(at, frame), np.uint8))
        encoder.close()
        (folder / name).with_suffix(".txt").write_text("do the task\n", "utf-8")
    (folder / "more" / "b.mp4").write_bytes(b"no video at all")
    config = RelabelConfig(dataset=folder, model=MODEL, cache=tmp_path / "cache", workers=1)
    assert terminal.run(config) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "WARNING: all 3 episodes share the instruction 'do the task'" in said
    out = folder / "brightness_progress.parquet"
    report = json.loads(relabel.report_path(out).read_text("utf-8"))
    assert list(report["failed"]) == ["1"]
    assert "b.mp4" in report["failed"]["1"]
    assert report["warnings"]
    found = parquet.read_table(out)
    assert found.column("episode_index").to_pylist() == [0] * 5 + [2] * 7
    assert found.column("frame_index").to_pylist() == [*range(5), *range(7)]
    assert found.column("index").to_pylist() == list(range(12))
    wanted = [level(0, frame) / 255 for frame in range(5)] + [level(2, frame) / 255 for frame in range(7)]
    np.testing.assert_allclose(found.column("progress").to_numpy(), wanted, atol=0.02)
    assert json.loads(found.schema.metadata[b"episode_files"]) == ["a.mp4", "more/b.mp4", "z.mp4"]


def test_every_third_frame_and_a_line_between(dataset, tmp_path) -> None:
    config = RelabelConfig(dataset=dataset, model=MODEL, every=3)
    found = rows_of(settled(config, tmp_path), open_source(dataset).items[1])
    asked = [0, 3, 6, 9, 11]
    assert [frame for frame, value in enumerate(found["progress"]) if value is not None] == asked
    assert [frame for frame, value in enumerate(found["success"]) if value is not None] == asked
    brightness = decoded(dataset, 1)
    np.testing.assert_allclose([found["progress"][frame] for frame in asked], brightness[asked], atol=1e-6)
    sparse = found["progress_sparse"]
    assert sparse[3] == found["progress"][3]
    assert sparse[4] == pytest.approx((2 * sparse[3] + sparse[6]) / 3, abs=1e-6)
    assert sparse[10] == pytest.approx((sparse[9] + sparse[11]) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("mode", "policy", "asked"),
    [
        ("single_pass", "linspace-4", [0, 4, 7, 11]),
        ("single_pass", "linspace-16-pad", list(range(12))),
        ("final", "linspace-8", [11]),
    ],
)
def test_modes_label_the_frames_that_they_show(dataset, tmp_path, mode, policy, asked) -> None:
    config = RelabelConfig(dataset=dataset, model=MODEL, mode=mode, frame_policy=policy)
    found = rows_of(settled(config, tmp_path), open_source(dataset).items[0])
    assert [frame for frame, value in enumerate(found["progress"]) if value is not None] == asked
    np.testing.assert_allclose([found["progress"][f] for f in asked], decoded(dataset, 0)[asked], atol=1e-6)
    assert None not in found["progress_sparse"]


def test_several_cameras_give_their_mean_and_their_own_columns(tmp_path) -> None:
    root = make_dataset(tmp_path / "two", cameras=("front", "wrist"), episodes=1)
    with pytest.raises(RoboserveError, match="front, wrist"):
        open_source(root)
    source = open_source(root, cameras=("front", "observation.images.wrist"))
    config = RelabelConfig(dataset=root, model=MODEL, cameras=source.cameras)
    found = rows_of(settled(config, tmp_path), source.items[0])
    front, wrist = decoded(root, 0, "front"), decoded(root, 0, "wrist")
    np.testing.assert_allclose(found["progress.front"], front, atol=1e-6)
    np.testing.assert_allclose(found["progress.wrist"], wrist, atol=1e-6)
    np.testing.assert_allclose(found["progress"], (front + wrist) / 2, atol=1e-6)
    np.testing.assert_allclose(found["progress_min"], np.minimum(front, wrist), atol=1e-6)
    np.testing.assert_allclose(found["progress_max"], np.maximum(front, wrist), atol=1e-6)


def test_a_damaged_episode_fails_alone(tmp_path) -> None:
    root = make_dataset(tmp_path / "set", episodes=3, file_megabytes=1e-6)
    videos = sorted(root.glob("videos/*/*/*.mp4"))
    assert len(videos) == 3
    videos[1].write_bytes(videos[1].read_bytes()[:700])
    job = settled(RelabelConfig(dataset=root, model=MODEL), tmp_path)
    worker = EpisodeWorker(job)
    outcomes = [worker.process(item) for item in open_source(root).items]
    assert [outcome.status for outcome in outcomes] == ["labelled", "failed", "labelled"]
    assert videos[1].name in outcomes[1].error


def test_a_model_that_raises_on_one_episode_costs_that_one(dataset, tmp_path) -> None:
    config = RelabelConfig(dataset=dataset, model=MODEL, model_config={"poison": 200})
    worker = EpisodeWorker(settled(config, tmp_path))
    outcomes = [worker.process(item) for item in open_source(dataset).items]
    reader = DatasetReader(dataset)
    reddest = [max(image[..., 0].max() for image in reader.images(it, "front")) for it in reader.episodes]
    assert [outcome.status == "failed" for outcome in outcomes] == [red >= 200 for red in reddest]
    assert {outcome.status for outcome in outcomes} == {"failed", "labelled"}


def test_an_episode_that_kills_its_worker_again_and_again_is_given_up(dataset, tmp_path) -> None:
    job = settled(RelabelConfig(dataset=dataset, model=MODEL), tmp_path)
    item, parts = open_source(dataset).items[0], Parts(job.parts)
    parts.attempt(item.index)
    parts.attempt(item.index)
    outcome = EpisodeWorker(job).process(item)
    assert (outcome.status, "died" in outcome.error) == ("failed", True)
    with parts.owned():
        assert EpisodeWorker(job).process(item).status == "labelled", "a new run tries anew"


def test_a_damaged_part_or_cache_entry_is_made_anew(dataset, tmp_path) -> None:
    job, item = settled(RelabelConfig(dataset=dataset, model=MODEL), tmp_path), open_source(dataset).items[0]
    first = EpisodeWorker(job).process(item)
    whole = (job.parts / first.part).read_bytes()
    assert EpisodeWorker(job).process(item).status == "kept"
    (job.parts / first.part).write_bytes(whole[:100])
    assert EpisodeWorker(job).process(item).status == "cached"
    assert (job.parts / first.part).read_bytes() == whole
    (entry,) = job.config.cache.rglob("*.safetensors")
    entry.write_bytes(b"\0" * 9)
    (job.parts / first.part).unlink()
    assert EpisodeWorker(job).process(item).status == "labelled"
    assert (job.parts / first.part).read_bytes() == whole


def test_two_jobs_cannot_write_one_file(tmp_path) -> None:
    with Parts(tmp_path).owned(), pytest.raises(RoboserveError, match="another job"), Parts(tmp_path).owned():
        pytest.fail("both have it")


def test_a_label_is_found_again_by_all_that_it_depends_on(dataset, tmp_path) -> None:
    facts = settled(RelabelConfig(dataset=dataset, model=MODEL), tmp_path).facts
    view = open_source(dataset).items[2].views[0]
    plan = Plan(mode="prefix", frame_policy="linspace-8")
    same = {"facts": facts, "plan": plan, "instruction": "push", "camera": "front", "frames": LENGTH}
    same["video"] = view.digest(LENGTH)
    keys = [content_key(**same)]
    keys += [
        content_key(**{**same, **change})
        for change in (
            {"instruction": "pull"},
            {"camera": "wrist"},
            {"plan": replace(plan, every=2)},
            {"plan": replace(plan, mode="final")},
            {"plan": replace(plan, frame_policy="linspace-4")},
            {"facts": replace(facts, dtype="bfloat16")},
            {"facts": replace(facts, content_hash="1" * 64)},
            {"facts": replace(facts, prompt_version="2")},
            {"video": open_source(dataset).items[3].views[0].digest(LENGTH)},
        )
    ]
    assert len(set(keys)) == len(keys)
    assert content_key(**{**same, "facts": replace(facts, revision="a new name")}) == keys[0]


def test_an_episode_that_is_appended_changes_no_key_before_it(dataset, tmp_path) -> None:
    root = tmp_path / "grown"
    make_dataset(root)
    before = {path: path.read_bytes() for path in root.glob("videos/*/*/*.mp4")}
    digests = [item.views[0].digest(item.frames) for item in open_source(root).items]
    shutil.rmtree(root)
    make_dataset(root, episodes=EPISODES + 1)
    assert {path: path.read_bytes() for path in before} != before, "the shared file has grown"
    again = [item.views[0].digest(item.frames) for item in open_source(root).items]
    assert again[:EPISODES] == digests
    assert len(set(again)) == EPISODES + 1


def test_a_long_episode_gives_the_same_values_within_a_small_memory() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (600, 8, 8, 3), dtype=np.uint8)
    plan = Plan(mode="prefix", frame_policy="linspace-8", every=2)
    found = []
    for memory, batch, features in ((10_000, 16, 1000), (2**30, 4096, 2**30)):
        model = BrightnessReward(BrightnessReward.Config(image_size=8))
        labeller = LocalLabeller(model, batch_frames=batch, feature_bytes=features)
        with FrameStore(memory_bytes=memory) as frames:
            for image in images:
                frames.add(labeller.pack(image))
            found.append(labeller.score(frames, "push", plan))
    np.testing.assert_array_equal(found[0].progress, found[1].progress)
    np.testing.assert_array_equal(found[0].frames, [*range(0, 600, 2), 599])
    np.testing.assert_allclose(found[0].progress, images[found[0].frames].mean(axis=(1, 2, 3)) / 255, atol=1e-6)
    assert model.encoded == len(
        {i for end in found[0].frames for i in FramePolicy.parse("linspace-8").indices(end + 1)}
    )


def test_memory_does_not_grow_with_an_episode() -> None:
    labeller = LocalLabeller(BrightnessReward(BrightnessReward.Config(image_size=64)), feature_bytes=10_000)
    plan = Plan(mode="prefix", frame_policy="linspace-8", every=10)
    image = np.zeros((64, 64, 3), np.uint8)
    tracemalloc.start()
    with FrameStore(memory_bytes=10 * image.nbytes) as frames:
        for number in range(3000):
            image[:] = number % 200
            frames.add(labeller.pack(image))
        labels = labeller.score(frames, "push", plan)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert frames.nbytes > 3000 * image.nbytes
    assert len(labels.frames) == 301
    assert peak < 300 * image.nbytes, "a tenth of its frames"


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    group_rows=st.integers(1, 50),
)
def test_the_merged_file_has_all_rows_in_order_in_groups_of_one_size(tmp_path_factory, lengths, group_rows) -> None:
    folder = tmp_path_factory.mktemp("merge")
    columns = pa.schema([pa.field("index", pa.int64(), nullable=False)])
    starts = np.cumsum([0, *lengths])
    paths = []
    for at, length in enumerate(lengths):
        paths.append(folder / f"{at}.parquet")
        rows = pa.array(np.arange(starts[at], starts[at] + length))
        parquet.write_table(pa.table([rows], schema=columns), paths[-1])
    merge(paths, folder / "out.parquet", schema=columns, metadata={"a": "b"}, group_rows=group_rows)
    found = parquet.ParquetFile(folder / "out.parquet")
    assert found.read().column("index").to_pylist() == list(range(starts[-1]))
    sizes = [found.metadata.row_group(at).num_rows for at in range(found.metadata.num_row_groups)]
    assert set(sizes[:-1]) <= {group_rows}
    assert found.schema_arrow.metadata[b"a"] == b"b"


def test_generic_texts(dataset) -> None:
    items = open_source(dataset).items
    assert generic_text(items) is None
    for text, generic in (("Do the task.", True), ("", True), ("pick", True), ("pick up the red cup", False)):
        assert (generic_text([replace(item, instruction=text) for item in items]) is not None) is generic
    assert generic_text([replace(items[0], instruction="task")]) is None, "one episode cannot share"


def test_an_episode_without_text_is_refused_and_a_task_of_ones_own_mends_it(dataset, tmp_path) -> None:
    job = settled(RelabelConfig(dataset=dataset, model=MODEL), tmp_path)
    item = replace(open_source(dataset).items[0], instruction=" ")
    outcome = EpisodeWorker(job).process(item)
    assert (outcome.status, "--task" in outcome.error) == ("failed", True)
    assert {item.instruction for item in open_source(dataset, task="pull it").items} == {"pull it"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"every": 0}, "every"),
        ({"workers": 0}, "workers"),
        ({"mode": "all"}, "mode"),
        ({"mode": "final", "every": 2}, "every"),
        ({"frame_policy": "best-8"}, "frame_policy"),
        ({"model": None}, "server"),
        ({"task": " "}, "task"),
        ({"cameras": ("a", "a")}, "cameras"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tmp_path, change, word) -> None:
    with pytest.raises(RoboserveError, match=word):
        RelabelConfig(**{"dataset": tmp_path, "model": MODEL, **change})


def test_a_model_that_is_not_there_is_refused_by_name(tmp_path) -> None:
    for name in (str(tmp_path), "models.rewards.scripted:NoReward", "zoo:nothing"):
        with pytest.raises(RoboserveError, match="model"):
            load_model(name, {})
    with pytest.raises(RoboserveError, match="model_config"):
        load_model(MODEL, {"colour": "red"})


def test_a_folder_without_anything_to_label_is_refused(tmp_path) -> None:
    with pytest.raises(RoboserveError, match="mp4"):
        open_source(tmp_path)
