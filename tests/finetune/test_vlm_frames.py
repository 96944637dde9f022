"""Frames for the embedded VLM, in the simulator: where the gripper stands, what is said of them, how they look."""

from __future__ import annotations

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("metaworld")

from clients.errors import RoboserveError  # noqa: E402
from finetune.vlm import collect as collecting  # noqa: E402
from finetune.vlm.episodes import camera_of, drawn, failing, follow, needed, start, steady  # noqa: E402
from finetune.vlm.material import load_frames  # noqa: E402
from robot_client.robots.metaworld import CAMERA, MetaWorldRobot  # noqa: E402
from robot_client.robots.metaworld_scenes import CELLS, SceneLooks  # noqa: E402

FINGERS = ("rightpad", "leftpad", "rightclaw", "leftclaw", "hand")


@pytest.fixture(scope="module")
def robot():
    robot = MetaWorldRobot("pick-place", image_size=(112, 112))
    yield robot
    robot.close()


@pytest.fixture(scope="module")
def looks(robot):
    return SceneLooks(robot)


def fingers(robot):
    """Return the places, in pixels, at which fingers or hand are seen."""
    simulation = robot.simulation
    renderer, model = simulation.renderer, simulation.model
    renderer.enable_segmentation_rendering()
    renderer.update_scene(simulation.data, simulation.camera)
    seen = renderer.render()
    renderer.disable_segmentation_rendering()
    bodies = [model.body(model.geom_bodyid[index]).name for index in range(model.ngeom)]
    wanted = [index for index, body in enumerate(bodies) if body in FINGERS]
    rows, columns = np.nonzero(np.isin(seen[..., 0], wanted) & (seen[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM)))
    return np.stack([columns, rows], axis=1) + 0.5


@pytest.mark.parametrize("moved", [False, True])
def test_the_projected_point_lies_between_the_fingers_that_are_seen(robot, looks, moved):
    for seed in range(3):
        robot.reset(seed)
        if moved:
            looks.randomise(np.random.default_rng(seed), cells=("camera",))
        image = robot.observe().images[CAMERA]
        point = camera_of(robot, image).project(robot.fingertips[None])[0][0] * 112
        seen = fingers(robot)
        assert (seen.min(axis=0) <= point).all()
        assert (point <= seen.max(axis=0)).all()
        assert np.hypot(*(seen - point).T).min() < 6  # the gap of an open gripper
    looks.restore()


def test_the_projected_point_lies_on_a_closed_gripper(robot):
    robot.reset(1)
    for _ in range(15):
        robot.act(np.array([0.0, 0.0, 0.0, 1.0], np.float32))
    image = robot.observe().images[CAMERA]
    point = camera_of(robot, image).project(robot.fingertips[None])[0][0] * 112
    assert np.hypot(*(fingers(robot) - point).T).min() < 2


def test_the_expert_s_way_is_what_is_left_of_it_at_every_moment(robot):
    full = needed(robot, 5)
    start(robot, 5, wander=False)
    way = follow(robot)
    frames = drawn(robot, way, [0, way.success // 2, way.success + 1], full)
    assert [frame.progress for frame in frames] == pytest.approx(
        [0.0, 1 - (way.success - way.success // 2) / full, 1.0]
    )
    assert np.allclose(frames[1].points, frames[0].points[way.success // 2 :], atol=1e-6)
    assert len(frames[2].points) == 0
    assert frames[0].opens[0]
    assert not frames[0].opens[-1]  # it carries the block
    assert len(frames[0].opens) == len(frames[0].points)


def test_a_drawn_moment_is_what_the_robot_saw_then(robot):
    start(robot, 6, wander=False)
    images = []
    way = follow(robot)
    start(robot, 6, wander=False)
    from finetune.bc.expert import ScriptedExpert

    expert = ScriptedExpert(robot)
    for _ in range(20):
        robot.act(expert.action())
    images = robot.observe().images[CAMERA].astype(int)
    again = drawn(robot, way, [20], 50)[0].image.astype(int)
    assert np.abs(images - again).mean() < 1.0


def test_a_failing_rollout_tells_how_far_the_expert_would_still_have_to_go(robot):
    full, frames = 1, []
    for seed in range(40, 50):  # not every scene allows every kind
        full = needed(robot, seed) or 1
        frames = failing(robot, "half_done", seed, full, [0.0, 1.0])
        if len(frames) == 2:
            break
    assert frames[0].progress == pytest.approx(0.0, abs=0.1)
    assert 0.1 < frames[1].progress < 1.0


def test_flutter_of_the_gripper_is_no_change():
    opens = np.array([True] * 5 + [False] * 2 + [True] * 4 + [False] * 6)
    assert steady(opens).tolist() == [True] * 11 + [False] * 6


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_changes_the_picture_and_is_put_back(robot, looks, cell):
    robot.reset(2)
    before = robot.observe().images[CAMERA]
    looks.randomise(np.random.default_rng(4), cells=(cell,))
    changed = robot.observe().images[CAMERA]
    assert (before != changed).any()
    looks.randomise(np.random.default_rng(4), cells=(cell,))
    assert np.array_equal(robot.observe().images[CAMERA], changed)
    looks.restore()
    assert np.array_equal(robot.observe().images[CAMERA], before)


def test_looks_leave_physics_alone(robot, looks):
    ends = []
    for change in (False, True):
        robot.reset(9)
        if change:
            looks.randomise(np.random.default_rng(1))
        ends.append(follow(robot).tips[-1])
        looks.restore()
    assert np.array_equal(*ends)


def test_unknown_looks_are_refused(robot, looks):
    robot.reset(0)
    with pytest.raises(RoboserveError, match="weather"):
        looks.randomise(np.random.default_rng(0), cells=("weather",))


def test_frames_go_to_disk_and_come_back(tmp_path, monkeypatch):
    slots = [
        collecting.Slot(split="train", kind="expert", looks="mixed", seed=500_000),
        collecting.Slot(split="validation", kind="stalled", looks="all", seed=700_000),
    ]
    monkeypatch.setattr(collecting, "slots", lambda config, task: slots)
    config = collecting.CollectConfig(out=tmp_path, tasks=("drawer-open",), image_size=64)
    _, count = collecting.collect_task(config, "drawer-open")
    train, validation = (load_frames(tmp_path, ("drawer-open",), split) for split in ("train", "validation"))
    assert len(train) + len(validation) == count
    assert train.image(0).shape == (64, 64, 3)
    first = train.infos[0]
    assert len(first.path) <= len(first.way)
    assert np.array_equal(first.path.points[[0, -1]], first.way.points[[0, -1]])
    assert {info.looks for info in validation.infos} == {"all"}
    with pytest.raises(ValueError, match="other settings"):
        collecting.collect_task(collecting.CollectConfig(out=tmp_path, image_size=96), "drawer-open")
    with pytest.raises(FileNotFoundError, match="push"):
        load_frames(tmp_path, ("push",), "train")
