"""What an answer may look like, as a regular expression and as a grammar, for decoders that allow nothing else.

Both stand for the same texts: those that `format_answer` writes, and those that differ from one only by a tag that
repeats the state. Every one of them can be parsed and has no issue. The regular expression has no anchors,
look-arounds or shorthand classes, and the grammar is in GBNF as llama.cpp and xgrammar read it; vLLM takes either
(structured outputs, `regex` or `grammar`).
"""

from __future__ import annotations

import re

from models.hamster.answer import CLOSES, END, OPENS, START, AnswerStyle

_STYLE = AnswerStyle()


def answer_regex(style: AnswerStyle = _STYLE, *, preface_chars: int = 0) -> str:
    """Return a regular expression that has to match a whole answer.

    Args:
        preface_chars: most characters of free text in front of `<ans>`, none of them "<"; for models that think first.

    Raises:
        ValueError: `preface_chars` below 0.
    """
    unit = rf"0\.{'[0-9]' * style.decimals}"
    if style.ones:
        unit = rf"({unit}|1\.{'0' * style.decimals})"
    action = f"({OPENS}|{CLOSES})"
    item = rf"\({unit}, {unit}\)(, {action})?"
    more = f"(, {item}){{0,{style.max_points - 1}}}" if style.max_points > 1 else ""
    return f"{_preface(preface_chars)}{re.escape(START)}{item}{more}{re.escape(END)}"


def answer_grammar(style: AnswerStyle = _STYLE, *, preface_chars: int = 0) -> str:
    """Return the same as GBNF, one rule a line, `root` first; arguments and errors as for `answer_regex`."""
    more = f' (", " item){{0,{style.max_points - 1}}}' if style.max_points > 1 else ""
    preface = f"{_preface(preface_chars)} " if preface_chars else ""
    one = f' | "1.{"0" * style.decimals}"' if style.ones else ""
    rules = (
        f'root ::= {preface}"{START}" item{more} "{END}"',
        'item ::= "(" unit ", " unit ")" (", " action)?',
        f'unit ::= "0." {" ".join(["[0-9]"] * style.decimals)}{one}',
        f'action ::= "{OPENS}" | "{CLOSES}"',
    )
    return "\n".join(rules) + "\n"


def longest_answer(style: AnswerStyle = _STYLE, *, preface_chars: int = 0) -> int:
    """Return the most characters that such an answer has: with fewer tokens than these, a decoder may cut it off.

    A token is one character or more, so this many tokens always suffice.
    """
    point = len("(, )") + 2 * (len("0.") + style.decimals)
    item = point + len(", ") + max(len(OPENS), len(CLOSES))
    return preface_chars + len(START) + style.max_points * item + (style.max_points - 1) * len(", ") + len(END)


def _preface(chars: int) -> str:
    if chars < 0:
        raise ValueError(f"preface_chars {chars}: must be 0 or more")
    return f"[^<]{{0,{chars}}}" if chars else ""
