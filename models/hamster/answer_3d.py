"""The answer of HAMSTER's 3D successor: a JSON list of objects, of which a 2D path keeps u, v and the gripper.

    [{"point_3d": [412, 655, 0.61], "label": "...", "gripper": "close"}, ...]

u and v are 0 to 1000 of the image's width and height, the third value is a depth in metres, and the gripper is `close`,
`open` or `none`, which keeps the state (3D_HAMSTER). Other members are passed over.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from models.hamster.draft import AnswerError, shown

if TYPE_CHECKING:
    from models.hamster.draft import Draft

UNITS = 1000.0
_OPENS = {"open": True, "close": False, "none": None}
_SPACE = " \t\r\n"
_DECODER = json.JSONDecoder(parse_int=float)


def read_objects(text: str, start: int, draft: Draft) -> None:
    """Read a list's objects, of which the first begins at `start`, into a draft.

    A list that breaks off keeps its whole objects and is noted as truncated.

    Raises:
        AnswerError: an object is no JSON or not such a point.
    """
    position = start
    while True:
        if position == len(text):
            draft.odd("truncated")
            return
        decoded = _decoded(text, position)
        if decoded is None:
            draft.odd("truncated")
            return
        item, after = decoded
        _read_object(item, position, draft)
        position = _skip(text, after)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif position < len(text) and text[position] != "]":
            raise AnswerError(
                "malformed", f"answer: after an object stands {shown(text[position:])}", position=position
            )
        if text[position : position + 1] == "]":
            return


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def _decoded(text: str, position: int) -> tuple[Any, int] | None:
    """Return the JSON value at a position and where it ends; None if the text ends before it does."""
    if text[position] != "{":
        raise AnswerError("malformed", f"answer: no object: {shown(text[position:])}", position=position)
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        if "}" not in text[position:]:
            return None
        raise AnswerError("malformed", f"answer: not valid JSON: {error.msg}", position=error.pos) from error
    except RecursionError as error:
        raise AnswerError("malformed", "answer: an object is nested too deeply", position=position) from error


def _read_object(item: dict[str, Any], position: int, draft: Draft) -> None:
    point = item.get("point_3d")
    if not isinstance(point, list) or len(point) != 3 or not all(isinstance(value, float) for value in point):
        raise AnswerError("malformed", "answer: point_3d must be three numbers", position=position)
    u, v, depth = point
    if not math.isfinite(depth):
        raise AnswerError("not_finite", "answer: a depth is not finite", position=position)
    state = item.get("gripper", "none")
    if not isinstance(state, str) or state.lower() not in _OPENS:
        raise AnswerError("malformed", "answer: gripper must be close, open or none", position=position)
    draft.point(u / UNITS, v / UNITS, depth=depth, position=position)
    opens = _OPENS[state.lower()]
    if opens is not None:
        draft.action(opens=opens)
