"""The prompt: pieces of text that belong to the checkpoint's folder, and the tokens that ask.

A rendered prompt is a plain concatenation, so it does not depend on a chat template's engine:

    progress:    `progress_before` + frames + `progress_after`
    preference:  `preference_before` + frames of the first + `preference_between` + frames of the second
                 + `preference_after`

Each frame is `frame`, in which `{number}` counts from 1 through both clips and `{image}` stands for its image tokens.
`{task}` in the first piece stands for the instruction. Weights answer rightly only to the wording they were trained on.
The pieces of the preference prompt may be empty, all of them: such a checkpoint is not asked which clip is better.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ASKING_TOKENS = ("<|split_token|>", "<|reward_token|>", "<|pref_token|>", "<|sim_token|>", "<|prog_token|>")
"""Added to the tokenizer in this order, as its last five; two of them are unused and kept for the published weights."""
PROGRESS_TOKEN, PREFERENCE_TOKEN = ASKING_TOKENS[4], ASKING_TOKENS[2]
IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105  a token of text, not a secret


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """The pieces of a checkpoint's prompt.

    Raises:
        ValueError: naming the piece that lacks, or has too often, what must stand in it.
    """

    frame: str
    progress_before: str
    progress_after: str
    preference_before: str
    preference_between: str
    preference_after: str

    def __post_init__(self) -> None:
        wanted: dict[str, tuple[tuple[str, int], ...]] = {
            "frame": (("{image}", 1), (PROGRESS_TOKEN, 1)),
            "progress_before": (("{task}", 1), (PROGRESS_TOKEN, 0)),
            "preference_before": (("{task}", 1), (PROGRESS_TOKEN, 0), (PREFERENCE_TOKEN, 0)),
            "preference_between": ((PROGRESS_TOKEN, 0), (PREFERENCE_TOKEN, 0)),
            "preference_after": ((PREFERENCE_TOKEN, 1), (PROGRESS_TOKEN, 0)),
        }
        for name, counts in wanted.items():
            if name.startswith("preference") and not self.compares:
                continue
            for text, count in counts:
                if getattr(self, name).count(text) != count:
                    raise ValueError(f"prompt.{name}: must hold {text!r} {count} times, not as it does")

    @property
    def compares(self) -> bool:
        """Whether there is a preference prompt."""
        return bool(self.preference_before or self.preference_between or self.preference_after)

    @property
    def version(self) -> str:
        """SHA-256 of the pieces, hex: two prompts of equal version ask in the same words."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_map(cls, pieces: Mapping[str, object]) -> PromptTemplate:
        """Read the pieces.

        Raises:
            ValueError: pieces that are missing, unknown or no text.
        """
        names = {item.name for item in fields(cls)}
        if set(pieces) != names or not all(isinstance(piece, str) for piece in pieces.values()):
            raise ValueError(f"prompt: must hold the texts {', '.join(sorted(names))} and nothing else")
        return cls(**{name: str(piece) for name, piece in pieces.items()})

    def progress(self, task: str, image_tokens: Sequence[int]) -> str:
        """Return the prompt that asks for progress at every frame.

        Args:
            task: the instruction, with special tokens neutralised.
            image_tokens: language-model tokens of each frame.
        """
        return self.progress_before.replace("{task}", task) + self._frames(image_tokens, 1) + self.progress_after

    def preference(self, task: str, first: Sequence[int], second: Sequence[int]) -> str:
        """Return the prompt that asks which of two clips is better; arguments as for `progress`.

        Raises:
            ValueError: the checkpoint has no such prompt.
        """
        if not self.compares:
            raise ValueError("prompt: this checkpoint has none that asks which clip is better")
        parts = (
            self.preference_before.replace("{task}", task),
            self._frames(first, 1),
            self.preference_between,
            self._frames(second, 1 + len(first)),
            self.preference_after,
        )
        return "".join(parts)

    def _frames(self, image_tokens: Sequence[int], start: int) -> str:
        return "".join(
            self.frame.replace("{number}", str(number)).replace("{image}", IMAGE_TOKEN * tokens)
            for number, tokens in enumerate(image_tokens, start)
        )


class Vocabulary(Protocol):
    """What neutralising needs of a tokenizer."""

    def get_added_vocab(self) -> Mapping[str, int]:
        """Return the tokens that are matched before all others."""
        ...


def neutral(text: str, vocabulary: Vocabulary) -> str:
    """Return a user's text in which no special token stands any more.

    A progress token in an instruction would add a value that belongs to no frame, an end-of-turn token would end the
    prompt. Each is broken up by a space after its first character; text without them is returned unchanged.
    """
    tokens = sorted((token for token in vocabulary.get_added_vocab() if token.strip()), key=len, reverse=True)
    found = True
    while found:
        found = False
        for token in tokens:
            if token in text and len(token) > 1:
                text, found = text.replace(token, f"{token[0]} {token[1:]}"), True
    return text


EMBEDDED_PROMPT = PromptTemplate(
    frame="{number}:<|vision_start|>{image}<|vision_end|><|prog_token|>",
    progress_before="<|im_start|>user\nGoal: {task}. How much is done?\n",
    progress_after="<|im_end|>\n",
    preference_before="<|im_start|>user\nGoal: {task}. Which clip gets further?\nA ",
    preference_between="<|split_token|>B ",
    preference_after="<|pref_token|><|im_end|>\n",
)
"""The wording of the models that are trained here: short, since every word costs time in every forward."""
