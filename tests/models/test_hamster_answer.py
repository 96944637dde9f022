"""A path's answer: written, read, and never run."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.hamster.answer import (
    AnswerError,
    AnswerLimits,
    AnswerStyle,
    Issue,
    format_answer,
    parse_answer,
)
from models.hamster.path import Path

OPENS, CLOSES = "<action>Open Gripper</action>", "<action>Close Gripper</action>"
UNIT = st.floats(0.0, 1.0)
PATHS = st.lists(st.tuples(UNIT, UNIT, st.booleans()), min_size=1, max_size=20).map(
    lambda rows: Path(points=[row[:2] for row in rows], gripper_open=[row[2] for row in rows])
)


def read(body: str, **options):
    return parse_answer(f"<ans>[{body}]</ans>", **options)


def tried(text: str, **options):
    """Return what a text gives, a path or the one kind of error that is allowed."""
    try:
        return parse_answer(text, **options)
    except AnswerError as error:
        return error


def flags(body: str, **options) -> list[int]:
    return read(body, **options).path.gripper_open.astype(int).tolist()


@given(PATHS, st.booleans(), st.integers(1, 6))
def test_what_is_written_is_read(path, initial_open, decimals):
    text = format_answer(path, style=AnswerStyle(decimals=decimals), initial_open=initial_open)
    found = parse_answer(f"Let me see.\n{text}\n", initial_open=initial_open)
    assert found.issues == ()
    assert found.form == "tuples"
    assert found.depths is None
    assert np.array_equal(found.path.gripper_open, path.gripper_open)
    assert np.abs(found.path.points - path.points).max() <= 0.5 * 10**-decimals + 1e-12
    assert format_answer(found.path, style=AnswerStyle(decimals=decimals), initial_open=initial_open) == text


def test_an_answer_in_full():
    path = Path(points=[[0.25, 0.5], [0.125, 1.0], [0.0, 0.0]], gripper_open=[True, True, False])
    assert format_answer(path) == f"<ans>[(0.25, 0.50), {OPENS}, (0.12, 1.00), (0.00, 0.00), {CLOSES}]</ans>"
    assert format_answer(path, initial_open=True).startswith("<ans>[(0.25, 0.50), (0.12,")
    with pytest.raises(ValueError, match="at most 2"):
        format_answer(path, style=AnswerStyle(max_points=2))
    for wrong in ({"decimals": 0}, {"decimals": 7}, {"max_points": 0}):
        with pytest.raises(ValueError, match="must be"):
            AnswerStyle(**wrong)


def test_a_tag_holds_from_the_point_before_it():
    points = ["(0.1, 0.1)", "(0.2, 0.2)", "(0.3, 0.3)"]
    assert flags(", ".join(points)) == [0, 0, 0]
    assert flags(", ".join(points), initial_open=True) == [1, 1, 1]
    assert flags(f"{points[0]}, {OPENS}, {points[1]}, {points[2]}") == [1, 1, 1]
    assert flags(f"{points[0]}, {points[1]}, {OPENS}, {points[2]}") == [0, 1, 1]
    assert flags(f"{points[0]}, {OPENS}, {points[1]}, {CLOSES}, {points[2]}") == [1, 0, 0]
    assert flags(f"{points[0]}, {points[1]}, {points[2]}, {OPENS}") == [0, 0, 1]


def test_a_tag_before_all_points_is_the_first_points_and_told():
    found = read(f"{OPENS}, (0.1, 0.1), (0.2, 0.2)")
    assert found.path.gripper_open.tolist() == [True, True]
    assert found.issues == (Issue(code="tag_before_points", points=(0,)),)


def test_two_states_for_one_point_are_told():
    found = read(f"(0.1, 0.1), {OPENS}, {CLOSES}, (0.2, 0.2), {CLOSES}, {CLOSES}")
    assert found.path.gripper_open.tolist() == [False, False]
    assert found.issues == (Issue(code="conflicting_tags", points=(0,)),)


def test_triples_carry_their_state():
    assert flags("(0.1, 0.1, 1), (0.2, 0.2, 0), (0.3, 0.3)") == [1, 0, 0]
    assert flags("(0.1, 0.1, 1.0), (0.3, 0.3)") == [1, 1]
    with pytest.raises(AnswerError, match="must be 0 or 1"):
        read("(0.1, 0.1, 2)")


def test_loose_notation_is_read():
    found = parse_answer("<ANS>\n[ ( .5 ,1e-1 ),<action> close  gripper </action>, (+0.25,1.) , ] </ans>")
    assert found.path.points.tolist() == [[0.5, 0.1], [0.25, 1.0]]
    assert found.issues == ()
    assert read(f"(0.1, 0.1) {OPENS} (0.2, 0.2)").issues == (Issue(code="missing_comma"),)
    for text in ("<ans>[(0.1, 0.1)</ans>", "<ans>(0.1, 0.1)</ans>", "<ans></ans> <ans> (0.1, 0.1)]</ans>"):
        assert parse_answer(text).issues == (Issue(code="unbracketed"),)


def test_text_around_the_answer_is_passed_over():
    text = "I answer inside <ans></ans>, e.g. (9, 9) [{no]. <ans>[(0.1, 0.2)]</ans> Done. <ans>[(0.3, 0.4)]</ans>"
    found = parse_answer(text)
    assert found.path.points.tolist() == [[0.1, 0.2]]
    assert found.issues == (Issue(code="several_answers"),)


WHOLE = f"<ans>[(0.25, 0.50), {OPENS}, (0.50, 0.75), (0.75, 1.00), {CLOSES}]</ans>"


@pytest.mark.parametrize("cut", range(len("<ans>[(0.25, 0.50)"), len(WHOLE)))
def test_an_answer_cut_anywhere_keeps_its_whole_items(cut):
    whole, found = parse_answer(WHOLE), parse_answer(WHOLE[:cut])
    assert found.has("truncated")
    count = len(found.path)
    assert np.array_equal(found.path.points, whole.path.points[:count])
    assert count == WHOLE[:cut].count(")")
    assert len(found.issues) == 1


def test_coordinates_outside_are_clipped_and_flagged():
    found = read("(-0.2, 0.5), (0.5, 0.5), (0.5, 1.0001), (1000, 1000)")
    assert found.path.points.tolist() == [[0.0, 0.5], [0.5, 0.5], [0.5, 1.0], [1.0, 1.0]]
    assert found.issues == (Issue(code="out_of_range", points=(0, 2, 3)),)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "no_answer"),
        ("[(0.1, 0.2)]", "no_answer"),
        ("<ans>0.1, 0.2</ans>", "no_answer"),
        ("<ans>[(0.1, 0.2), ...]</ans>", "malformed"),
        ("<ans>[]</ans>", "no_points"),
        ("<ans>[", "no_points"),
        (f"<ans>[{OPENS}]</ans>", "no_points"),
        ("<ans>[(nan, 0.2)]</ans>", "not_finite"),
        ("<ans>[(0.1, -inf)]</ans>", "not_finite"),
        ("<ans>[(0.1, 1e999)]</ans>", "not_finite"),
        ("<ans>[(0.1, 0.2), wait]</ans>", "malformed"),
        ("<ans>[(0.1, 0.2), wait", "malformed"),
        ("<ans>[, (0.1, 0.2)]</ans>", "malformed"),
        ("<ans>[(0.1, 0.2),, (0.1, 0.2)]</ans>", "malformed"),
        ("<ans>[(0.1)]</ans>", "malformed"),
        ("<ans>[(0.1, 0.2]</ans>", "malformed"),
        ("<ans>[(0.1, 0.2)] and more</ans>", "malformed"),
        ("<ans>[<action>Fly</action>]</ans>", "malformed"),
        ("<ans>[(\u0660.\u0661, 0.2)]</ans>", "malformed"),
        ("<ans>[" + "(0.1, 0.2), " * 300 + "]</ans>", "too_many_points"),
        ("x" * 20_000, "too_long"),
    ],
)
def test_what_is_no_path_has_a_typed_error(text, code):
    with pytest.raises(AnswerError) as caught:
        parse_answer(text)
    assert caught.value.code == code
    assert len(str(caught.value)) < 200


def test_limits_are_the_callers():
    with pytest.raises(AnswerError, match="at most 10"):
        parse_answer(WHOLE, limits=AnswerLimits(max_chars=10))
    with pytest.raises(AnswerError, match="more than 2 points"):
        parse_answer(WHOLE, limits=AnswerLimits(max_points=2))


def objects(*items) -> str:
    return json.dumps(list(items))


def test_a_3d_answer_is_read():
    text = objects(
        {"point_3d": [100, 200, 0.5], "label": "start", "gripper": "none"},
        {"point_3d": [500, 1000, 0.75], "label": "grasp [0] {x}", "gripper": "close"},
        {"point_3d": [1001, -3, 1], "gripper": "OPEN"},
        {"point_3d": [0, 0, 1]},
    )
    for wrapped in (text, f"```json\n{text}\n```", f"<ans>{text}</ans>"):
        found = parse_answer(wrapped, initial_open=True)
        assert found.form == "objects"
        assert found.path.points.tolist() == [[0.1, 0.2], [0.5, 1.0], [1.0, 0.0], [0.0, 0.0]]
        assert found.path.gripper_open.tolist() == [True, False, True, True]
        assert found.depths.tolist() == [0.5, 0.75, 1.0, 1.0]
        assert found.issues == (Issue(code="out_of_range", points=(2,)),)


def test_a_3d_answer_that_breaks_off_keeps_its_whole_objects():
    text = objects({"point_3d": [100, 200, 0.5]}, {"point_3d": [300, 400, 0.5]})
    for cut in range(text.index("}") + 1, len(text)):
        found = parse_answer(text[:cut])
        assert len(found.path) == text[:cut].count("}")
        assert found.issues == (Issue(code="truncated"),)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('[{"point_3d": [1, 2]}]', "malformed"),
        ('[{"point_3d": [1, 2, true]}]', "malformed"),
        ('[{"point_3d": "1, 2, 3"}]', "malformed"),
        ('[{"point_3d": [1, 2, 3], "gripper": "wave"}]', "malformed"),
        ('[{"point_3d": [1, 2, 3], "gripper": []}]', "malformed"),
        ('[{"point_3d": [1, 2, 3]} {"point_3d": [1, 2, 3]}]', "malformed"),
        ('[{"point_3d": [1, 2, 3]}, 4]', "malformed"),
        ("[{'point_3d': [1, 2, 3]}]", "malformed"),
        ('[{"point_3d": [NaN, 2, 3]}]', "not_finite"),
        ('[{"point_3d": [1, 2, Infinity]}]', "not_finite"),
        ('[{"point_3d": [1, ' + "9" * 8000 + ", 3]}]", "not_finite"),
        ('[{"label": "no point"}]', "malformed"),
        ('[{"a":' + "[" * 16_000, "malformed"),
    ],
)
def test_what_is_no_3d_path_has_a_typed_error(text, code):
    with pytest.raises(AnswerError) as caught:
        parse_answer(text)
    assert caught.value.code == code


PIECES = st.lists(
    st.sampled_from(
        [
            *("<ans>", "</ans>", "[", "]", "(", ")", ",", " ", "0.5", "1", "-", "e9", "nan", OPENS, CLOSES, "<action>"),
            *("{", "}", '"point_3d"', ":", '"gripper"', '"open"', "(0.1, 0.2)", "(0.1, 0.2, 1)", "\n", "\ud800"),
        ]
    ),
    max_size=40,
).map("".join)


@given(st.one_of(st.text(max_size=300), PIECES, PIECES.map(lambda text: f"<ans>[{text}")), st.booleans())
@example("<ans>[\x00", False)
def test_any_text_is_a_path_or_a_typed_error(text, initial_open):
    found = tried(text, initial_open=initial_open)
    if isinstance(found, AnswerError):
        assert str(found).isascii()
    else:
        assert format_answer(found.path, style=AnswerStyle(max_points=256), initial_open=initial_open)


ATTACKS = [
    "__import__('os').system('touch pwned')",
    "(__import__('os').system('touch pwned'), 0.5)",
    "(0.1, 0.2) if open('pwned', 'w') else (0.1, 0.2)",
    "*[x for x in ().__class__.__base__.__subclasses__()]",
    "(0.1, exec('raise SystemExit'))",
    "(lambda: 0)()",
    "(9**9**9, 0.1)",
    "f'{7*7}'",
    "$(touch pwned)",
    '<action>__import__("os")</action>',
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_and_nothing_runs(attack, monkeypatch, tmp_path):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("a model's text was run")

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        for place, name in ((builtins, "eval"), (builtins, "exec"), (os, "system"), (subprocess, "Popen")):
            patch.setattr(place, name, forbidden)
        for text in (f"<ans>[{attack}]</ans>", f"<ans>[(0.1, 0.2), {attack}]</ans>", f'[{{"point_3d": {attack}}}]'):
            with pytest.raises(AnswerError):
                parse_answer(text)
    assert not list(tmp_path.iterdir())


LIMIT = AnswerLimits().max_chars


@pytest.mark.parametrize(
    "unit",
    [
        *("(", "[", "<ans>[", "<ans>", "<ans>[(", " ", "\n", "1", "(1", "(0.1,", "(0.1, 0.2), ", "(0.1, 0.2)", "[ "),
        *("<action>", "<action>open ", OPENS, "{", "[{", '[{"a":[', "</ans>", ",", "e", "(-+.,e", "(1.1e1,1.1e1,", "("),
    ],
)
def test_nasty_text_takes_bounded_time(unit):
    for start in ("", "<ans>[", "<ans>[(0.1, 0.2) ", "<ans>[(0.1, ", "<ans>[(0.1, 0.2", '[{"point_3d": '):
        for end in ("", "]</ans>", "</ans>", "!"):
            text = (start + unit * LIMIT)[: LIMIT - len(end)] + end
            began = time.process_time()
            tried(text)
            assert time.process_time() - began < 0.25
