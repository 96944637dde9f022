"""Metrics of paths, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.hamster.metrics import Changes, frechet, gripper_changes, parse_rate, point_error, score_paths
from models.hamster.path import Path

UNIT = st.floats(0.0, 1.0)
PATHS = st.lists(st.tuples(UNIT, UNIT, st.booleans()), min_size=1, max_size=8).map(
    lambda rows: Path(points=[row[:2] for row in rows], gripper_open=[row[2] for row in rows])
)


def path(*points, flags=None) -> Path:
    return Path(points=points, gripper_open=flags or [False] * len(points))


def test_parse_rate_counts():
    found = parse_rate(["<ans>[(0.1, 0.2)]</ans>", "<ans>[(0.1, 0.2)", "no", "<ans>[(1.2, 0.2)]</ans>"])
    assert (found.total, found.parsed, found.clean, found.rate) == (4, 3, 1, 0.75)
    with pytest.raises(ValueError, match="none"):
        parse_rate([])


def test_point_error_by_hand():
    one, other = path((0.1, 0.1), (0.9, 0.1)), path((0.1, 0.2), (0.5, 0.2), (0.9, 0.2))
    assert point_error(one, other) == pytest.approx(0.1)
    assert point_error(one, other, aspect=0.5) == pytest.approx(0.05)
    # Points at shares 0, 1/2 and 1 lie 0, 0.25 and 0.5 apart.
    assert point_error(path((0.0, 0.0), (1.0, 0.0)), path((0.0, 0.0), (0.5, 0.0)), samples=3) == pytest.approx(0.25)
    assert point_error(path((0.0, 0.0)), path((0.3, 0.4))) == pytest.approx(0.5)


def test_frechet_by_hand():
    one = path((0.0, 0.0), (0.5, 0.0), (1.0, 0.0))
    bump = path((0.0, 0.0), (0.5, 0.3), (1.0, 0.0))
    assert frechet(one, bump, samples=3) == pytest.approx(0.3)
    assert frechet(one, bump, samples=3, aspect=2.0) == pytest.approx(0.6)
    # The same places in the opposite order: the leash must span the whole path.
    assert frechet(one, path((1.0, 0.0), (0.0, 0.0)), samples=3) == pytest.approx(1.0)
    # On (0, 1/2, 1) against (0, 1/4, 1/2) the walkers wait for each other but end 1/2 apart.
    assert frechet(one, path((0.0, 0.0), (0.5, 0.0)), samples=3) == pytest.approx(0.5)


@given(PATHS, PATHS)
def test_distances_are_bounded_and_symmetric(one, other):
    leash = frechet(one, other, samples=9)
    assert frechet(one, one, samples=9) == 0.0
    assert point_error(one, one, samples=9) == 0.0
    assert leash == pytest.approx(frechet(other, one, samples=9))
    first, second = one.resampled(9).points, other.resampled(9).points
    apart = np.hypot(*(first - second).T)
    assert max(apart[0], apart[-1]) - 1e-12 <= leash <= apart.max() + 1e-12


def test_gripper_changes_by_hand():
    true = path((0.1, 0.1), (0.5, 0.5), (0.9, 0.9), flags=[True, False, True])
    assert gripper_changes(true, true) == Changes(matched=3, predicted=3, true=3)
    assert gripper_changes(true, true, initial_open=True) == Changes(matched=2, predicted=2, true=2)
    near = path((0.1, 0.1), (0.52, 0.48), (0.6, 0.6), flags=[True, False, True])
    assert gripper_changes(near, true) == Changes(matched=2, predicted=3, true=3)
    assert gripper_changes(near, true, radius=0.5).matched == 3
    assert gripper_changes(None, true) == Changes(matched=0, predicted=0, true=3)
    never = path((0.1, 0.1), (0.9, 0.9))
    assert gripper_changes(never, true).f1 == 0.0
    assert gripper_changes(never, never).f1 == 1.0
    assert gripper_changes(near, true).f1 == pytest.approx(2 * 2 / 6)


def test_changes_match_one_to_one_and_in_order():
    place = (0.5, 0.5)
    true = path((0.1, 0.1), place, place, flags=[False, True, False])
    twice = path((0.1, 0.1), place, place, place, place, flags=[False, True, False, True, False])
    assert gripper_changes(twice, true) == Changes(matched=2, predicted=4, true=2)
    swapped = path((0.1, 0.1), place, place, flags=[True, False, False])
    assert gripper_changes(swapped, true, initial_open=False) == Changes(matched=1, predicted=2, true=2)
    # Nearness is in widths: 0.15 of the height of a flat image is 0.075 of its width.
    low = path((0.1, 0.1), (0.5, 0.65), flags=[False, True])
    high = path((0.1, 0.1), (0.5, 0.5), flags=[False, True])
    assert gripper_changes(low, high).matched == 0
    assert gripper_changes(low, high, aspect=0.5).matched == 1


def test_scores_over_pairs():
    true = path((0.1, 0.1), (0.9, 0.1), flags=[False, True])
    shifted = path((0.1, 0.15), (0.9, 0.15), flags=[False, True])
    found = score_paths([(shifted, true), (true, true), (None, true)])
    assert (found.total, found.parsed) == (3, 2)
    assert found.point_error == pytest.approx(0.025)
    assert found.frechet == pytest.approx(0.025)
    assert found.changes == Changes(matched=2, predicted=2, true=3)
    assert found.changes.f1 == pytest.approx(0.8)
    assert math.isnan(score_paths([(None, true)]).frechet)
    with pytest.raises(ValueError, match="none"):
        score_paths([])
