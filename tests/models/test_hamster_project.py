"""Examples from poses, by hand and by property; the mix of data sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.hamster.answer import AnswerStyle, parse_answer
from models.hamster.mix import OFF_DOMAIN, Mix, Source
from models.hamster.project import Camera, ExampleConfig, path_example, project_path

INTRINSICS = np.array([[100.0, 0.0, 100.0], [0.0, 100.0, 50.0], [0.0, 0.0, 1.0]])
# Two metres above the table, looking straight down; the world's y points up in the image.
ABOVE = np.array([[1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, -1.0, 2.0], [0, 0, 0, 1.0]])


def camera(**changes) -> Camera:
    return Camera(**{"intrinsics": INTRINSICS, "extrinsics": ABOVE, "width": 200, "height": 100, **changes})


def test_projection_by_hand():
    points, depths = camera().project(np.array([[0.0, 0, 0], [1.0, 0.5, 0], [0, 0, 1.0], [0, 0, 3.0], [0.2, 0, 2.0]]))
    assert points[0].tolist() == [0.5, 0.5]
    assert points[1].tolist() == [0.75, 0.25]
    assert points[2].tolist() == [0.5, 0.5]
    assert np.isnan(points[3:]).all()
    assert depths.tolist() == [2.0, 2.0, 1.0, -1.0, 0.0]


def test_opengl_axes_are_the_same_camera():
    flipped = np.diag([1.0, -1.0, -1.0, 1.0]) @ ABOVE
    places = np.random.default_rng(0).uniform(-0.4, 0.4, (20, 3))
    ours, theirs = camera(), camera(extrinsics=flipped, axes="opengl")
    assert theirs.project(places)[0] == pytest.approx(ours.project(places)[0])
    assert theirs.project(places)[1] == pytest.approx(ours.project(places)[1])


def test_frames_outside_or_behind_are_dropped():
    positions = np.array([[0.0, 0, 0], [9.0, 0, 0], [0.0, 0, 3.0], [1.0, 0.5, 0], [-2.01, 0, 0]])
    found = project_path(positions, np.array([True, True, False, False, True]), camera())
    assert found.frames.tolist() == [0, 3]
    assert found.path.points.tolist() == [[0.5, 0.5], [0.75, 0.25]]
    assert found.path.gripper_open.tolist() == [True, False]
    with pytest.raises(ValueError, match="none of them"):
        project_path(positions[1:2], np.array([True]), camera())
    with pytest.raises(ValueError, match="gripper_open"):
        project_path(positions, np.array([True]), camera())
    with pytest.raises(ValueError, match="positions"):
        camera().project(positions[:, :2])


def test_an_example_in_full():
    along = np.linspace(0.0, 1.0, 50)[:, None]
    there, up = np.array([[1.0, 0.0, 0.0]]) * along, np.array([[0.0, 0.8, 0.0]]) * along
    positions = np.concatenate([there, there[-1] + up])
    gripper = np.repeat([True, False], 50)
    found = path_example(positions, gripper, camera())
    open_tag, close_tag = "<action>Open Gripper</action>", "<action>Close Gripper</action>"
    assert found.answer == f"<ans>[(0.50, 0.50), {open_tag}, (0.75, 0.50), {close_tag}, (0.75, 0.10)]</ans>"
    assert found.path == parse_answer(found.answer).path
    assert len(found.whole) == 100
    assert found.visible == 1.0
    started = path_example(positions, gripper, camera(), ExampleConfig(initial_open=True))
    assert started.answer == f"<ans>[(0.50, 0.50), (0.75, 0.50), {close_tag}, (0.75, 0.10)]</ans>"


def test_trajectories_that_make_no_example_are_refused():
    positions = np.array([[0.0, 0, 0], [9.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0]])
    gripper = np.array([True, False, True, False])
    with pytest.raises(ValueError, match="75% of them are in the image, 80% must be"):
        path_example(positions, gripper, camera())
    with pytest.raises(ValueError, match="at most 1"):
        path_example(positions, gripper, camera(), ExampleConfig(visible=0.5, style=AnswerStyle(max_points=1)))
    with pytest.raises(ValueError, match="visible"):
        ExampleConfig(visible=1.5)


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(-1, 3), st.booleans()), min_size=1, max_size=15),
    st.booleans(),
)
def test_every_example_reads_back_as_its_path(rows, initial_open):
    positions, gripper = np.array([row[:3] for row in rows]), np.array([row[3] for row in rows])
    config = ExampleConfig(visible=0.0, initial_open=initial_open)
    points, _ = camera().project(positions)
    if not ((points >= 0) & (points <= 1)).all(axis=1).any():
        with pytest.raises(ValueError, match="none of them"):
            path_example(positions, gripper, camera(), config)
        return
    found = path_example(positions, gripper, camera(), config)
    assert parse_answer(found.answer, initial_open=initial_open).issues == ()
    changes = found.path.changes()
    assert np.abs(found.path.points[changes] - found.whole.points[found.whole.changes()]).max(initial=0) <= 0.0051
    assert np.abs(found.path.points[[0, -1]] - found.whole.points[[0, -1]]).max() <= 0.0051


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"intrinsics": np.eye(4)}, "intrinsics: shape"),
        ({"intrinsics": np.diag([0.0, 1.0, 1.0])}, "focal"),
        ({"intrinsics": np.diag([1.0, 1.0, 2.0])}, "last row"),
        ({"extrinsics": np.eye(3)}, "extrinsics: shape"),
        ({"extrinsics": np.diag([2.0, 1.0, 1.0, 1.0])}, "rotation"),
        ({"extrinsics": np.diag([-1.0, 1.0, 1.0, 1.0])}, "rotation"),
        ({"extrinsics": np.full((4, 4), np.nan)}, "finite"),
        ({"width": 0}, "sides"),
    ],
)
def test_a_camera_that_is_none_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        camera(**changes)


def test_the_off_domain_mix_weighs_its_sources_alike():
    assert OFF_DOMAIN.shares().tolist() == pytest.approx([0.2] * 5)
    repeats = dict(zip([source.name for source in OFF_DOMAIN.sources], OFF_DOMAIN.repeats(1_000_000), strict=True))
    assert repeats["bridge-paths"] == pytest.approx(20.0)
    assert repeats["bridge-paths"] / repeats["robopoint-pointing"] == pytest.approx(77.0)
    drawn = OFF_DOMAIN.draw(5000, np.random.default_rng(0))
    assert drawn == OFF_DOMAIN.draw(5000, np.random.default_rng(0))
    assert sum(source.name == "bridge-paths" for source in drawn) == pytest.approx(1000, abs=100)


def test_a_mix_weighs_as_it_is_told():
    one, two = Source(name="a", kind="paths", examples=10, weight=3.0), Source(name="b", kind="points", examples=5)
    assert Mix(sources=(one, two)).shares().tolist() == [0.75, 0.25]
    for sources in ((), (one, one)):
        with pytest.raises(ValueError, match="sources"):
            Mix(sources=sources)
    for wrong in ({"examples": 0}, {"examples": 1, "weight": 0.0}, {"examples": 1, "weight": float("inf")}):
        with pytest.raises(ValueError, match="a: "):
            Source(name="a", kind="paths", **wrong)
