"""A relabelling worker against a real reward server: long episodes, failures that pass, and those that do not."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uvicorn
from pyarrow import parquet

from finetune.relabel.config import Plan, RelabelConfig
from finetune.relabel.frames import FrameStore
from finetune.relabel.labeller import StopJobError
from finetune.relabel.local import LocalLabeller
from finetune.relabel.served import ServedLabeller
from finetune.relabel.sources import open_source
from finetune.relabel.worker import EpisodeWorker, Job
from models.rewards.scripted import BrightnessReward
from robot_client.dataset import DatasetWriter
from tests.serving.rewards import reward_server

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUTE = "/reward/mine"


@contextmanager
def serving(port: int | None = None, **options: Any) -> Iterator[str]:
    """A reward server at its route, on loopback; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port or 0))
        port = probe.getsockname()[1]
    started, holder = threading.Event(), {}

    async def main() -> None:
        reward = reward_server(**options)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await reward.app({**scope, "root_path": ROUTE}, receive, send)

        settings = {"lifespan": "off", "log_level": "error", "ws_max_size": 2**25, "timeout_graceful_shutdown": 1}
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, ws="websockets-sansio", **settings))
        holder["server"] = server
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.01)
        started.set()
        await task
        await reward.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(30)
    try:
        yield f"ws://127.0.0.1:{port}{ROUTE}"
    finally:
        holder["server"].should_exit = True
        thread.join(30)


def config(server: str, **changes: Any) -> RelabelConfig:
    settings = {"dataset": Path("unused"), "server": server, "wait_s": 30.0}
    return RelabelConfig(**{**settings, **changes})


def noise(length: int) -> np.ndarray:
    """Frames of the model's size, so that whoever prepares them changes no pixel."""
    return np.random.default_rng(0).integers(0, 256, (length, 32, 32, 3), dtype=np.uint8)


def labels(labeller: Any, images: np.ndarray, plan: Plan) -> Any:
    with FrameStore() as frames:
        for image in images:
            frames.add(labeller.pack(image))
        return labeller.score(frames, "lift it", plan)


PLANS = [
    Plan(mode="prefix", frame_policy="linspace-8"),
    Plan(mode="prefix", frame_policy="last-4", every=5),
    Plan(mode="single_pass", frame_policy="linspace-4"),
    Plan(mode="single_pass", frame_policy="linspace-16-pad"),
    Plan(mode="final", frame_policy="linspace-8"),
]


@pytest.mark.parametrize("codec", ["png", "raw"])
@pytest.mark.parametrize("clip_frames", [64, 16])
def test_a_served_model_gives_what_it_gives_in_the_worker(codec: str, clip_frames: int) -> None:
    images, inside = noise(23), LocalLabeller(BrightnessReward(BrightnessReward.Config()))
    with serving(rewards={"clip_frames": clip_frames, "clips": 5}) as address:
        served = ServedLabeller(config(address, codec=codec))
        for plan in PLANS:
            one, two = labels(served, images, plan), labels(inside, images, plan)
            np.testing.assert_array_equal(one.frames, two.frames)
            np.testing.assert_allclose(one.progress, two.progress, atol=1e-6)
            np.testing.assert_array_equal(one.success, two.success)
        served.close()


def test_a_server_that_comes_back_is_waited_for_and_a_lost_one_is_named() -> None:
    images, plan = noise(5), PLANS[0]
    with serving() as address:
        labeller = ServedLabeller(config(address))
        first = labels(labeller, images, plan)
    port = int(address.rpartition(":")[2].partition("/")[0])
    back = threading.Event()
    done = threading.Event()

    def again() -> None:
        back.wait(30)
        with serving(port):
            done.wait(60)

    thread = threading.Thread(target=again)
    thread.start()
    threading.Timer(0.5, back.set).start()
    second = labels(labeller, images, plan)
    labeller.close()
    done.set()
    thread.join(60)
    np.testing.assert_array_equal(first.progress, second.progress)
    with pytest.raises(StopJobError, match="cannot be reached"):
        ServedLabeller(config(address, wait_s=0.0))


def test_a_model_that_changed_stops_the_job(monkeypatch) -> None:
    with serving() as address:
        labeller = ServedLabeller(config(address))
    port = int(address.rpartition(":")[2].partition("/")[0])
    made = BrightnessReward.__init__

    def another(self: BrightnessReward, settings: BrightnessReward.Config) -> None:
        made(self, settings)
        object.__setattr__(self.spec, "content_hash", "1" * 64)

    monkeypatch.setattr(BrightnessReward, "__init__", another)
    with serving(port), pytest.raises(StopJobError, match="changed"):
        labels(labeller, noise(3), PLANS[0])
    labeller.close()


def test_a_poisoned_episode_costs_its_own_labels_and_a_lost_server_stops_with_what_is_done_kept(tmp_path) -> None:
    writer = DatasetWriter.create(
        tmp_path / "set", fps=10, cameras={"front": (32, 32)}, state_names=["x"], action_names=["x"], robot_type="none"
    )
    for level in (50, 250, 90, 120):
        writer.begin()
        for _ in range(4):
            writer.add({"front": np.full((32, 32, 3), level, np.uint8)}, np.zeros(1), np.zeros(1))
        writer.end(task="lift the cup")
    writer.close()
    items = open_source(tmp_path / "set").items
    (tmp_path / "parts").mkdir()
    with serving(config={"poison": 230}) as address:
        settings = config(address, dataset=tmp_path / "set", cache=tmp_path / "cache", wait_s=5.0)
        labeller = ServedLabeller(settings)
        facts = labeller.facts
        labeller.close()
        worker = EpisodeWorker(Job(config=settings, plan=PLANS[0], facts=facts, parts=tmp_path / "parts"))
        outcomes = [worker.process(item) for item in items[:3]]
    assert [outcome.status for outcome in outcomes] == ["labelled", "failed", "labelled"]
    lost = worker.process(items[3])
    assert (lost.status, "no answer for 5 s" in lost.error) == ("stopped", True)
    assert [worker.process(items[at]).status for at in (0, 2)] == ["kept", "kept"], "they need no server"
    found = parquet.read_table(tmp_path / "parts" / outcomes[2].part)
    np.testing.assert_allclose(found.column("progress").to_numpy(), 90 / 255, atol=0.02)
    worker.close()
