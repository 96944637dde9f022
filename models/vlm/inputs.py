"""From turns to what the network reads: the folder's chat template, image tokens expanded, pixels cut into patches.

transformers' own processor for these families wants torchvision for videos, which nothing here shows; so its parts are
used one by one: the tokenizer's chat template, the image processor on Pillow, and the expansion of image tokens
(one for each merged patch), which is all that the processor adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.robometer.prompt import neutral
from models.vlm.messages import images_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from models.vlm.messages import Message


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """One conversation, ready to be read.

    Attributes:
        ids: int64 (L,).
        is_image: bool (L,), where an image's tokens stand.
        patches: float32 (patches, values of a patch) of all images, or None.
        grids: int64 (images, 3): time, rows and columns of patches.
    """

    ids: NDArray[np.int64]
    is_image: NDArray[np.bool_]
    patches: Tensor | None
    grids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Prompts of one forward, padded.

    Attributes:
        tensors: arguments of the forward: `input_ids`, `attention_mask`, `mm_token_type_ids` (B, L), and, where
            there are images, `pixel_values` and `image_grid_thw`.
    """

    tensors: dict[str, Tensor]


class Composer:
    """Renders and tokenises conversations as a checkpoint was trained to read them.

    Args:
        tokenizer: with its chat template.
        image_processor: of the Qwen2-VL kind, on Pillow.
        image_token: the token that stands for one merged patch.

    Raises:
        ValueError: the tokenizer has no chat template or no such token.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, *, image_token: str = "<|image_pad|>") -> None:  # noqa: S107
        if not tokenizer.chat_template:
            raise ValueError("tokenizer: has no chat template (chat_template.jinja)")
        vocabulary = tokenizer.get_vocab()
        if image_token not in vocabulary:
            raise ValueError(f"tokenizer: lacks {image_token}")
        self.tokenizer = tokenizer
        self._image_processor = image_processor
        self._image_token, self._image_id = image_token, vocabulary[image_token]

    def render(self, messages: Sequence[Message], *, answer: str | None = None) -> str:
        """Return the text of a conversation, one image token for each image.

        Special tokens in texts are broken up, so that no text can end a turn or claim an image.

        Args:
            answer: what the assistant then said, its end of turn included, for training; None asks for it.
        """
        turns = [{"role": message.role, "content": self._content(message)} for message in messages]
        asked: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        if answer is None:
            return asked
        turns.append({"role": "assistant", "content": [{"type": "text", "text": neutral(answer, self.tokenizer)}]})
        whole: str = self.tokenizer.apply_chat_template(turns, tokenize=False)
        if not whole.startswith(asked):
            raise ValueError("tokenizer: its chat template writes an answered question otherwise than the question")
        return whole

    def compose(self, messages: Sequence[Message], *, answer: str | None = None) -> Prompt:
        """Return a conversation as the network reads it; arguments as for `render`.

        Raises:
            ValueError: the template left out, or added, an image.
        """
        images = images_of(messages)
        text = self.render(messages, answer=answer)
        grids = np.zeros((0, 3), np.int64)
        patches: Tensor | None = None
        if images:
            seen = self._image_processor(images=images, return_tensors="pt")
            patches = seen["pixel_values"]
            grids = seen["image_grid_thw"].numpy()
        pieces = text.split(self._image_token)
        if len(pieces) != len(images) + 1:
            raise ValueError(f"chat template: shows {len(pieces) - 1} images of {len(images)}")
        merged = grids.prod(axis=1) // self._image_processor.merge_size**2
        expanded = pieces[0] + "".join(
            self._image_token * int(count) + piece for count, piece in zip(merged, pieces[1:], strict=True)
        )
        ids = np.asarray(self.tokenizer(expanded, add_special_tokens=False)["input_ids"], np.int64)
        return Prompt(ids=ids, is_image=ids == self._image_id, patches=patches, grids=grids)

    def batch(self, prompts: Sequence[Prompt], *, pad: str = "left") -> Batch:
        """Pad prompts to the longest, on the left for reading on or on the right for training."""
        longest = max(map(len, prompts))
        ids = np.zeros((len(prompts), longest), np.int64)
        mask, kinds = np.zeros_like(ids), np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            place = slice(longest - len(prompt), None) if pad == "left" else slice(0, len(prompt))
            ids[row, place], mask[row, place], kinds[row, place] = prompt.ids, 1, prompt.is_image
        tensors = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "mm_token_type_ids": torch.from_numpy(kinds),
        }
        patches = [prompt.patches for prompt in prompts if prompt.patches is not None]
        if patches:
            tensors["pixel_values"] = torch.cat(patches)
            tensors["image_grid_thw"] = torch.from_numpy(np.concatenate([prompt.grids for prompt in prompts]))
        return Batch(tensors=tensors)

    def _content(self, message: Message) -> list[dict[str, str]]:
        return [
            {"type": "text", "text": neutral(part, self.tokenizer)} if isinstance(part, str) else {"type": "image"}
            for part in message.content
        ]
