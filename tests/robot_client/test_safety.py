from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clients.contract import Vector
from clients.errors import RoboserveError
from robot_client.hold import hold_action
from robot_client.safety import Safety, SafetyConfig

MIXED = Vector(
    names=("x", "grip", "speed"),
    units=("m", "fraction", "m/s"),
    kinds=("delta", "absolute", "velocity"),
    low=(-0.1, 0.0, -2.0),
    high=(0.1, 1.0, 2.0),
)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_hold_repeats_what_is_absolute_and_zeroes_what_moves():
    np.testing.assert_array_equal(hold_action(MIXED, f32(0.1, 0.7, 2.0)), f32(0.0, 0.7, 0.0))


def test_a_hold_before_any_command_is_zero_where_that_is_safe_and_silence_where_it_is_not():
    velocity = replace(MIXED, kinds=("velocity",) * 3)
    np.testing.assert_array_equal(hold_action(velocity, None), np.zeros(3))
    assert hold_action(MIXED, None) is None


def test_values_beyond_the_limits_are_clamped_and_named():
    checked = Safety(SafetyConfig(), MIXED).check(f32(0.5, 0.5, -9.0), None)
    np.testing.assert_array_equal(checked.action, f32(0.1, 0.5, -2.0))
    assert checked.clamped == ("x", "speed")


def test_the_tighter_of_two_limits_holds():
    robot = replace(MIXED, high=(0.05, 1.0, 3.0))
    checked = Safety(SafetyConfig(), robot, MIXED).check(f32(0.09, 0.5, 2.5), None)
    np.testing.assert_allclose(checked.action, f32(0.05, 0.5, 2.0))


def test_absolute_dimensions_move_by_no_more_than_the_step():
    checked = Safety(SafetyConfig(max_step=0.2), MIXED).check(f32(0.1, 1.0, 2.0), f32(-0.1, 0.3, -2.0))
    np.testing.assert_allclose(checked.action, f32(0.1, 0.5, 2.0))
    assert checked.clamped == ("grip",)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(bad):
    checked = Safety(SafetyConfig(), MIXED).check(f32(0.0, bad, 0.0), None)
    assert checked.action is None
    assert checked.refusal == "action: grip not finite"


def test_another_shape_is_refused():
    assert Safety(SafetyConfig(), MIXED).check(f32(0.0), None).refusal == "action: shape (1,), needs (3,)"


def test_the_users_check_may_refuse_and_one_that_raises_has_refused():
    no_grip = Safety(SafetyConfig(validate=lambda action, last: "grip too hard" if action[1] > 0.8 else None), MIXED)
    assert no_grip.check(f32(0, 0.9, 0), None).refusal == "grip too hard"
    assert no_grip.check(f32(0, 0.5, 0), None).refusal is None
    broken = Safety(SafetyConfig(validate=lambda action, last: str(last[0])), MIXED)
    assert broken.check(f32(0, 0.5, 0), None).action is None
    assert "TypeError" in broken.check(f32(0, 0.5, 0), None).refusal


def test_the_users_check_cannot_change_the_command():
    def meddle(action, last):
        action[:] = 99.0

    checked = Safety(SafetyConfig(validate=meddle), MIXED).check(f32(0, 0.5, 0), None)
    np.testing.assert_array_equal(checked.action, f32(0, 0.5, 0))


def test_limits_that_leave_no_room_are_refused():
    with pytest.raises(RoboserveError, match="grip"):
        Safety(SafetyConfig(), MIXED, replace(MIXED, low=(-0.1, 2.0, -2.0), high=(0.1, 3.0, 2.0)))
    with pytest.raises(RoboserveError, match="grip"):
        Safety(SafetyConfig(), replace(MIXED, low=(-0.1, float("nan"), -2.0)))
    with pytest.raises(RoboserveError, match="max_step"):
        Safety(SafetyConfig(max_step=0.0), MIXED)


@given(
    action=hnp.arrays(np.float32, 3, elements=st.floats(width=32)),
    last=st.none() | hnp.arrays(np.float32, 3, elements=st.floats(0, 1, width=32)),
)
def test_what_is_sent_is_always_finite_and_within_the_limits(action, last):
    checked = Safety(SafetyConfig(max_step=0.25), MIXED).check(action, last)
    if checked.action is None:
        assert not np.isfinite(action).all()
        return
    assert np.isfinite(checked.action).all()
    assert (checked.action >= f32(*MIXED.low)).all()
    assert (checked.action <= f32(*MIXED.high)).all()
    if last is not None:
        assert abs(checked.action[1] - last[1]) <= 0.25 + 1e-6
