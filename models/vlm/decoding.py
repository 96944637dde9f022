"""Answers token by token, several prompts at once; and how probable given words are as the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from models.vlm.checkpoint import VlmCheckpoint
    from models.vlm.constraint import TokenMask
    from models.vlm.inputs import Prompt


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How one answer's tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest; `top_p`: mass of the likeliest tokens that is drawn from.
        seed: None draws anew each time.
        tops: likeliest tokens to tell with each; None tells no log-probability.
        mask: what the answer must be.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    tops: int | None = None
    mask: TokenMask | None = None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One token: its log-probability and those of the likeliest, over the whole vocabulary, before any constraint."""

    row: int
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@torch.inference_mode()
def label_logprobs(
    checkpoint: VlmCheckpoint, prompts: Sequence[Prompt], labels: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return the log-probability of each label, one token id each, as the token after each prompt.

    Args:
        labels: of each prompt.
    """
    network: Any = checkpoint.network
    batch = checkpoint.composer.batch(prompts)
    logits = network(**_on(batch.tensors, checkpoint.device), use_cache=False, logits_to_keep=1).logits[:, -1]
    table = torch.log_softmax(logits.float(), dim=-1).cpu()
    return [table[row, list(ids)].tolist() for row, ids in enumerate(labels)]


class Decoding:
    """Several answers under way; each `step` draws one token of every one.

    Args:
        checkpoint: what answers.
        prompts: what is asked.
        draws: how each answer is drawn.
    """

    @torch.inference_mode()
    def __init__(self, checkpoint: VlmCheckpoint, prompts: Sequence[Prompt], draws: Sequence[Draw]) -> None:
        network: Any = checkpoint.network
        self._network, self._device, self._ends = network, checkpoint.device, checkpoint.ends
        self._rows = list(range(len(prompts)))
        self._draws = list(draws)
        self._generators = [_generator(draw.seed, self._device) for draw in draws]
        tensors = _on(checkpoint.composer.batch(prompts).tensors, self._device)
        self._mask = tensors["attention_mask"]
        positions, deltas = _positions(network, tensors)
        # The network keeps one answer's offset in itself, which would be another's by the next step.
        self._deltas = deltas
        self._cache = DynamicCache()
        out = network(**tensors, position_ids=positions, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._logits: Tensor = out.logits[:, -1]

    @property
    def rows(self) -> list[int]:
        """Places, among the prompts, of the answers that still go on."""
        return list(self._rows)

    def is_end(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return token in self._ends

    @torch.inference_mode()
    def draw(self) -> list[Drawn]:
        """Draw the next token of every answer."""
        logits = self._logits.float()
        told = any(self._draws[row].tops is not None for row in self._rows)
        table = torch.log_softmax(logits, dim=-1) if told else None
        drawn = []
        for place, row in enumerate(self._rows):
            draw = self._draws[row]
            token = _choose(logits[place], draw, self._generators[row])
            if draw.mask is not None and token not in self._ends:
                draw.mask.take(token)
            drawn.append(_told(row, token, None if table is None else table[place], draw))
        self._last = [item.token for item in drawn]
        return drawn

    @torch.inference_mode()
    def advance(self, ended: set[int]) -> None:
        """Read the tokens drawn last, without the answers (rows) that have ended; compute what comes after."""
        keep = [place for place, row in enumerate(self._rows) if row not in ended]
        if not keep:
            self._rows = []
            return
        if len(keep) < len(self._rows):
            index = torch.tensor(keep, device=self._device)
            self._cache.batch_select_indices(index)
            self._mask, self._deltas = self._mask[index], self._deltas[index]
            self._rows = [self._rows[place] for place in keep]
        tokens = torch.tensor([[self._last[place]] for place in keep], device=self._device)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(keep), 1)], dim=1)
        positions = self._mask.sum(dim=1, keepdim=True) - 1 + self._deltas
        out = self._network(
            input_ids=tokens,
            attention_mask=self._mask,
            position_ids=positions.expand(3, -1, -1),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._logits = out.logits[:, -1]


def _positions(network: Any, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return rotary positions (3, B, L), and (B, 1) by how much the next one differs from the count of tokens."""
    mask = tensors["attention_mask"]
    if "image_grid_thw" not in tensors:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return positions.expand(3, -1, -1), mask.new_zeros(len(mask), 1)
    positions, deltas = network.model.get_rope_index(
        tensors["input_ids"],
        image_grid_thw=tensors["image_grid_thw"],
        attention_mask=mask,
        mm_token_type_ids=tensors["mm_token_type_ids"],
    )
    return positions, deltas.reshape(-1, 1)


def _choose(logits: Tensor, draw: Draw, generator: torch.Generator | None) -> int:
    if draw.mask is not None:
        allowed = torch.from_numpy(draw.mask.allowed()).to(logits.device)
        logits = logits.masked_fill(~allowed, -torch.inf)
    if draw.temperature == 0:
        return int(logits.argmax())
    chances = torch.softmax(logits / draw.temperature, dim=-1)
    if draw.top_p < 1:
        ordered, places = chances.sort(descending=True)
        beyond = ordered.cumsum(dim=0) - ordered > draw.top_p
        chances = torch.zeros_like(chances).scatter(0, places, ordered.masked_fill(beyond, 0.0))
    return int(torch.multinomial(chances, 1, generator=generator))


def _told(row: int, token: int, table: Tensor | None, draw: Draw) -> Drawn:
    if table is None or draw.tops is None:
        return Drawn(row=row, token=token)
    values, places = table.topk(draw.tops)
    top = tuple(zip(places.tolist(), values.tolist(), strict=True))
    return Drawn(row=row, token=token, logprob=float(table[token]), top=top)


def _generator(seed: int | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device).manual_seed(seed)


def _on(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}
