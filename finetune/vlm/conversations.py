"""Conversations as a network learns from them: tokens, pictures, and which tokens are the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image

from models.vlm.inputs import Prompt
from models.vlm.messages import Message

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from models.vlm.inputs import Composer

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True, eq=False)
class Conversation:
    """What was asked, with its pictures, and the answer that is taught.

    Attributes:
        of_images: a number that is true of each picture, for `hints`; empty where none is known.
        of_answer: numbers that are true of the answer, likewise.
    """

    messages: tuple[Message, ...]
    answer: str
    of_images: tuple[float, ...] = ()
    of_answer: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A conversation as tokens; those from `asked` on are the answer and its end of turn."""

    prompt: Prompt
    asked: int


class Source(Protocol):
    """Where conversations come from."""

    def draw(self, random: np.random.Generator, count: int) -> list[Conversation]:
        """Return `count` conversations; the same generator state gives the same ones."""
        ...


def encode(composer: Composer, conversation: Conversation) -> Example:
    """Return a conversation as tokens; what its chat template writes after the end of the answer's turn is left out.

    Raises:
        ValueError: the tokenizer joins the question's end and the answer's beginning, or the answer has no end of turn.
    """
    prompt = composer.compose(conversation.messages, answer=conversation.answer)
    asked = composer.render(conversation.messages)
    said = composer.render(conversation.messages, answer=conversation.answer)[len(asked) :]
    answer = np.asarray(composer.tokenizer(said, add_special_tokens=False)["input_ids"], np.int64)
    start = len(prompt) - len(answer)
    ends = np.flatnonzero(answer == composer.tokenizer.eos_token_id)
    if not np.array_equal(prompt.ids[start:], answer) or not len(ends):
        raise ValueError("answer: is not a run of tokens of its own that ends its turn")
    length = start + int(ends[-1]) + 1
    kept = Prompt(
        ids=prompt.ids[:length], is_image=prompt.is_image[:length], patches=prompt.patches, grids=prompt.grids
    )
    return Example(prompt=kept, asked=start)


@dataclass(frozen=True, kw_only=True, eq=False)
class Learning:
    """A batch to learn from.

    Attributes:
        tensors: arguments of the forward, see `models.vlm.inputs.Batch`.
        answers: bool (B, L), tokens that are to be foretold.
        image_ends: int64 (images,), places of the last tokens of all pictures in the flattened (B L).
        of_images: float32 (images,), of_answer: float32 (B, n): see `Conversation`; None where some are not known.
    """

    tensors: dict[str, Tensor]
    answers: Tensor
    image_ends: Tensor
    of_images: Tensor | None
    of_answer: Tensor | None


def batch(composer: Composer, conversations: Sequence[Conversation]) -> Learning:
    """Return conversations as one padded batch; raises as `encode`."""
    examples = [encode(composer, conversation) for conversation in conversations]
    tensors = composer.batch([example.prompt for example in examples], pad="right").tensors
    places = torch.arange(tensors["input_ids"].shape[1])[None]
    asked = torch.tensor([example.asked for example in examples])[:, None]
    is_image = torch.nn.functional.pad(tensors["mm_token_type_ids"], (0, 1))
    image_ends = ((is_image[:, :-1] > 0) & (is_image[:, 1:] == 0)).flatten().nonzero()[:, 0]
    of_images = [number for conversation in conversations for number in conversation.of_images]
    of_answer = [conversation.of_answer for conversation in conversations]
    return Learning(
        tensors=tensors,
        answers=(places >= asked) & (tensors["attention_mask"] > 0),
        image_ends=image_ends,
        of_images=torch.tensor(of_images) if len(of_images) == len(image_ends) and of_images else None,
        of_answer=torch.tensor(of_answer) if all(of_answer) else None,
    )


class JsonlConversations:
    """Conversations from a file with one JSON map a line, pictures in files beside it.

        {"messages": [{"role": "user", "content": [{"type": "image", "image": "images/1.png"},
                                                   {"type": "text", "text": "What is this?"}]},
                      {"role": "assistant", "content": "A cup."}]}

    The last turn is the assistant's and is taught. Pictures are read when they are drawn.

    Args:
        path: the file; `root`: folder that pictures are named from, the file's own where None.

    Raises:
        ValueError: a line is damaged, or names a picture outside `root`; the message says which line.
    """

    def __init__(self, path: Path, *, root: Path | None = None) -> None:
        self._root = (root or path.parent).resolve()
        self._rows: list[list[Any]] = []
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if line.strip():
                try:
                    self._rows.append(self._checked(json.loads(line)))
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path.name}: line {number}: {error}") from error
        if not self._rows:
            raise ValueError(f"{path.name}: has no conversation")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Conversation:
        turns = self._rows[index]
        messages = tuple(Message(role=role, content=tuple(map(self._part, parts))) for role, parts in turns[:-1])
        return Conversation(messages=messages, answer="".join(text for _, text in turns[-1][1]))

    def draw(self, random: np.random.Generator, count: int) -> list[Conversation]:
        """Return conversations, each drawn anew."""
        return [self[int(index)] for index in random.integers(len(self), size=count)]

    def _checked(self, row: Any) -> list[Any]:
        turns = []
        for turn in row["messages"]:
            content = turn["content"]
            parts = [("text", content)] if isinstance(content, str) else [_part_of(part) for part in content]
            if turn["role"] not in _ROLES:
                raise ValueError(f"role {turn['role']!r}: known are {', '.join(_ROLES)}")
            for kind, value in parts:
                place = (self._root / value).resolve() if kind == "image" else None
                if place is not None and (not place.is_relative_to(self._root) or not place.is_file()):
                    raise ValueError(f"image {value!r}: is no file below the folder of pictures")
            turns.append((turn["role"], parts))
        if len(turns) < 2 or turns[-1][0] != "assistant" or any(kind != "text" for kind, _ in turns[-1][1]):
            raise ValueError("messages: the last of two or more turns must be a text of the assistant")
        return turns

    def _part(self, part: tuple[str, str]) -> str | NDArray[np.uint8]:
        kind, value = part
        if kind == "text":
            return value
        with Image.open(self._root / value) as image:
            return np.asarray(image.convert("RGB"))


def _part_of(part: Any) -> tuple[str, str]:
    kind = part["type"]
    if kind not in ("text", "image") or not isinstance(part[kind], str):
        raise ValueError(f"content: a part of type {kind!r}; known are text and image")
    return kind, part[kind]
