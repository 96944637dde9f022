"""Drawn paths: sizes, colours and places, to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps

from models.hamster.drawing import DEMO, POLICY, STYLES, Strokes, concat, jet, overlay
from models.hamster.path import Path

SIZES = {(256, 256): (2, 7, 2), (512, 512): (2, 7, 2), (640, 480): (2, 7, 2), (1280, 720): (2, 9, 2)}
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def path(*points, flags=None) -> Path:
    return Path(points=points, gripper_open=flags or [False] * len(points))


def blank(width: int, height: int):
    return np.zeros((height, width, 3), dtype=np.uint8)


def coloured(image, colour):
    """Return columns and rows of all pixels of a colour."""
    rows, columns = np.nonzero((image == colour).all(axis=2))
    return columns, rows


@pytest.mark.parametrize(("size", "strokes"), SIZES.items())
def test_the_demos_sizes(size, strokes):
    line, radius, ring = strokes
    assert DEMO.strokes(*size) == Strokes(line=line, radius=radius, ring=ring)
    drawn = overlay(blank(*size), path((0.5, 0.5)), style=DEMO)
    columns, rows = coloured(drawn, BLUE)
    away = np.hypot(columns - int(0.5 * size[0]), rows - int(0.5 * size[1]))
    assert away.max() == pytest.approx(radius + ring / 2, abs=0.75)
    assert away.min() == pytest.approx(radius - ring / 2, abs=0.75)
    assert (drawn.any(axis=2)).sum() == len(columns)


def test_sizes_grow_with_the_shorter_side():
    assert DEMO.strokes(2048, 1024) == Strokes(line=4, radius=14, ring=4)
    assert POLICY.strokes(96, 96) == Strokes(line=1, radius=3, ring=1)
    assert POLICY.strokes(224, 224) == Strokes(line=2, radius=7, ring=2)


@pytest.mark.parametrize("size", SIZES)
def test_the_demos_line_goes_from_jet_0_to_jet_1(size):
    width, height = size
    drawn = overlay(blank(width, height), path((0.1, 0.5), (0.9, 0.5)), style=DEMO)
    row = drawn[height // 2]
    assert row[int(0.1 * width) + 1].tolist() == jet(np.array([0.0]))[0].tolist() == [0, 0, 127]
    assert row[int(0.9 * width) - 1].tolist() == jet(np.array([98 / 99]))[0].tolist() == [136, 0, 0]
    thick = drawn[:, int(0.5 * width)].any(axis=1).sum()
    assert thick == DEMO.strokes(width, height).line
    assert len(np.unique(row.reshape(-1, 3), axis=0)) > 90


def test_jet_is_matplotlibs():
    values = np.linspace(0.0, 1.0, 1001)
    theirs = (colormaps["jet"](values)[:, :3] * 255).astype(np.int64)
    assert np.abs(jet(values).astype(np.int64) - theirs).max() <= 1
    assert DEMO.line_colours().shape == (99, 3)


def test_rings_stand_at_the_start_and_at_changes_only():
    places = [(0.2, 0.2), (0.4, 0.2), (0.6, 0.2), (0.8, 0.2)]
    drawn = overlay(blank(512, 512), path(*places, flags=[True, True, False, False]), style=DEMO)
    drawn[100:105] = 0  # the line passes through these very colours
    reds, blues = coloured(drawn, RED), coloured(drawn, BLUE)
    assert reds[0].mean() == pytest.approx(102, abs=1.5)
    assert blues[0].mean() == pytest.approx(307, abs=1.5)
    assert np.ptp(reds[0]) <= 17
    assert np.ptp(blues[0]) <= 17


def test_the_demos_line_lies_over_its_rings_and_the_policys_under():
    straight = path((0.2, 0.5), (0.8, 0.5))
    demo = overlay(blank(512, 512), straight, style=DEMO)
    assert tuple(demo[256, 102 + 7]) != BLUE
    policy = overlay(blank(112, 112), straight, style=POLICY)
    assert tuple(policy[56, 22 + 3]) == BLUE
    row = policy[56, 27:89, 0].astype(int)
    assert (np.diff(row) >= 0).all()
    assert row[0] < 120
    assert row[-1] > 245
    opened = overlay(blank(112, 112), path((0.2, 0.5), (0.8, 0.5), flags=[True, True]), style=POLICY)
    assert tuple(opened[56, 22 + 3]) == GREEN


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), min_size=1, max_size=5),
    st.sampled_from(sorted(STYLES)),
    st.integers(1, 70),
    st.integers(1, 70),
)
@settings(max_examples=60)
def test_bgr_is_rgb_turned_round_and_the_image_stays(rows, style, width, height):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = image.copy()
    found = Path(points=[row[:2] for row in rows], gripper_open=[row[2] for row in rows])
    rgb = overlay(image, found, style=STYLES[style])
    bgr = overlay(image[..., ::-1], found, style=STYLES[style], order="bgr")
    assert np.array_equal(rgb, bgr[..., ::-1])
    assert np.array_equal(image, before)
    stacked = concat(image, found, style=STYLES[style])
    assert stacked.shape == (height, width, 6)
    assert stacked.dtype == np.uint8
    assert np.array_equal(stacked[..., :3], image)
    painted = stacked[..., 3:].any(axis=2)
    assert np.array_equal(stacked[..., 3:][painted], rgb[painted])
    assert np.array_equal(image[~painted], rgb[~painted])


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_paths_without_length_are_a_ring(style, count, place):
    drawn = overlay(blank(128, 96), path(*[place] * count), style=style)
    assert len(coloured(drawn, style.closed)[0]) > 0
    assert (drawn.any(axis=2)).sum() == len(coloured(drawn, style.closed)[0])


def test_thick_lines_have_no_notches():
    turns = path((0.3, 0.3), (0.31, 0.5), (0.5, 0.5), (0.5, 0.3), (0.4, 0.4), (0.3, 0.7))
    drawn = overlay(blank(2048, 2048), turns, style=DEMO).any(axis=2)
    for x, y in turns.resampled(100).pixels(2048, 2048)[1:]:
        assert drawn[y - 2 : y + 3, x - 2 : x + 3].all()


@pytest.mark.parametrize("image", [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_only_images_are_drawn_on(image):
    with pytest.raises(ValueError, match="needs uint8"):
        overlay(image, path((0.5, 0.5)), style=DEMO)
