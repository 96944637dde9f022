"""The answer's grammar: whatever it allows can be read, and whatever is written it allows."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.hamster.answer import AnswerStyle, format_answer, parse_answer
from models.hamster.grammar import answer_grammar, answer_regex, longest_answer
from models.hamster.path import Path

UNIT = st.floats(0.0, 1.0)
PATHS = st.lists(st.tuples(UNIT, UNIT, st.booleans()), min_size=1, max_size=5).map(
    lambda rows: Path(points=[row[:2] for row in rows], gripper_open=[row[2] for row in rows])
)
STYLES = [AnswerStyle(), AnswerStyle(decimals=1, max_points=1), AnswerStyle(decimals=3, max_points=5)]


def as_regex(grammar: str) -> str:
    """Read a GBNF grammar without recursion as a regular expression: rules put in for their names."""
    rules = dict(line.split(" ::= ") for line in grammar.splitlines())

    def expanded(rule: str) -> str:
        parts = re.findall(r'"[^"]*"|\[[^\]]*\]|\{[^}]*\}|[()|?]|[a-z]+', rule)
        assert "".join(parts) == re.sub(r' (?=(?:[^"]*"[^"]*")*[^"]*$)', "", rule)
        return "".join(
            f"(?:{expanded(rules[part])})" if part in rules else re.escape(part[1:-1]) if part.startswith('"') else part
            for part in parts
        )

    return expanded(rules["root"])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("preface", [0, 12])
def test_every_text_of_either_grammar_is_a_whole_answer(style, preface):
    regex = answer_regex(style, preface_chars=preface)
    gbnf = as_regex(answer_grammar(style, preface_chars=preface))

    @settings(max_examples=20)
    @given(st.from_regex(regex, fullmatch=True), st.from_regex(gbnf, fullmatch=True))
    def check(one, other):
        for text in (one, other):
            found = parse_answer(text)
            assert found.issues == ()
            assert 1 <= len(found.path) <= style.max_points
            assert len(text) <= longest_answer(style, preface_chars=preface)
        assert re.fullmatch(gbnf, one)
        assert re.fullmatch(regex, other)

    check()


@given(PATHS, st.booleans(), st.integers(1, 6))
def test_what_is_written_fits_the_grammar(path, initial_open, decimals):
    style = AnswerStyle(decimals=decimals, max_points=5)
    text = format_answer(path, style=style, initial_open=initial_open)
    assert re.fullmatch(answer_regex(style), text)
    assert re.fullmatch(as_regex(answer_grammar(style)), text)


def test_the_longest_answer_is_that_long():
    style = AnswerStyle(decimals=3, max_points=7)
    path = Path(points=[[0.5, 0.5]] * 7, gripper_open=[bool(number % 2) for number in range(7)])
    text = format_answer(path, style=style, initial_open=True)
    assert len(text) == longest_answer(style) - 3 * len("s") * (len("Close") - len("Open"))


@pytest.mark.parametrize(
    "text",
    [
        "<ans>[]</ans>",
        "<ans>[(1.01, 0.50)]</ans>",
        "<ans>[(0.5, 0.5)]</ans>",
        "<ans>[(-0.50, 0.50)]</ans>",
        "<ans>[<action>Open Gripper</action>]</ans>",
        "<ans>[(0.50, 0.50)]</ans> ",
        "I see <ans>[(0.50, 0.50)]</ans>",
        "<ans>[" + ", ".join(["(0.50, 0.50)"] * 21) + "]</ans>",
    ],
)
def test_the_grammar_refuses_the_rest(text):
    assert not re.fullmatch(answer_regex(), text)
    assert not re.fullmatch(as_regex(answer_grammar()), text)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("preface", [0, 12])
@pytest.mark.parametrize("kind", ["regex", "gbnf"])
def test_a_constrained_decoder_goes_by_it(style, preface, kind):
    llguidance = pytest.importorskip("llguidance")
    from llguidance.gbnf_to_lark import gbnf_to_lark

    matcher, vocabulary = llguidance.LLMatcher, llguidance.LLTokenizer("byte")
    grammar = (
        matcher.grammar_from_regex(answer_regex(style, preface_chars=preface))
        if kind == "regex"
        else matcher.grammar_from_lark(gbnf_to_lark(answer_grammar(style, preface_chars=preface)))
    )
    assert not matcher.validate_grammar(grammar)
    random = np.random.default_rng(0)
    for _ in range(5):
        state, answer = matcher(vocabulary, grammar), b""
        while not state.is_stopped():
            packed = np.frombuffer(state.compute_bitmask(), np.uint8)
            allowed = np.flatnonzero(np.unpackbits(packed, bitorder="little")[: vocabulary.vocab_size])
            token = int(random.choice(allowed[(allowed < 127) | (allowed == vocabulary.eos_token)]))
            state.consume_token(token)
            answer += b"" if token == vocabulary.eos_token else bytes([token])
        assert parse_answer(answer.decode()).issues == ()


def test_a_preface_is_bounded():
    answer = "<ans>[(0.50, 0.50)]</ans>"
    regex = answer_regex(preface_chars=5)
    assert re.fullmatch(regex, "12345" + answer)
    assert not re.fullmatch(regex, "123456" + answer)
    assert not re.fullmatch(regex, "1<345" + answer)
    with pytest.raises(ValueError, match="preface_chars"):
        answer_grammar(preface_chars=-1)


def test_the_grammar_reads_as_gbnf():
    assert answer_grammar(AnswerStyle(max_points=3)).splitlines() == [
        'root ::= "<ans>[" item (", " item){0,2} "]</ans>"',
        'item ::= "(" unit ", " unit ")" (", " action)?',
        'unit ::= "0." [0-9] [0-9] | "1.00"',
        'action ::= "<action>Open Gripper</action>" | "<action>Close Gripper</action>"',
    ]
