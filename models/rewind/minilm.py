"""MiniLM sentence vectors: a BERT whose token vectors are averaged and brought to length one."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor


class MiniLMEncoder:
    """Reads instructions; the vectors of the texts asked for last are kept.

    Args:
        folder: BERT and tokenizer, as transformers saves them.
        max_tokens: longer texts are cut.
        cached: texts whose vectors are kept, 1 or more.

    Raises:
        FileNotFoundError, ValueError: the weights are missing, damaged or another architecture's.
    """

    def __init__(self, folder: Path, *, max_tokens: int = 128, cached: int = 1024) -> None:
        from transformers import AutoTokenizer, BertConfig, BertModel

        make: Any = BertModel
        self._bert: Any = make(BertConfig.from_pretrained(folder, local_files_only=True), add_pooling_layer=False)
        try:
            weights = load_file(folder / "model.safetensors")
            self._bert.load_state_dict({name: weights[name] for name in self._bert.state_dict()})
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise ValueError(f"text encoder: {folder.name}: the weights are not a BERT's: {error!s:.200}") from error
        self._bert.eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._max_tokens, self._cached = max_tokens, max(1, cached)
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self.runs = 0

    @property
    def width(self) -> int:
        """Size of a text's vector."""
        return int(self._bert.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return vectors of length one, float32 (n, width); texts not known yet run in one batch."""
        found = {text: self._known[text] for text in texts if text in self._known}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if new:
            found.update(zip(new, self._run(new), strict=True))
        for text, vector in found.items():
            self._known[text] = vector
            self._known.move_to_end(text)
        while len(self._known) > self._cached:
            self._known.popitem(last=False)
        return torch.stack([found[text] for text in texts])

    @torch.inference_mode()
    def _run(self, texts: Sequence[str]) -> Tensor:
        self.runs += 1
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        )
        hidden: Tensor = self._bert(**tokens).last_hidden_state
        real = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
