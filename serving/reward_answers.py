"""From checked requests to values: frames prepared off the loop, queries through the batcher, answers put together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from models.rewards.contract import FrameValues
from models.rewards.frames import merged, windows
from serving.clips import ClipLimits, clip_frames
from serving.feature_cache import Frame
from serving.reward_engine import CompareWork, ScoreWork
from serving.reward_errands import Begun, Errands

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from models.rewards.contract import RewardModel
    from serving.batcher import Batcher
    from serving.config import RewardSettings
    from serving.reward_engine import Work
    from serving.reward_errands import Errand, Tally
    from serving.reward_requests import ClipAsk, CompareRequest, PairAsk, ScoreRequest

Window = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CameraValues:
    """What one camera's queries gave: progress and success (n,), one for each value asked for."""

    progress: np.ndarray[Any, np.dtype[np.float32]]
    success: np.ndarray[Any, np.dtype[np.float32]] | None


class RewardAnswers:
    """Answers score and compare requests of a model.

    Args:
        batcher: runs queries; `cost`: image tokens of one.
        decoders: threads that decode and prepare frames; `decoding`: how many there are.
        pixels: cap on one frame.
    """

    def __init__(
        self,
        model: RewardModel,
        settings: RewardSettings,
        batcher: Batcher[Work, FrameValues | float],
        *,
        cost: Callable[[Work], float],
        decoders: Executor,
        decoding: int,
        pixels: int,
    ) -> None:
        self._model = model
        self._decoders = decoders
        self._decoding = asyncio.Semaphore(decoding)
        self._bytes = settings.clip_bytes
        self._errands = Errands(batcher, cost=cost, queries=settings.request_queries, held_bytes=settings.clip_bytes)
        self._limits = ClipLimits(frames=settings.clip_frames, pixels=pixels)

    async def frames(self, clips: Mapping[str, Any]) -> list[list[Frame]]:
        """Decode and prepare clips that are kept together, in a thread; a few requests at a time, as there are threads.

        Args:
            clips: what the client calls each, and what stood in the message.

        Raises:
            RoboserveError: see `clips.clip_frames`; `too_large` where their prepared frames exceed the cap of all
                requests.
        """
        found: list[list[Frame]] = []
        left = self._bytes
        async with self._decoding:
            for field, value in clips.items():
                prepare = partial(self._prepared, value, field, left)
                found.append(await asyncio.get_running_loop().run_in_executor(self._decoders, prepare))
                left -= sum(frame.pixels.nbytes for frame in found[-1])
        return found

    def _prepared(self, value: Any, field: str, room: int) -> list[Frame]:
        found: list[Frame] = []
        for frame in clip_frames(value, field=field, limits=self._limits):
            found.append(Frame.of(self._model.prepare(frame)))
            room -= found[-1].pixels.nbytes
            if room < 0:  # before the next one is made
                text = f"{field}: its first {len(found)} frames take more memory than is left of {self._bytes} bytes"
                raise RoboserveError("too_large", text)
        return found

    async def score(self, request: ScoreRequest, deadline: float | None, tally: Tally) -> list[dict[str, Any]]:
        """Score every clip; the first that fails fails the request, by its name."""
        errand = self._errands.start(deadline, tally)

        async def begin(ask: ClipAsk) -> Begun:
            return await self._begin_score(ask, request, errand)

        return await self._errands.each(request.clips, begin, errand)

    async def _begin_score(self, ask: ClipAsk, request: ScoreRequest, errand: Errand) -> Begun:
        named = {f"{ask.field}.cameras.{name}": value for name, value in ask.cameras.items()}
        given = named if ask.named else {f"{ask.field}.frames": value for value in ask.cameras.values()}
        clips = dict(zip(ask.cameras, await self.frames(given), strict=True))
        lengths = {name: len(clip) for name, clip in clips.items()}
        length = next(iter(lengths.values()))
        if set(lengths.values()) != {length}:
            raise RoboserveError("invalid_request", f"{ask.field}.cameras: differ in their frames: {lengths}")
        wanted, at = self._windows(request, length, ask.field)

        async def answer() -> dict[str, Any]:
            read = {
                name: await self._values(ask.instruction, clip, wanted, request.mode, errand)
                for name, clip in clips.items()
            }
            shown = [np.asarray(window) for window in wanted]
            return {"frames": length, "indices": at, "shown": shown} | joined(read, named=ask.named)

        return Begun(frames=[frame for clip in clips.values() for frame in clip], answer=answer)

    def _windows(self, request: ScoreRequest, length: int, where: str) -> tuple[list[Window], np.ndarray[Any, Any]]:
        """Return the windows of a clip, and the frame that each value belongs to."""
        if request.indices is not None:
            if request.indices[-1] >= length:
                raise RoboserveError(
                    "invalid_request", f"indices: {request.indices[-1]}, {where} has {length} frames, counted from 0"
                )
            wanted = [request.indices]
        else:
            wanted = windows(request.policy, request.mode, length)
        most = max(map(len, wanted))
        if most > self._model.spec.max_frames:
            limit = self._model.spec.max_frames
            raise RoboserveError(
                "too_large", f"frame_policy: {request.policy.name} shows {most} frames of {where}, limit {limit}"
            )
        if request.mode == "prefix":
            kept = sorted({*range(0, length, request.every), length - 1})
            return [wanted[index] for index in kept], np.asarray(kept)
        return wanted, np.asarray(wanted[0] if request.mode == "single_pass" else wanted[0][-1:])

    async def values(
        self,
        instruction: str,
        clip: Sequence[Frame],
        wanted: Sequence[Window],
        mode: str,
        deadline: float | None,
        tally: Tally,
    ) -> CameraValues:
        """Ask for the values of windows of one camera's clip: all of them (single_pass), else the last of each."""
        return await self._values(instruction, clip, wanted, mode, self._errands.start(deadline, tally))

    async def _values(
        self, instruction: str, clip: Sequence[Frame], wanted: Sequence[Window], mode: str, errand: Errand
    ) -> CameraValues:
        queries, readings = merged(wanted)
        works = [ScoreWork(instruction=instruction, frames=tuple(clip[i] for i in query)) for query in queries]
        answers = [_values(answer) for answer in await self._errands.ask(works, errand)]
        if mode == "single_pass":
            return CameraValues(progress=answers[0].progress, success=answers[0].success)
        progress = [answers[reading.query].progress[reading.position] for reading in readings]
        success = None
        if answers[0].success is not None:
            success = np.asarray([_success(answers[item.query])[item.position] for item in readings], np.float32)
        return CameraValues(progress=np.asarray(progress, np.float32), success=success)

    async def compare(self, request: CompareRequest, deadline: float | None, tally: Tally) -> list[dict[str, Any]]:
        """Compare every pair, in both orders where that is asked for."""
        errand = self._errands.start(deadline, tally)

        async def begin(ask: PairAsk) -> Begun:
            return await self._begin_compare(ask, request, errand)

        return await self._errands.each(request.pairs, begin, errand)

    async def _begin_compare(self, ask: PairAsk, request: CompareRequest, errand: Errand) -> Begun:
        first, second = await self.frames({f"{ask.field}.first": ask.first, f"{ask.field}.second": ask.second})
        shown = [request.policy.indices(len(clip)) for clip in (first, second)]
        counts = [len(indices) for indices in shown]
        if counts[0] != counts[1]:
            raise RoboserveError(
                "invalid_request",
                f"{ask.field}: first shows {counts[0]} frames, second {counts[1]}, must be equally many; "
                f"a policy such as 'linspace-{request.policy.count or 8}-pad' fills the shorter one",
            )
        if counts[0] > self._model.spec.max_frames:
            limit = self._model.spec.max_frames
            raise RoboserveError("too_large", f"{ask.field}: {counts[0]} frames shown of each clip, limit {limit}")
        left, right = (tuple(clip[i] for i in at) for clip, at in zip((first, second), shown, strict=True))
        works: list[Work] = [CompareWork(instruction=ask.instruction, first=left, second=right)]
        if request.swap:
            works.append(CompareWork(instruction=ask.instruction, first=right, second=left))

        async def answer() -> dict[str, Any]:
            chances = await self._errands.ask(works, errand)
            found: dict[str, Any] = {"p_first": chances[0]}
            if request.swap:
                found["p_first_swapped"] = 1.0 - _chance(chances[1])
            return found | {"shown_first": np.asarray(shown[0]), "shown_second": np.asarray(shown[1])}

        return Begun(frames=[*first, *second], answer=answer)


def joined(read: Mapping[str, CameraValues], *, named: bool) -> dict[str, Any]:
    """Return an answer's entries: one camera's values, or the mean of several, with each, the least and the most."""
    progress = np.stack([values.progress for values in read.values()])
    parts = [values.success for values in read.values() if values.success is not None]
    success = np.mean(parts, axis=0, dtype=np.float32) if parts else None
    answer: dict[str, Any] = {"progress": progress.mean(axis=0, dtype=np.float32), "success": success}
    if named:
        answer["cameras"] = {
            name: {"progress": values.progress, "success": values.success} for name, values in read.items()
        }
        answer |= {"progress_min": progress.min(axis=0), "progress_max": progress.max(axis=0)}
    return answer


def _values(answer: FrameValues | float) -> FrameValues:
    if not isinstance(answer, FrameValues):
        raise TypeError("the engine gave a preference for a score")
    return answer


def _success(values: FrameValues) -> np.ndarray[Any, Any]:
    if values.success is None:
        raise RoboserveError("invalid_output", "success: the model gave it for some queries only")
    return values.success


def _chance(answer: FrameValues | float) -> float:
    if isinstance(answer, FrameValues):
        raise TypeError("the engine gave values for a comparison")
    return answer
