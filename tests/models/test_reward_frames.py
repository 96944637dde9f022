"""Frame policies by name: the table of public code, first and last kept, and windows read off others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rewards.frames import FramePolicy, merged, windows

NAMES = st.one_of(
    st.just("all"),
    st.builds(
        "-".join,
        st.one_of(
            st.tuples(st.just("linspace"), st.integers(1, 20).map(str)),
            st.tuples(st.just("linspace"), st.integers(1, 20).map(str), st.sampled_from(["pad", "repeat"])),
            st.tuples(st.just("floor"), st.integers(1, 20).map(str)),
            st.tuples(st.just("last"), st.integers(1, 20).map(str)),
            st.tuples(st.just("last"), st.integers(1, 20).map(str), st.just("pad")),
        ),
    ),
)


@pytest.mark.parametrize(
    ("name", "length", "expected"),
    [
        ("linspace-8", 11, (0, 1, 3, 4, 6, 7, 9, 10)),
        ("linspace-8", 3, (0, 1, 2)),
        ("linspace-8-pad", 3, (0, 1, 2, 2, 2, 2, 2, 2)),
        ("linspace-4-repeat", 1, (0, 0, 0, 0)),
        ("linspace-4-repeat", 3, (0, 1, 1, 2)),
        ("floor-4", 1, (0, 0, 0, 0)),
        ("floor-4", 3, (0, 0, 1, 2)),
        ("floor-4", 11, (0, 3, 6, 10)),
        ("last-8", 11, (3, 4, 5, 6, 7, 8, 9, 10)),
        ("last-8", 2, (0, 1)),
        ("last-8-pad", 2, (0, 1, 1, 1, 1, 1, 1, 1)),
        ("all", 4, (0, 1, 2, 3)),
        ("linspace-1", 5, (4,)),
    ],
)
def test_each_policy_shows_what_its_caller_showed(name, length, expected):
    assert FramePolicy.parse(name).indices(length) == expected


@given(NAMES, st.integers(1, 200))
def test_what_is_shown_is_in_order_within_the_clip_and_ends_with_its_last_frame(name, length):
    policy = FramePolicy.parse(name)
    shown = policy.indices(length)
    assert policy.name == name
    assert list(shown) == sorted(shown)
    assert shown[-1] == length - 1
    assert shown[0] >= 0
    if name != "all":
        assert len(shown) <= policy.count
    if policy.kind == "linspace" and policy.count > 1:
        assert shown[0] == 0


@pytest.mark.parametrize(
    "name", ["", "linspace", "linspace-0", "linspace-8-floor", "floor-4-pad", "last-8-repeat", "tail"]
)
def test_an_unknown_name_is_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match="linspace-K"):
        FramePolicy.parse(name)


def test_modes():
    policy = FramePolicy.parse("linspace-3")
    assert windows(policy, "final", 5) == windows(policy, "single_pass", 5) == [(0, 2, 4)]
    assert windows(policy, "prefix", 4) == [(0,), (0, 1), (0, 1, 2), (0, 2, 3)]
    with pytest.raises(ValueError, match="single_pass, prefix, final"):
        windows(policy, "all", 3)
    with pytest.raises(ValueError, match="at least one frame"):
        windows(policy, "prefix", 0) or policy.indices(0)


@given(NAMES, st.integers(1, 40))
def test_merged_windows_answer_every_window(name, length):
    wanted = windows(FramePolicy.parse(name), "prefix", length)
    queries, readings = merged(wanted)
    assert len(queries) <= len(wanted)
    for window, reading in zip(wanted, readings, strict=True):
        assert queries[reading.query][: reading.position + 1] == window
    if name == "all":
        assert len(queries) == 1


def test_rounding_is_that_of_numpy_and_torch():
    assert FramePolicy.parse("linspace-3-repeat").indices(2) == tuple(np.round(np.linspace(0, 1, 3)).astype(int))
