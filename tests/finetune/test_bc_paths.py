"""Paths that a policy follows: drawn in training as a robot with a planner sends them, and told in the contract."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clients.contract import Camera
from clients.images import resize_with_pad
from finetune.bc.frames import Frames
from finetune.bc.hierarchy import HierarchyConfig, compare
from finetune.bc.hierarchy_table import summary
from finetune.bc.paths import DemonstratedPaths, PathNoise, draw_paths, usual_camera
from finetune.bc.train import TrainConfig, checkpoint_config
from models.hamster.path import Path
from models.policies.flow_vla.checkpoint import load_checkpoint, save_checkpoint
from models.policies.flow_vla.network import FlowVLANetwork
from robot_client.planner import PlannerConfig, plan_path
from robot_client.robot import RobotObservation
from serving.config import PolicyArgs
from serving.policy_model import contract_of
from tests.robot_client.fake_server import make_contract
from tests.serving.path_running import RunningPath
from tests.serving.paths import SayingEngine, path_server

SMALL = {"channels": (8, 8, 8), "keypoints": 4, "width": 32}
PATH = Path(points=[[0.2, 0.3], [0.7, 0.4], [0.7, 0.8]], gripper_open=[True, True, False])


def frames() -> Frames:
    """Two demonstrations, of 5 and 4 frames, whose hand goes to the right and then up, the gripper closing there."""
    lengths = (5, 4)
    state = np.zeros((9, 4), np.float32)
    state[:, :3] = (0.0, 0.6, 0.2)
    state[:5, 0] = np.linspace(0.0, 0.1, 5)
    state[5:, 2] = np.linspace(0.2, 0.3, 4)
    action = np.full((9, 4), -1.0, np.float32)
    action[2:5, 3] = 1.0
    return Frames(
        cameras=("front",),
        images=np.full((9, 1, 64, 64, 3), 90, np.uint8),
        state=state,
        action=action,
        instruction=np.zeros(9, np.int64),
        last=np.repeat(np.cumsum(lengths) - 1, lengths),
        instructions=("go",),
    )


def checkpoint(folder, **settings):
    config = checkpoint_config(TrainConfig(data=(), out=folder, network=SMALL, **settings), frames())
    save_checkpoint(folder, config, FlowVLANetwork(config.network), card="")
    return folder


def test_training_draws_to_the_pixel_what_a_robot_with_a_planner_sends():
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    contract = make_contract(cameras=(Camera("front", 64, 64),))
    with RunningPath.of(path_server(SayingEngine())) as running:
        planned = plan_path(
            PlannerConfig(running.url), RobotObservation({"front": image}, np.zeros(4, np.float32)), contract, "go"
        )
    sent = planned.drawn_on({"front": image})["front"]
    seen = resize_with_pad(image, 64, 64)
    path = Path(points=planned.points, gripper_open=planned.gripper_open)
    drawn = draw_paths(np.stack([seen, seen])[:, None], [path, None])
    np.testing.assert_array_equal(drawn[0, 0], sent)
    np.testing.assert_array_equal(drawn[1, 0], seen)
    assert (sent != seen).any()


def test_every_frame_of_a_demonstration_has_its_whole_path():
    paths = DemonstratedPaths(frames(), usual_camera()).of(np.arange(9))
    assert [len(path) for path in paths] == [5] * 5 + [4] * 4
    assert paths[0] is paths[4]
    assert paths[0].gripper_open.tolist() == [True, True, False, False, False]
    assert paths[5].points[-1, 1] < paths[5].points[0, 1] - 0.05, "up in the world is up in the image"


def test_noise_moves_points_keeps_the_gripper_and_leaves_paths_out():
    random = np.random.default_rng(0)
    noise = PathNoise(tolerance=(0.0, 0.0), absent=0.0)
    moved = np.stack([noise.applied(PATH, random).points for _ in range(300)]) - PATH.points
    assert moved.std() == pytest.approx(np.hypot(noise.point, noise.shift), rel=0.1)
    assert noise.applied(PATH, random).gripper_open.tolist() == PATH.gripper_open.tolist()
    assert replace(noise, absent=1.0).applied(PATH, random) is None
    with pytest.raises(ValueError, match="absent 2"):
        PathNoise(absent=2)


def test_the_contract_says_that_a_policy_follows_a_path(tmp_path):
    for noise, told in ((None, False), (PathNoise(), True)):
        config, _, content_hash = load_checkpoint(checkpoint(tmp_path / str(told), path=noise))
        args = PolicyArgs.model_validate({"name": "arm", "policy": {"factory": "any:Policy"}})
        assert ("path" in contract_of(config.spec(content_hash), args).supports) is told


@pytest.mark.slow
def test_scenes_are_compared_once(tmp_path):
    flat, following = checkpoint(tmp_path / "flat"), checkpoint(tmp_path / "following", path=PathNoise())
    config = HierarchyConfig(
        out=tmp_path / "out",
        flat=str(flat),
        following=str(following),
        scenes=1,
        tasks=("handle-press",),
        looks=("all",),
        conditions=("flat", "predicted"),
    )
    told = []
    plays = compare(config, report=lambda: told.append(1))
    assert len(told) == len(plays) == 2
    kept = (config.out / "plays.jsonl").read_bytes()
    assert compare(config) == plays
    assert (config.out / "plays.jsonl").read_bytes() == kept
    found = summary(config, plays)["looks"]["all"]
    assert found["conditions"]["predicted"]["episodes"] == 1
    assert 0 < found["path_error"] < 0.3
    with pytest.raises(ValueError, match="not trained to follow a path"):
        compare(replace(config, following=str(flat)))
