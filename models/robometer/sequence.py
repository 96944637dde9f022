"""From prompts to a batch of tokens: ids, rotary positions and the places that are read, right padded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from models.robometer.prompt import ASKING_TOKENS, IMAGE_TOKEN, PREFERENCE_TOKEN, PROGRESS_TOKEN, neutral

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from models.robometer.prompt import PromptTemplate

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Sequences of one forward.

    Attributes:
        ids: int64 (B, L), right padded; `mask`: int64 (B, L), 1 where a token stands.
        positions: int64 (3, B, L): time, row and column of Qwen's multimodal rotary embedding.
        progress_at: (sequence, place) indices of every progress token; `preference_at`: of every preference token.
        counts: progress tokens of each sequence.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    progress_at: tuple[Tensor, Tensor]
    preference_at: tuple[Tensor, Tensor]
    counts: tuple[int, ...]

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on a device."""
        return replace(
            self,
            ids=self.ids.to(device),
            mask=self.mask.to(device),
            positions=self.positions.to(device),
            progress_at=(self.progress_at[0].to(device), self.progress_at[1].to(device)),
            preference_at=(self.preference_at[0].to(device), self.preference_at[1].to(device)),
        )


class Sequencer:
    """Renders and tokenises what a checkpoint is asked.

    Args:
        tokenizer: a transformers tokenizer that knows the asking tokens.
        template: the checkpoint's prompt.

    Raises:
        ValueError: the tokenizer lacks a token, or the asking tokens are not its last five in their order.
    """

    def __init__(self, tokenizer: Any, template: PromptTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (*ASKING_TOKENS, IMAGE_TOKEN) if token not in vocabulary]
        if missing:
            raise ValueError(f"tokenizer: lacks {', '.join(missing)}")
        asking = [vocabulary[token] for token in ASKING_TOKENS]
        if asking != list(range(len(tokenizer) - len(asking), len(tokenizer))):
            raise ValueError(
                f"tokenizer: {', '.join(ASKING_TOKENS)} must be its last tokens in this order, are {asking}"
            )
        self._progress, self._preference = vocabulary[PROGRESS_TOKEN], vocabulary[PREFERENCE_TOKEN]
        self._image = vocabulary[IMAGE_TOKEN]
        self.asking: int = self._progress

    def progress(self, task: str, frames: Sequence[Grid]) -> NDArray[np.int64]:
        """Return the token ids that ask for progress, int64 (L,).

        Args:
            task: any text; special tokens in it are neutralised.
            frames: (rows, columns) of language-model tokens of each frame.
        """
        return self._ids(self._template.progress(self._neutral(task), _sizes(frames)))

    def preference(self, task: str, first: Sequence[Grid], second: Sequence[Grid]) -> NDArray[np.int64]:
        """Return the token ids that ask which of two clips is better, int64 (L,); arguments as for `progress`."""
        return self._ids(self._template.preference(self._neutral(task), _sizes(first), _sizes(second)))

    def batch(self, sequences: Sequence[NDArray[np.int64]], grids: Sequence[Sequence[Grid]]) -> TokenBatch:
        """Pad sequences on the right and find what is read.

        Args:
            grids: the frames of each sequence.
        """
        longest = max(map(len, sequences))
        ids = np.zeros((len(sequences), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        positions = np.zeros((3, *ids.shape), dtype=np.int64)
        for row, (sequence, frames) in enumerate(zip(sequences, grids, strict=True)):
            ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
            positions[:, row, : len(sequence)] = self.positions(sequence, frames)
        asked = ids == self._progress
        return TokenBatch(
            ids=torch.from_numpy(ids),
            mask=torch.from_numpy(mask),
            positions=torch.from_numpy(positions),
            progress_at=_places(asked),
            preference_at=_places(ids == self._preference),
            counts=tuple(asked.sum(axis=1).tolist()),
        )

    def positions(self, sequence: NDArray[np.int64], frames: Sequence[Grid]) -> NDArray[np.int64]:
        """Return the rotary positions, int64 (3, L), of a sequence that shows these frames."""
        return rotary_positions(sequence == self._image, frames)

    def _neutral(self, task: str) -> str:
        return neutral(task, self._tokenizer)

    def _ids(self, text: str) -> NDArray[np.int64]:
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)


def rotary_positions(is_image: NDArray[np.bool_], frames: Sequence[Grid]) -> NDArray[np.int64]:
    """Return Qwen3-VL's positions, int64 (3, L), of a sequence of text and images.

    Text counts on in all three; an image's tokens share one time, and have their row and column from there on; what
    follows goes on after the image's longer side (transformers, Qwen3VLModel.get_rope_index).

    Args:
        is_image: bool (L,).
        frames: (rows, columns) of each image, in order.
    """
    positions = np.empty((3, len(is_image)), dtype=np.int64)
    place = position = 0
    for rows, columns in frames:
        start = place + int(np.argmax(is_image[place:]))
        positions[:, place:start] = np.arange(position, position + start - place)
        position += start - place
        place = start + rows * columns
        positions[0, start:place] = position
        positions[1, start:place] = position + np.repeat(np.arange(rows), columns)
        positions[2, start:place] = position + np.tile(np.arange(columns), rows)
        position += max(rows, columns)
    positions[:, place:] = np.arange(position, position + len(is_image) - place)
    return positions


def _places(mask: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    rows, columns = np.nonzero(mask)
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _sizes(frames: Sequence[Grid]) -> list[int]:
    return [rows * columns for rows, columns in frames]
