"""How a vision-language model is asked which of two observations is nearer to a goal: `preference_prompt.json`.

What a checkpoint was trained to read is part of its folder. Two protocols:

- `one_token`: one question whose answer is one of a few words, each a single token; nothing is sampled.
- `two_stage`: after RL-VLM-F (arXiv 2402.03681): the pictures are analysed in free text; then, without pictures, the
  analysis is turned into a line that holds 0, 1 or -1.

Templates are filled in one pass, so nothing that stands in a goal or in a model's own answer is taken for a slot.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.preference.contract import FIRST, SECOND, TIE
from models.vlm.messages import user

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from models.preference.contract import Chances, Pair
    from models.vlm.messages import Message

FILE = "preference_prompt.json"
_SLOT = re.compile(r"\{(\w+)\}")
_LABELS = {"0": FIRST, "1": SECOND, "-1": TIE}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LabelWords(_Strict):
    """The answers of the one-token protocol, each one token of the model; without a `tie` the model knows none."""

    first: str = Field(min_length=1)
    second: str = Field(min_length=1)
    tie: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len(set(self.listed)) != len(self.listed):
            raise ValueError(f"labels: {', '.join(self.listed)} do not differ")
        return self

    @property
    def listed(self) -> tuple[str, ...]:
        """The words in the order first, second, tie."""
        return (self.first, self.second) if self.tie is None else (self.first, self.second, self.tie)


class OneTokenPrompt(_Strict):
    """One question; slots {goal}, {first} and {second}, where the pictures of each side stand in their order."""

    template: str
    labels: LabelWords

    @model_validator(mode="after")
    def _slots(self) -> Self:
        require_slots("one_token.template", self.template, ("goal", "first", "second"))
        return self


class TwoStagePrompt(_Strict):
    """Two questions.

    Attributes:
        analysis: shows the pictures; slots {goal}, {first}, {second}.
        label: shows none; slots {goal}, {analysis}.
        analysis_tokens, label_tokens: most tokens of each answer.
    """

    analysis: str
    label: str
    analysis_tokens: int = Field(256, ge=1, le=4096)
    label_tokens: int = Field(8, ge=1, le=64)

    @model_validator(mode="after")
    def _slots(self) -> Self:
        require_slots("two_stage.analysis", self.analysis, ("goal", "first", "second"))
        require_slots("two_stage.label", self.label, ("goal", "analysis"))
        return self


class PreferencePrompt(_Strict):
    """Everything in `preference_prompt.json`.

    Attributes:
        version: of the wording, as its author counts.
        image_size: (height, width) that the model was taught on; None keeps each picture's own.
        one_token, two_stage: the protocols that the model knows, at least one.
    """

    version: str = Field(min_length=1, max_length=32)
    image_size: tuple[int, int] | None = Field(None, strict=False)
    one_token: OneTokenPrompt | None = None
    two_stage: TwoStagePrompt | None = None

    @model_validator(mode="after")
    def _any(self) -> Self:
        if self.one_token is None and self.two_stage is None:
            raise ValueError("needs 'one_token' or 'two_stage'")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"image_size: {self.image_size}, must be positive")
        return self

    @property
    def id(self) -> str:
        """Version and the start of the SHA-256 of everything in it: what a kept label is filed under."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"{self.version}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @classmethod
    def read(cls, path: Path) -> PreferencePrompt:
        """Read a file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or wrong, naming the entry.
        """
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except ValidationError as error:
            where = "; ".join(".".join(map(str, item["loc"])) + ": " + item["msg"] for item in error.errors())
            raise ValueError(f"{path.name}: {where}") from error

    def write(self, folder: Path) -> Path:
        """Write `preference_prompt.json` into a folder and return its path."""
        path = folder / FILE
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n", "utf-8")
        return path

    def ask_one_token(self, pair: Pair) -> tuple[Message, ...]:
        """Return the question whose next token is a label; for training too.

        Raises:
            ValueError: the model knows no such protocol.
        """
        if self.one_token is None:
            raise ValueError("prompt: has no 'one_token'")
        return (user(*filled(self.one_token.template, {"goal": pair.goal}, _sides(pair))),)

    def ask_analysis(self, pair: Pair) -> tuple[Message, ...]:
        """Return the first question of two; raises as `ask_one_token`."""
        return (user(*filled(self._two_stage.analysis, {"goal": pair.goal}, _sides(pair))),)

    def ask_label(self, goal: str, analysis: str) -> tuple[Message, ...]:
        """Return the second question of two, which shows no picture; raises as `ask_one_token`."""
        return (user(*filled(self._two_stage.label, {"goal": goal, "analysis": analysis}, {})),)

    @property
    def _two_stage(self) -> TwoStagePrompt:
        if self.two_stage is None:
            raise ValueError("prompt: has no 'two_stage'")
        return self.two_stage


def require_slots(field: str, template: str, wanted: Sequence[str]) -> None:
    """Refuse a template whose slots are not these, once each, pictures in their order.

    Raises:
        ValueError: naming the field and its slots.
    """
    found = _SLOT.findall(template)
    if sorted(found) != sorted(wanted):
        raise ValueError(
            f"{field}: has the slots {', '.join(found) or 'none'}, must have {', '.join(wanted)} once each"
        )
    if "first" in found and found.index("first") > found.index("second"):
        raise ValueError(f"{field}: shows 'second' before 'first'")


def filled(
    template: str, texts: Mapping[str, str], pictures: Mapping[str, Sequence[NDArray[np.uint8]]]
) -> list[str | NDArray[np.uint8]]:
    """Return a template's parts, texts and pictures in their order, with its slots filled."""
    parts: list[str | NDArray[np.uint8]] = []
    text = ""
    for index, piece in enumerate(_SLOT.split(template)):
        if index % 2 == 0:
            text += piece
        elif piece in texts:
            text += texts[piece]
        else:
            parts += [text] if text else []
            parts += pictures[piece]
            text = ""
    return [*parts, text] if text else parts


def parse_label(reply: str) -> int | None:
    """Return the label on the first line of a two-stage reply; None for anything but 0, 1 and -1."""
    return _LABELS.get(reply.strip().partition("\n")[0].strip())


def chances_of(logprobs: Sequence[float | None]) -> tuple[Chances, float] | None:
    """Return the chances of first, second and tie, and the probability that any of them comes next.

    A label whose log-probability is not known makes the whole answer unknown: it may be anything below the likeliest
    that a server showed, and zero would be a guess.

    Args:
        logprobs: natural, of the labels first, second and, if the model knows it, tie.
    """
    known = [value for value in logprobs if value is not None and not math.isnan(value)]
    top = max(known, default=-math.inf)
    if len(known) != len(logprobs) or top == -math.inf:
        return None
    weights = [math.exp(value - top) for value in known]
    shares = [weight / sum(weights) for weight in weights]
    mass = min(1.0, math.exp(top) * sum(weights))
    return (shares[0], shares[1], shares[2] if len(shares) == 3 else 0.0), mass


def _sides(pair: Pair) -> dict[str, Sequence[NDArray[np.uint8]]]:
    return {"first": pair.first, "second": pair.second}


GENERAL_PROMPT = PreferencePrompt(
    version="general-1",
    one_token=OneTokenPrompt(
        template=(
            "Here are two observations of one robot's workplace.\nA: {first}\nB: {second}\n"
            "What should come about: {goal}\n"
            "In which observation is that nearer to being reached? "
            "Say A or B, or = if you see no difference. Say nothing else."
        ),
        labels=LabelWords(first="A", second="B", tie="="),
    ),
    two_stage=TwoStagePrompt(
        analysis=(
            "You compare two observations of one robot's workplace.\n"
            "First observation: {first}\nSecond observation: {second}\n"
            "What should come about: {goal}\n"
            "Write, in a few sentences each: (a) what the first observation shows of it, (b) what the second shows "
            "of it, (c) whether one of the two is further along, and which."
        ),
        label=(
            "Two observations of a robot's workplace were compared by how near they are to this: {goal}\n"
            "The notes of the comparison:\n---\n{analysis}\n---\n"
            "Which observation do the notes put ahead? Give a single number on one line and no other word: "
            "0 if it is the first, 1 if it is the second, -1 if neither is ahead or the notes leave it open."
        ),
    ),
)
"""Wording for models that were not taught ours: what is used where a folder brings none."""
