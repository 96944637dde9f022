"""The recipe in miniature, as a user runs it; and a resumed run equals an unbroken one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from finetune.bc.collect import FIRST_SEED as DEMONSTRATION_SEED
from finetune.bc.evaluate import FIRST_SEED as EVALUATION_SEED
from finetune.bc.frames import load_frames
from finetune.bc.train import TrainConfig, learning_rate, train
from finetune.common.intervals import wilson
from models.policies.context_noise import ContextSchedule
from models.policies.flow_vla import FlowVLAPolicy
from robot_client.dataset import DatasetReader
from tests.models.policy_contract import item

ROOT = Path(__file__).parent.parent.parent
SMALL = {"channels": (8, 8, 8), "keypoints": 4, "width": 32}


def recipe(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MUJOCO_GL": "egl", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "finetune.bc", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demos")
    recipe("collect", "--out", str(folder), "--tasks", "handle-press,reach", "--episodes", "1")
    recipe("collect", "--out", str(folder), "--tasks", "handle-press,reach", "--episodes", "2")
    return folder


def config(demos: Path, out: Path) -> TrainConfig:
    data = tuple(demos / task for task in ("handle-press", "reach"))
    return TrainConfig(
        data=data, out=out, cache=demos / "frames", image_size=32, steps=6, batch=4, checkpoint_every=2, network=SMALL
    )


def test_collecting_again_adds_what_is_missing(demos: Path) -> None:
    for task in ("handle-press", "reach"):
        episodes = DatasetReader(demos / task).episodes
        assert len(episodes) == 2
        assert len({episode.extra["seed"] for episode in episodes}) == 2
        assert all(episode.extra["success"] for episode in episodes)


def test_chunks_end_with_their_episode(demos: Path) -> None:
    frames = load_frames([demos / "reach"], 32, demos / "reach-frames")
    end = int(frames.last[0])
    (chunk,) = frames.chunks(np.array([end - 1]), 4)
    np.testing.assert_array_equal(chunk[1:], np.repeat(frames.action[end : end + 1], 3, axis=0))
    assert frames.images.shape[1:] == (1, 32, 32, 3)
    again = load_frames([demos / "reach"], 32, demos / "reach-frames")
    np.testing.assert_array_equal(again.action, frames.action)


def test_a_run_that_was_stopped_and_resumed_gives_the_weights_of_one_that_was_not(demos: Path, tmp_path: Path) -> None:
    whole = train(config(demos, tmp_path / "whole"))

    class StoppedError(Exception):
        pass

    def stop(step: int, _loss: float) -> None:
        if step == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(config(demos, tmp_path / "broken"), report=stop)
    resumed = train(config(demos, tmp_path / "broken"))
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    assert (tmp_path / "broken" / "loss.png").is_file()
    with pytest.raises(ValueError, match="seed"):
        train(replace(config(demos, tmp_path / "broken"), seed=1))


@pytest.mark.slow
def test_train_evaluate_and_card_from_the_command_line(demos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tasks = ("--tasks", "handle-press,reach")
    recipe("train", "--data", str(demos), "--out", str(run), *tasks, "--steps", "20", "--batch", "4", "--smooth")
    for wording in ("canonical", "held_out"):
        recipe("evaluate", "--checkpoint", str(run / "checkpoint"), *tasks, "--episodes", "1", "--wording", wording)
    recipe("evaluate", "--checkpoint", str(run / "checkpoint"), "--tasks", "reach", "--episodes", "1", "--level", "0.5")
    recipe("card", "--run", str(run))
    result = json.loads((run / "evaluation-canonical.json").read_text("utf-8"))
    assert [row["episodes"] for row in result["tasks"]] == [1, 1]
    card = (run / "checkpoint" / "README.md").read_text("utf-8")
    assert "| handle-press |" in card
    assert "Held-out wordings" in card
    assert "| context level | mean success | scenes a task |\n|---|---|---|\n| 0.5 | " in card
    assert "train --data runs/demos --out runs/flow --steps 20 --batch 4 --seed 0 --smooth\n" in card
    assert json.loads((run / "evaluation-canonical-0.5.json").read_text("utf-8"))["config"]["level"] == 0.5


def test_wilson_intervals() -> None:
    assert wilson(40, 50) == pytest.approx((0.6696, 0.8876), abs=1e-4)
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == pytest.approx(1.0)


def test_evaluations_and_demonstrations_never_share_a_scene() -> None:
    assert EVALUATION_SEED + 1000 < DEMONSTRATION_SEED


def test_the_learning_rate_warms_up_and_falls() -> None:
    settings = TrainConfig(data=(), out=Path("unused"), steps=1000, warmup=100)
    rates = [learning_rate(settings, step) for step in (0, 50, 100, 999)]
    assert rates[0] == 0
    assert rates[1] < rates[2]
    assert rates[3] < 0.05 * rates[2]


def test_a_smoothed_policy_is_served_with_its_level(demos: Path, tmp_path: Path) -> None:
    smoothed = replace(config(demos, tmp_path / "smoothed"), context=ContextSchedule(levels=100))
    policy = FlowVLAPolicy(FlowVLAPolicy.Config(checkpoint=str(train(smoothed)), device="cpu"))
    assert policy.spec.context_size > 128
    given = [item(policy.spec, 0, context_level=level) for level in (0.0, 0.0, 1.0)]
    trusting, again, doubting = (chunk.actions for chunk in policy.act(given))
    np.testing.assert_allclose(trusting, again, atol=1e-6)
    assert not np.allclose(trusting, doubting)
    with pytest.raises(ValueError, match="other settings"):
        train(config(demos, tmp_path / "smoothed"))
