"""The answer of a path predictor: written as text, and read back without ever evaluating it.

    <ans>[(0.25, 0.32), <action>Close Gripper</action>, (0.74, 0.21), <action>Open Gripper</action>]</ans>

Grammar and meaning are those of HAMSTER's public demo (HAMSTER_beta, gradio_server_example.py): x and y are 0 to 1 of
the image's width and height, and a tag sets the gripper's state of the point just before it and of all later ones.
Triples (x, y, 0 or 1) as in the project page's figures are read too, and the JSON of its 3D successor (`answer_3d`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from models.hamster.answer_3d import read_objects
from models.hamster.draft import AnswerError, Draft, Issue, IssueCode, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.hamster.path import Path

__all__ = [
    "AnswerError",
    "AnswerLimits",
    "AnswerStyle",
    "Issue",
    "IssueCode",
    "ParsedAnswer",
    "format_answer",
    "parse_answer",
]

OPENS, CLOSES = "<action>Open Gripper</action>", "<action>Close Gripper</action>"
START, END = "<ans>[", "]</ans>"

# Every quantifier is possessive or bounded, and no two neighbours match the same character: reading is linear in time.
_NUMBER = r"[-+]?(?:(?:\d{1,40}+(?:\.\d{0,40}+)?|\.\d{1,40}+)(?:[eE][-+]?\d{1,4}+)?|nan|inf(?:inity)?)"
_POINT = re.compile(rf"\(\s*+({_NUMBER})\s*+,\s*+({_NUMBER})\s*+(?:,\s*+({_NUMBER})\s*+)?\)", re.ASCII | re.IGNORECASE)
_TAG = re.compile(r"<action>\s*+(open|close)\s++gripper\s*+</action>", re.ASCII | re.IGNORECASE)
_SPACE = re.compile(r"\s*+", re.ASCII)
_LIST = re.compile(r"<ans>\s*+\[", re.ASCII | re.IGNORECASE)
_BARE = re.compile(r"<ans>\s*+(?=\(|<action>)", re.ASCII | re.IGNORECASE)
_OPENING = re.compile(r"<ans>", re.ASCII | re.IGNORECASE)
_CLOSING = re.compile(r"</ans>", re.ASCII | re.IGNORECASE)
_OBJECTS = re.compile(r"\[\s*+(?=\{)", re.ASCII)
_CUT_POINT = re.compile(r"\([-+\d.,\seE]*+\Z", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class AnswerStyle:
    """How answers are written: what a model is taught, and what constrained decoding allows.

    Attributes:
        decimals: of every coordinate, 1 to 6; HAMSTER writes 2.
        max_points: 1 to 256; more than these are not written.
        ones: whether a coordinate may be 1; otherwise the largest is the one before it (0.99). A decoder that is held
            to the grammar writes what cannot be otherwise in pieces of its own choice, which a model that was taught
            "(0." as one token never saw; without ones that piece cannot be otherwise as a whole.

    Raises:
        ValueError: a value outside its range.
    """

    decimals: int = 2
    max_points: int = 20
    ones: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.decimals <= 6:
            raise ValueError(f"decimals {self.decimals}: must be 1 to 6")
        if not 1 <= self.max_points <= 256:
            raise ValueError(f"max_points {self.max_points}: must be 1 to 256")


@dataclass(frozen=True, kw_only=True)
class AnswerLimits:
    """What is read at most: characters of the whole text, points of its path."""

    max_chars: int = 16_384
    max_points: int = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class ParsedAnswer:
    """A path read off an answer.

    Attributes:
        path: in the coordinates of the image that the model saw.
        issues: what was odd, each kind once; empty for an answer as it should be.
        form: the notation that it stood in.
        depths: float64 (n,), metres, where a 3D answer gave them.
    """

    path: Path
    issues: tuple[Issue, ...]
    form: Literal["tuples", "objects"]
    depths: NDArray[np.float64] | None

    def has(self, code: IssueCode) -> bool:
        """Whether an issue of that code was found."""
        return any(issue.code == code for issue in self.issues)


_STYLE = AnswerStyle()
_LIMITS = AnswerLimits()


def format_answer(path: Path, *, style: AnswerStyle = _STYLE, initial_open: bool = False) -> str:
    """Write a path; reading it with the same `initial_open` gives its gripper states, and its points as rounded.

    Args:
        initial_open: the state that the reader starts from. A tag stands after each point whose state differs from that
            of the point before, and after the first one if its state differs from this.

    Raises:
        ValueError: more points than the style has.
    """
    if len(path) > style.max_points:
        raise ValueError(f"path: {len(path)} points, the answer's style has at most {style.max_points}")
    items, state = [], initial_open
    points = path.points if style.ones else path.points.clip(max=1.0 - 10.0**-style.decimals)
    for (x, y), is_open in zip(points.tolist(), path.gripper_open.tolist(), strict=True):
        items.append(f"({x:.{style.decimals}f}, {y:.{style.decimals}f})")
        if is_open != state:
            items.append(OPENS if is_open else CLOSES)
            state = is_open
    return f"{START}{', '.join(items)}{END}"


def parse_answer(text: str, *, initial_open: bool = False, limits: AnswerLimits = _LIMITS) -> ParsedAnswer:
    """Read a path off a model's answer; any text at all gives a result or an `AnswerError`, in time linear in it.

    Text before the answer and after it is passed over. An answer that breaks off inside an item loses that item only.

    Args:
        initial_open: the state before the first tag. False is the demo's: a path without tags is one of a closed
            gripper.

    Raises:
        AnswerError: the text holds no path.
    """
    if len(text) > limits.max_chars:
        raise AnswerError("too_long", f"answer: {len(text)} characters, at most {limits.max_chars} are read")
    draft = Draft(initial_open=initial_open, max_points=limits.max_points)
    form = _read(text, draft)
    path = draft.path()
    return ParsedAnswer(path=path, issues=draft.issues(), form=form, depths=draft.depths())


def _read(text: str, draft: Draft) -> Literal["tuples", "objects"]:
    found = _LIST.search(text)
    objects = _OBJECTS.match(text, found.end() - 1) if found else _OBJECTS.search(text)
    if objects:
        read_objects(text, objects.end(), draft)
        return "objects"
    if found is None:
        found = _BARE.search(text)
        if found is None:
            raise AnswerError("no_answer", f"answer: no <ans>[ in it; it begins {shown(text)}")
        draft.odd("unbracketed")
    _read_items(text, found.end(), draft)
    return "tuples"


def _read_items(text: str, start: int, draft: Draft) -> None:
    """Read the items from `start`, behind the opening bracket, to the closing tag or where they break off."""
    closing = _CLOSING.search(text, start)
    end = closing.start() if closing else len(text)
    if closing is None:
        draft.odd("truncated")
    elif _OPENING.search(text, closing.end()):
        draft.odd("several_answers")
    position, comma = _skip(text, start, end), True
    while position < end and text[position] != "]":
        after = _read_item(text, position, end, draft)
        if after is None:
            if closing is None and _breaks_off(text[position:end]):
                return
            raise AnswerError(
                "malformed", f"answer: no point and no action: {shown(text[position:end])}", position=position
            )
        if not comma:
            draft.odd("missing_comma")
        position = _skip(text, after, end)
        comma = text.startswith(",", position, end)
        if comma:
            position = _skip(text, position + 1, end)
    if closing is None:
        return
    if position == end:
        draft.odd("unbracketed")
    elif (rest := _skip(text, position + 1, end)) < end:
        raise AnswerError("malformed", f"answer: after its list stands {shown(text[rest:end])}", position=rest)


def _skip(text: str, position: int, end: int) -> int:
    space = _SPACE.match(text, position, end)
    return space.end() if space else position


def _read_item(text: str, position: int, end: int, draft: Draft) -> int | None:
    """Read a point or a tag into the draft and return where it ends; None if there is neither."""
    if tag := _TAG.match(text, position, end):
        draft.action(opens=tag[1].lower() == "open")
        return tag.end()
    point = _POINT.match(text, position, end)
    if point is None:
        return None
    x, y = float(point[1]), float(point[2])
    draft.point(x, y, position=position)
    if point[3] is not None:
        state = float(point[3])
        if state not in {0.0, 1.0}:
            raise AnswerError(
                "malformed", f"answer: a point's third value is {shown(point[3])}, must be 0 or 1", position=position
            )
        draft.action(opens=bool(state))
    return point.end()


def _breaks_off(rest: str) -> bool:
    """Whether a text, whose end was cut off, can be the beginning of an item or of the end."""
    beginning = rest.lower()
    return bool(_CUT_POINT.match(rest)) or any(
        whole.lower().startswith(beginning) for whole in (OPENS, CLOSES, "</ans>")
    )
