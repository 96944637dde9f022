"""Paths: resampled, simplified, drawn through views of the image, made noisy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.hamster.path import NOISE, Path
from models.hamster.simplify import kept, simplified
from models.hamster.view import View, seen

UNIT = st.floats(0.0, 1.0)
COARSE = st.integers(0, 20).map(lambda number: number / 20)
SIZES = st.integers(1, 2000)


def paths(unit=UNIT, max_size=30):
    return st.lists(st.tuples(unit, unit, st.booleans()), min_size=1, max_size=max_size).map(
        lambda rows: Path(points=[row[:2] for row in rows], gripper_open=[row[2] for row in rows])
    )


def path(*points, flags=None) -> Path:
    return Path(points=points, gripper_open=flags or [False] * len(points))


def test_a_path_is_checked_and_frozen():
    points = np.array([[0.1, 0.2], [0.3, -0.0]])
    found = Path(points=points, gripper_open=np.array([1, 0]))
    points[0] = 9
    assert found.points[0].tolist() == [0.1, 0.2]
    assert not np.signbit(found.points).any()
    with pytest.raises(ValueError, match="read-only"):
        found.points[0] = 0.5
    assert found == Path(points=[[0.1, 0.2], [0.3, 0.0]], gripper_open=[True, False])
    assert len({found, Path(points=[[0.1, 0.2], [0.3, 0.0]], gripper_open=[True, False])}) == 1
    assert found != path((0.1, 0.2), (0.3, 0.0))
    for wrong in ([], [[0.1]], [[0.1, np.nan]], [[0.1, 1.01]], [[-0.01, 0.5]]):
        with pytest.raises(ValueError, match="points"):
            Path(points=np.array(wrong), gripper_open=[False] * len(wrong))
    with pytest.raises(ValueError, match="gripper_open"):
        Path(points=[[0.1, 0.2]], gripper_open=[])


def test_resampling_by_hand():
    found = path((0.0, 0.0), (0.0, 0.2), (0.6, 0.2), flags=[False, True, False]).resampled(5)
    assert found.points == pytest.approx(np.array([[0, 0], [0, 0.2], [0.2, 0.2], [0.4, 0.2], [0.6, 0.2]]))
    assert found.gripper_open.tolist() == [False, True, True, True, False]
    tall = path((0.0, 0.0), (0.0, 0.2), (0.6, 0.2)).resampled(3, aspect=3.0)
    assert tall.points == pytest.approx(np.array([[0, 0], [0, 0.2], [0.6, 0.2]]))
    with pytest.raises(ValueError, match="2 or more"):
        path((0.0, 0.0)).resampled(1)


def test_paths_without_length_are_resampled_to_their_place():
    assert path((0.3, 0.4)).resampled(3).points.tolist() == 3 * [[0.3, 0.4]]
    same = path((0.3, 0.4), (0.3, 0.4), flags=[False, True]).resampled(4)
    assert same.points.tolist() == 4 * [[0.3, 0.4]]
    assert same.gripper_open.tolist() == 4 * [True]


@given(paths(), st.integers(2, 60))
def test_resampled_points_step_evenly_between_the_ends(found, count):
    again = found.resampled(count)
    assert len(again) == count
    assert again.points[0] == pytest.approx(found.points[0])
    assert again.points[-1] == pytest.approx(found.points[-1])
    assert again.gripper_open[-1] == found.gripper_open[-1]
    length = np.hypot(*np.diff(found.points, axis=0).T).sum()
    assert (np.hypot(*np.diff(again.points, axis=0).T) <= length / (count - 1) + 1e-9).all()


def test_pixels_are_the_demos():
    assert path((0.0, 0.999), (1.0, 0.5)).pixels(640, 480).tolist() == [[0, 479], [640, 240]]


@given(paths(), SIZES, SIZES)
def test_a_crop_leads_back(found, width, height):
    view = View.center_crop(width, height)
    assert found.in_original(view).in_view(view).points == pytest.approx(found.points, abs=1e-9)


@given(paths(), SIZES, SIZES, st.integers(8, 512), st.integers(8, 512))
def test_padding_and_stretching_lead_back(found, width, height, out_width, out_height):
    for view in (View.pad(width, height, size=(out_width, out_height)), View.stretch()):
        assert found.in_view(view).in_original(view).points == pytest.approx(found.points, abs=1e-9)


def test_views_by_hand():
    crop = View.center_crop(640, 480)
    assert path((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)).in_original(crop).points == pytest.approx(
        np.array([[0.125, 0.0], [0.5, 0.5], [0.875, 1.0]])
    )
    with pytest.raises(ValueError, match="1 of 2 are not in the view, the first is 1"):
        path((0.5, 0.5), (0.1, 0.5)).in_view(crop)
    pad = View.pad(640, 480, size=(224, 224))
    assert path((0.0, 0.0), (1.0, 1.0)).in_view(pad).points == pytest.approx(
        np.array([[0.0, 28 / 224], [1.0, 196 / 224]])
    )
    assert path((0.5, 0.01)).in_original(pad).points == pytest.approx(np.array([[0.5, 0.0]]))
    with pytest.raises(ValueError, match="1 or more"):
        View.center_crop(0, 5)


@pytest.mark.parametrize("kind", ["center_crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [None, (96, 96), (128, 64)])
def test_what_a_model_sees_is_where_the_view_says(kind, size):
    image = np.zeros((120, 200, 3), dtype=np.uint8)
    image[66:74, 96:104] = 255
    shown, view = seen(image, kind, size=size)
    if size is not None:
        assert shown.shape[:2] == size[::-1]
    rows, columns = np.nonzero(shown[..., 0] > 127)
    place = np.array([[(columns.mean() + 0.5) / shown.shape[1], (rows.mean() + 0.5) / shown.shape[0]]])
    assert view.to_original(place)[0] == pytest.approx([100 / 200, 70 / 120], abs=0.01)
    with pytest.raises(ValueError, match="needs"):
        seen(image[..., 0], kind)


def test_noise_moves_points_only_and_is_seeded():
    found = path(*(np.full((4000, 2), 0.5)), flags=[True, False] * 2000)
    noisy = found.noisy(np.random.default_rng(0))
    assert noisy == found.noisy(np.random.default_rng(0))
    assert noisy != found.noisy(np.random.default_rng(1))
    assert np.array_equal(noisy.gripper_open, found.gripper_open)
    assert (noisy.points - 0.5).std() == pytest.approx(NOISE, rel=0.05)
    assert path((0.0, 1.0)).noisy(np.random.default_rng(2), scale=5.0).points.max() <= 1.0
    assert found.noisy(np.random.default_rng(0), scale=0.0) == found


@given(st.one_of(paths(), paths(COARSE)), st.sampled_from([0.0, 0.01, 0.05, 0.2, 2.0]))
def test_simplifying_keeps_ends_and_changes_and_is_done_once(found, tolerance):
    indices = kept(found, tolerance=tolerance).tolist()
    assert indices == sorted(set(indices))
    assert {0, len(found) - 1, *found.changes().tolist()} <= set(indices)
    once = simplified(found, tolerance=tolerance)
    assert simplified(once, tolerance=tolerance) == once
    assert once.points[once.changes()].tolist() == found.points[found.changes()].tolist()
    assert once.gripper_open[once.changes()].tolist() == found.gripper_open[found.changes()].tolist()


@given(paths(), st.sampled_from([0.0, 0.01, 0.05, 0.2]))
def test_no_point_lies_farther_from_the_simplified_path_than_the_tolerance(found, tolerance):
    indices = kept(found, tolerance=tolerance)
    for first, last in pairwise(indices):
        start, end = found.points[first], found.points[last]
        line = start + np.linspace(0.0, 1.0, 2001)[:, None] * (end - start)
        for point in found.points[first + 1 : last]:
            assert np.hypot(*(line - point).T).min() <= tolerance + 1e-3


def test_simplifying_by_hand():
    line = path((0.0, 0.0), (0.25, 0.04), (0.5, 0.02), (0.75, 0.07), (1.0, 0.0))
    assert kept(line).tolist() == [0, 3, 4]
    held = Path(points=line.points, gripper_open=[False, True, True, True, True])
    assert kept(held).tolist() == [0, 1, 3, 4]
    back = path((0.0, 0.0), (1.0, 0.0), (0.5, 0.0))
    assert kept(back).tolist() == [0, 1, 2]
    loop = path((0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.0, 0.0))
    assert kept(loop).tolist() == [0, 1, 2, 3]
    assert kept(path((0.3, 0.3))).tolist() == [0]
    with pytest.raises(ValueError, match="tolerance"):
        kept(line, tolerance=-0.1)


@given(arrays(np.float64, (200, 2), elements=UNIT))
def test_long_paths_need_no_deep_stack(points):
    assert len(simplified(Path(points=points, gripper_open=np.zeros(200)), tolerance=0.0)) <= 200
