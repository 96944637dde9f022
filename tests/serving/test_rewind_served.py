"""The embedded ReWiND behind the service of all reward models, in a replica of Ray Serve, and labelling a dataset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pyarrow import parquet

from clients.errors import RoboserveError
from clients.reward import RewardClient
from clients.reward_messages import Clip, ClipPair
from finetune.relabel.config import Plan, RelabelConfig
from finetune.relabel.labeller import open_labeller
from finetune.relabel.sources import open_source
from finetune.relabel.worker import EpisodeWorker, Job
from finetune.rewards.rollouts import plan, replay
from models.rewards.contract import Query
from models.rewards.frames import FramePolicy
from models.rewind.reward import RewindReward
from robot_client.dataset import DatasetWriter
from robot_client.robots.metaworld import CAMERA, MetaWorldRobot
from serving.ports import free_port
from tests.finetune.test_relabel_served import serving
from tests.serving.asgi import Session
from tests.serving.platforms import ROOT, configuration, start, stop
from tests.serving.rewards import clip, post, reward_server
from tests.serving.test_robometer_eval import ask, form, preference, progress
from tests.serving.test_robometer_eval import post as post_form

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

REWIND = {
    "factory": "models.rewind.reward:RewindReward",
    "config": {"checkpoint": "zoo:metaworld-rewind", "device": "cpu"},
}
TASK = "drawer-close"
SEED = 910_000
RESIZED = 0.02
"""Frames travel at the model's size, to which the client brings them; the model itself may round otherwise."""


@pytest.fixture(scope="module")
def filmed() -> tuple[str, np.ndarray, np.ndarray]:
    """A task's words, and clips of its success and of a hand that rests: uint8 (T, 224, 224, 3), 10 frames a second."""
    robot = MetaWorldRobot(TASK, image_size=(224, 224))

    def film(kind):
        rollout = plan(robot, kind, SEED)
        played = replay(robot, rollout, every=2)
        return np.stack([robot.observe().images[CAMERA] for _, kept in played if kept])

    try:
        return robot.task.instruction, film("expert"), film("idle")
    finally:
        robot.close()


@pytest.fixture(scope="module")
def expected(filmed) -> np.ndarray:
    """What the model itself reads at each frame of the success from the frames up to it, float32 (T,)."""
    words, done, _ = filmed
    model = RewindReward(RewindReward.Config(checkpoint="zoo:metaworld-rewind", device="cpu"))
    policy = FramePolicy.parse(model.spec.frame_policy)
    seen = model.encode([model.prepare(frame) for frame in done])
    shown = [tuple(seen[at] for at in policy.indices(end)) for end in range(1, len(done) + 1)]
    values = model.score([Query(instruction=words, frames=frames) for frames in shown])
    return np.array([each.progress[-1] for each in values], np.float32)


@pytest.fixture
async def served():
    server = reward_server(reward=REWIND)
    yield server
    await server.close()


async def test_it_scores_clips_and_tells_done_from_idle(served, filmed, expected) -> None:
    words, done, idle = filmed
    reply = await post(served, "score", {"clips": [clip(done, words), clip(idle, words)]})
    assert (reply["type"], reply["frame_policy"]) == ("scores", "linspace-16-pad"), reply
    assert reply["model"]["architecture"] == "rewind"
    success, failure = reply["clips"]
    np.testing.assert_allclose(success["progress"], expected, atol=1e-4)
    assert success["success"] is None
    assert success["progress"][-1] > failure["progress"][-1] + 0.2


async def test_a_session_gives_the_values_of_the_whole_clip_frame_by_frame(served, filmed, expected) -> None:
    words, done, _ = filmed
    session = await Session().open(served.app)
    contract = await session.hear()
    assert contract["supports"] == ["sessions"]
    opened = await session.ask({"type": "open", "instruction": words})
    values = [
        await session.ask({"type": "append", "session": opened["session"], "frames": frame[None]}) for frame in done
    ]
    np.testing.assert_allclose([value["progress"] for value in values], expected, atol=1e-4)
    assert {value["success"] for value in values} == {None}
    await session.end()


async def test_it_says_that_it_cannot_compare(served, filmed) -> None:
    words, done, idle = filmed
    pairs = [{"instruction": words, "first": done, "second": idle}]
    reply = await post(served, "compare", {"pairs": pairs})
    assert (reply["code"], "compare, which 'metaworld-rewind' does not support" in reply["message"]) == (
        "invalid_request",
        True,
    )


async def test_clients_of_the_evaluation_server_are_answered(served, filmed, expected) -> None:
    words, done, idle = filmed
    answer = await ask(served, [progress(done, task=words)], use_frame_steps="true")
    [values] = answer["outputs_progress"]["progress_pred"]
    assert len(values) == len(done)
    assert answer["outputs_success"] is None
    status, refused = await post_form(served, form([preference(done[:8], idle[:8])]))
    assert (status, refused["code"]) == (400, "invalid_request"), refused
    assert "does not support" in refused["message"]


# Jobs.


@pytest.fixture(scope="module")
def dataset(filmed, tmp_path_factory) -> Path:
    words, done, idle = filmed
    root = tmp_path_factory.mktemp("data") / "set"
    writer = DatasetWriter.create(
        root,
        fps=10,
        cameras={CAMERA: (224, 224)},
        state_names=["x"],
        action_names=["x"],
        robot_type="none",
    )
    for images in (done, idle):
        writer.begin()
        for image in images:
            writer.add({CAMERA: image}, np.zeros(1, np.float32), np.zeros(1, np.float32))
        writer.end(task=words)
    writer.close()
    return root


def labelled(config: RelabelConfig, folder: Path) -> list[pa.Table]:
    """What one worker makes of each episode."""
    (folder / "parts").mkdir(parents=True)
    labeller = open_labeller(config)
    plan = Plan(mode=config.mode, frame_policy=labeller.facts.frame_policy, every=config.every)
    job = Job(config=config, plan=plan, facts=labeller.facts, parts=folder / "parts")
    labeller.close()
    worker = EpisodeWorker(job)
    outcomes = [worker.process(item) for item in open_source(config.dataset).items]
    worker.close()
    assert [(outcome.status, outcome.error) for outcome in outcomes] == [("labelled", "")] * len(outcomes)
    return [parquet.read_table(job.parts / outcome.part) for outcome in outcomes]


def check_labels(tables: list[pa.Table]) -> None:
    """Hold the labels of a success and of a hand that rests to what they must be."""
    for table in tables:
        assert table.column("success").null_count == table.num_rows, "it gives none"
        assert table.column("progress").null_count == 0
    done, idle = (table.column("progress").to_pylist() for table in tables)
    assert done[-1] > idle[-1] + 0.2


def test_a_worker_labels_alike_with_the_model_inside_and_served(dataset, tmp_path) -> None:
    inside = RelabelConfig(dataset=dataset, model="zoo:metaworld-rewind", cache=tmp_path / "inside-cache")
    alone = labelled(inside, tmp_path / "inside")
    check_labels(alone)
    with serving(reward=REWIND) as address:
        config = RelabelConfig(dataset=dataset, server=address, cache=tmp_path / "served-cache", wait_s=60.0)
        asked = labelled(config, tmp_path / "served")
    check_labels(asked)
    for one, two in zip(alone, asked, strict=True):
        np.testing.assert_allclose(one.column("progress"), two.column("progress"), atol=RESIZED)


# A real replica, and a job of its own.


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[str]:
    application = {
        "name": "reward-rewind",
        "route_prefix": "/reward/rewind",
        "import_path": "serving.reward:build",
        "args": {"name": "rewind", "reward": REWIND},
        "deployments": [{"name": "RewardService", "ray_actor_options": {"num_cpus": 0.5}}],
    }
    port = free_port()
    running = start(tmp_path_factory.mktemp("platform"), configuration(port, [application]), port)
    yield running.websocket("/reward/rewind")
    assert stop(running) == []


def relabel(dataset: Path, folder: Path, name: str, *options: str) -> pa.Table:
    out = folder / f"{name}.parquet"
    command = [sys.executable, "-m", "roboserve", "relabel", str(dataset), "--out", str(out)]
    command += ["--workers", "1", "--cache", str(folder / f"{name}-cache"), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return parquet.read_table(out)


@pytest.mark.slow
def test_a_replica_of_ray_serve_answers_as_the_model_does(platform, filmed, expected) -> None:
    words, done, idle = filmed
    with RewardClient(platform, codec="png") as client:
        assert client.contract.architecture == "rewind"
        scores = client.score([Clip(words, done), Clip(words, idle)])
        success, failure = scores.clips
        np.testing.assert_allclose(success.progress, expected, atol=RESIZED)
        assert success.success is None
        assert success.final > failure.final + 0.2
        with client.open(words) as session:
            streamed = [session.append(frame).progress for frame in done]
        np.testing.assert_allclose(streamed, success.progress, atol=1e-4)
        with pytest.raises(RoboserveError, match="does not support"):
            client.compare([ClipPair(words, done[:8], idle[:8])])


@pytest.mark.slow
def test_a_dataset_is_labelled_alike_in_the_workers_and_served(platform, dataset, tmp_path) -> None:
    inside = relabel(dataset, tmp_path, "inside", "--model", "zoo:metaworld-rewind")
    served = relabel(dataset, tmp_path, "served", "--server", platform)
    for table in (inside, served):
        episodes = table.column("episode_index").to_numpy()
        check_labels([table.filter(episodes == index) for index in (0, 1)])
        facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        assert (facts["architecture"], facts["frame_policy"]) == ("rewind", "linspace-16-pad")
        assert json.loads(facts["cameras"]) == [CAMERA]
    np.testing.assert_allclose(inside.column("progress").to_numpy(), served.column("progress").to_numpy(), atol=RESIZED)
