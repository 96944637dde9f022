"""How a path predictor's checkpoint is to be asked: `path_prompt.json` in its folder.

Weights answer rightly only to the wording that they were trained on, so the wording is part of the checkpoint. Ours
carry our own; for published weights it comes from the upstream project, at the user's request, and never from here.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from models.hamster.answer import AnswerStyle

if TYPE_CHECKING:
    from pathlib import Path

FILE = "path_prompt.json"
SLOT = "{quest}"
FORMAT: Literal["roboserve-path-prompt-1"] = "roboserve-path-prompt-1"
_MARKUP = re.compile(r"<(?=[A-Za-z/|])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class PromptError(ValueError):
    """A prompt file or a quest that cannot be used; the message names the field, and never repeats a whole text."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Decoding(_Strict):
    """How an answer is sampled unless a caller says otherwise.

    Attributes:
        max_tokens: most tokens of an answer; HAMSTER's demo has 128, which cuts off long paths.
        temperature: 0 takes the likeliest token. top_p: the demo's 0.95 means nothing at temperature 0.
    """

    max_tokens: int = Field(default=256, ge=1, le=4096)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)


class Writing(_Strict):
    """How answers are written: `AnswerStyle`, as a file has it."""

    decimals: int = Field(default=2, ge=1, le=6)
    max_points: int = Field(default=20, ge=1, le=256)
    ones: bool = True

    @property
    def style(self) -> AnswerStyle:
        """The same for `format_answer` and the grammar."""
        return AnswerStyle(decimals=self.decimals, max_points=self.max_points, ones=self.ones)


class PathPrompt(_Strict):
    """Everything in `path_prompt.json`.

    Attributes:
        template: the text of the one user turn, with the slot `{quest}` once.
        version: a name for this wording, for people and logs.
        image_first: whether the image stands before the text.
        initial_open: the gripper's state where an answer has no tag yet; HAMSTER's demo starts closed.
        decoding, answer: see there.
        quest_chars: longest instruction.
    """

    format: Literal["roboserve-path-prompt-1"] = FORMAT
    template: str = Field(min_length=len(SLOT), max_length=8192)
    version: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    image_first: bool = True
    initial_open: bool = False
    decoding: Decoding = Decoding()
    answer: Writing = Writing()
    quest_chars: int = Field(default=512, ge=1, le=4096)

    @field_validator("template")
    @classmethod
    def _one_slot(cls, template: str) -> str:
        if template.count(SLOT) != 1:
            raise ValueError(f"must hold {SLOT} once, not {template.count(SLOT)} times")
        return template

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything here, hex: what a cached answer depends on besides image, quest and weights."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def text(self, quest: str) -> str:
        """Return the text of the turn for an instruction.

        An ordinary instruction goes in byte for byte. Line breaks and control characters become a space, and every
        tag is broken up by one after its "<": it could end the quest, speak for the model or stand for an image.

        Raises:
            PromptError: an instruction that is empty or too long.
        """
        if len(quest) > self.quest_chars:
            raise PromptError(f"quest: {len(quest)} characters, at most {self.quest_chars}")
        clean = _MARKUP.sub("< ", _CONTROL.sub(" ", quest)).strip()
        if not clean:
            raise PromptError("quest: is empty")
        before, after = self.template.split(SLOT)
        return f"{before}{clean}{after}"

    def content(self, quest: str) -> list[dict[str, str]]:
        """Return the turn's parts in their order, as chat templates take them; raises as `text`."""
        text = {"type": "text", "text": self.text(quest)}
        image = {"type": "image"}
        return [image, text] if self.image_first else [text, image]


def read_prompt(folder: Path) -> PathPrompt:
    """Read a checkpoint folder's prompt.

    Raises:
        FileNotFoundError: the folder has none.
        PromptError: naming the fields that are missing, unknown or wrong.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: the folder {folder.name!r} has no {FILE}, so how to ask it is not known")
    try:
        return PathPrompt.model_validate_json(path.read_bytes())
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or FILE}: {item['msg']}" for item in error.errors(include_input=False)
        )
        raise PromptError(f"{FILE}: {found}") from error


def write_prompt(folder: Path, prompt: PathPrompt) -> None:
    """Write a checkpoint folder's prompt."""
    (folder / FILE).write_text(prompt.model_dump_json(indent=2) + "\n", encoding="utf-8")
