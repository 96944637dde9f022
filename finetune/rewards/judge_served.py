"""A served reward model as the judge of an evaluation."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from clients.errors import RoboserveError
from clients.images import encode_image, resize_with_pad
from clients.reward import RewardClient
from clients.reward_messages import Clip, ClipPair
from finetune.relabel.frames import FrameStore
from finetune.relabel.labeller import ModelFacts, checked_labels
from finetune.rewards.judges import Ask, Final, PairAsk, batches, checked_chance, kept

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from clients.reward_messages import ClipScore, ModelIdentity
    from finetune.relabel.config import Plan
    from finetune.relabel.labeller import Labels

_MARGIN = 64 * 1024
"""Bytes of a message that are not frames."""
_FRAME_MARGIN = 64
Item = TypeVar("Item", Ask, PairAsk)


class ServedJudge:
    """Asks a server; frames travel as PNG, exactly, at the contract's size.

    Args:
        address: ws://HOST:PORT/reward/NAME.
        timeout_s: longest wait for one answer, a lost server's return included.

    Raises:
        RoboserveError: as `RewardClient`.
    """

    def __init__(self, address: str, *, api_key: str | None = None, timeout_s: float = 600.0) -> None:
        self._client = RewardClient(address, api_key=api_key, timeout_s=timeout_s)
        contract = self._client.contract
        self._size, self._limits = contract.image_size, contract.limits
        self._open = ExitStack()
        self._store = self._open.enter_context(FrameStore())
        self.facts = ModelFacts(
            id=contract.model,
            revision=contract.revision,
            content_hash=contract.content_hash,
            architecture=contract.architecture,
            dtype=contract.dtype,
            prompt_version=contract.prompt_version,
            frame_policy=contract.frame_policy,
            pixels="padded by the client, exact",
        )
        self.compares = "compare" in contract.supports

    def keep(self, frames: Iterable[NDArray[np.uint8]], count: int | None = None) -> range:
        """See `Judge`."""
        return kept(self._store, map(self._pack, frames), count)

    def curve(self, instruction: str, rows: range, plan: Plan) -> Labels:
        """See `Judge`. A clip that fits into one message goes there once; a longer one goes as its windows."""
        if len(rows) <= self._limits["clip_frames"] and self._bytes(rows) <= self._room:
            clips = [Clip(instruction, self._frames(rows))]
            reply = self._client.score(clips, mode=plan.mode, frame_policy=plan.frame_policy, every=plan.every)
            self._same(reply.model)
            (clip,) = reply.clips
            return checked_labels(plan, len(rows), clip.progress, clip.success)
        asks = [Ask(instruction=instruction, rows=tuple(rows[i] for i in window)) for window in plan.windows(len(rows))]
        found = self._score(asks, mode="single_pass" if plan.mode == "single_pass" else "final")
        known = [clip.success for clip in found if clip.success is not None]
        progress = np.concatenate([clip.progress for clip in found])
        return checked_labels(plan, len(rows), progress, np.concatenate(known) if known else None)

    def finals(self, asks: Sequence[Ask]) -> list[Final]:
        """See `Judge`."""
        return [
            Final(progress=clip.final, success=None if clip.success is None else float(clip.success[-1]))
            for clip in self._score(asks, mode="final")
        ]

    def prefer(self, asks: Sequence[PairAsk]) -> list[float]:
        """See `Judge`."""
        found: list[float] = []
        for group in self._groups(asks, [(*ask.first, *ask.second) for ask in asks]):
            pairs = [ClipPair(ask.instruction, self._frames(ask.first), self._frames(ask.second)) for ask in group]
            reply = self._client.compare(pairs, frame_policy="all")
            self._same(reply.model)
            found += [checked_chance(pair.p_first) for pair in reply.pairs]
        return found

    def close(self) -> None:
        """See `Judge`."""
        self._client.close()
        self._open.close()

    def _score(self, asks: Sequence[Ask], *, mode: str) -> list[ClipScore]:
        found: list[ClipScore] = []
        for group in self._groups(asks, [ask.rows for ask in asks]):
            clips = [Clip(ask.instruction, self._frames(ask.rows)) for ask in group]
            reply = self._client.score(clips, mode=mode, frame_policy="all")
            self._same(reply.model)
            found += reply.clips
        return found

    def _groups(self, asks: Sequence[Item], rows: Sequence[Sequence[int]]) -> Iterator[list[Item]]:
        """Give asks in groups that a request may carry, by bytes and number; `rows`: what each sends."""
        for group in batches(asks, [self._bytes(some) for some in rows], self._room):
            yield from batches(group, [1] * len(group), int(self._limits["clips"]))

    def _same(self, model: ModelIdentity) -> None:
        wanted = self.facts
        if (model.content_hash, model.dtype) != (wanted.content_hash, wanted.dtype):
            raise RoboserveError(
                "contract_mismatch",
                f"model: changed from {wanted.revision} ({wanted.content_hash[:12]}) to {model.revision} "
                f"({model.content_hash[:12]}) on the way; evaluate again",
            )

    def _pack(self, frame: NDArray[np.uint8]) -> bytes:
        return bytes(encode_image(frame if self._size is None else resize_with_pad(frame, *self._size), "png"))

    def _frames(self, rows: Iterable[int]) -> list[bytes]:
        return [self._store.read(row) for row in rows]

    def _bytes(self, rows: Iterable[int]) -> int:
        return sum(self._store.size(row) + _FRAME_MARGIN for row in rows)

    @property
    def _room(self) -> int:
        return int(self._limits["message_bytes"]) - _MARGIN
