"""A reward model's own preference head as a labeller: Robometer's, or any other that can compare."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.preference.combine import combined, require_sane
from models.preference.contract import LabellerSpec, Reading, Usage
from models.rewards.contract import Pair as ClipPair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.preference.contract import Judgement, LabelOptions, Pair
    from models.rewards.contract import RewardModel


class RewardLabeller:
    """Asks a reward model which of two clips is better; it knows no ties, which a threshold can make.

    Forwards run one at a time in a thread; what is asked meanwhile rides together in the next one.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Configuration.

        Attributes:
            checkpoint: "zoo:NAME" or a folder.
            max_frames: most frames of one side, at most the model's own.
            max_batch: most comparisons of one forward.
        """

        checkpoint: str = "zoo:metaworld-robometer"
        max_frames: int = 8
        max_batch: int = 16

    def __init__(self, config: Config, model: RewardModel | None = None) -> None:
        if model is None:
            from models.rewards.load import load_reward

            model = load_reward(config.checkpoint)
        if not model.spec.supports_compare:
            raise ValueError(f"checkpoint: {model.spec.id!r} cannot compare")
        self._model, self._max_batch = model, config.max_batch
        spec = model.spec
        self.spec = LabellerSpec(
            id=spec.id,
            revision=spec.revision,
            content_hash=spec.content_hash,
            architecture=spec.architecture,
            dtype=spec.dtype,
            prompt_id=spec.prompt_version,
            image_size=spec.image_size,
            max_frames=min(config.max_frames, spec.max_frames),
            goal_chars=spec.instruction_chars,
            equal_frames=True,
        )
        self._waiting: list[tuple[Pair, asyncio.Future[float]]] = []
        self._running: asyncio.Task[None] | None = None
        self._closed = False

    async def label(self, pairs: Sequence[Pair], options: LabelOptions) -> list[Judgement]:
        """Label pairs; see `Labeller.label`."""
        require_sane(pairs, options, self.spec)
        if self._closed:
            raise RuntimeError("the labeller was closed")
        orders = [[pair, pair.swapped] if options.order_swap else [pair] for pair in pairs]
        asked = [self._put(pair) for order in orders for pair in order]
        chances = iter(await asyncio.gather(*asked))
        readings = [[_reading(next(chances)) for _ in order] for order in orders]
        return [combined(found[:1], found[1:], options) for found in readings]

    def check_health(self) -> None:
        """Raise RuntimeError once it was closed."""
        if self._closed:
            raise RuntimeError("the labeller was closed")

    async def close(self) -> None:
        """Let the running forward end; what waits is cancelled."""
        self._closed = True
        for _, answer in self._waiting:
            answer.cancel()
        self._waiting.clear()
        if self._running is not None:
            await self._running

    def _put(self, pair: Pair) -> asyncio.Future[float]:
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append((pair, answer))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return answer

    async def _run(self) -> None:
        """Run forwards until nothing waits; a batch that raises is asked again one by one, to find the fault."""
        try:
            while self._waiting:
                batch = [entry for entry in self._waiting[: self._max_batch] if not entry[1].done()]
                del self._waiting[: self._max_batch]
                try:
                    await self._forward(batch)
                except Exception as error:  # noqa: BLE001  whatever a model raises belongs to whoever asked
                    for entry in batch if len(batch) > 1 else []:
                        await self._alone(entry)
                    if len(batch) == 1:
                        _fail(batch[0][1], error)
        finally:
            self._running = None

    async def _alone(self, entry: tuple[Pair, asyncio.Future[float]]) -> None:
        try:
            await self._forward([entry])
        except Exception as error:  # noqa: BLE001  as above
            _fail(entry[1], error)

    async def _forward(self, batch: Sequence[tuple[Pair, asyncio.Future[float]]]) -> None:
        for (_, answer), chance in zip(
            batch, await asyncio.to_thread(self._compare, [pair for pair, _ in batch]), strict=True
        ):
            if not answer.done():
                answer.set_result(chance)

    def _compare(self, pairs: Sequence[Pair]) -> list[float]:
        model = self._model
        frames = [model.prepare(frame) for pair in pairs for frame in (*pair.first, *pair.second)]
        seen = iter(model.encode(frames) if frames else ())
        clips = [
            ClipPair(
                instruction=pair.goal,
                first=tuple(next(seen) for _ in pair.first),
                second=tuple(next(seen) for _ in pair.second),
            )
            for pair in pairs
        ]
        return [float(chance) for chance in model.compare(clips)] if clips else []


def _reading(chance: float) -> Reading:
    return Reading(chances=(chance, 1.0 - chance, 0.0), usage=Usage(calls=1))


def _fail(answer: asyncio.Future[float], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
