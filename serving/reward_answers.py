"""From checked requests to values: frames prepared off the loop, queries through the batcher, answers put together."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from models.rewards.contract import FrameValues
from models.rewards.frames import merged, windows
from serving.clips import ClipLimits, clip_frames
from serving.feature_cache import Frame
from serving.reward_engine import CompareWork, ScoreWork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from models.rewards.contract import RewardModel
    from serving.batcher import Batcher, Served
    from serving.config import RewardSettings
    from serving.reward_engine import Work
    from serving.reward_requests import ClipAsk, CompareRequest, PairAsk, ScoreRequest

Window = tuple[int, ...]


@dataclass(kw_only=True)
class Tally:
    """What a request's queries went through: the largest batch that one rode in, and times in s, the longest each."""

    batch_size: int = 0
    times: dict[str, float] = field(default_factory=dict)

    def add(self, served: Served[Any]) -> None:
        """Count one query."""
        self.batch_size = max(self.batch_size, served.batch_size)
        for name in ("queue", "batch_wait", "forward"):
            self.times[name] = max(self.times.get(name, 0.0), getattr(served, f"{name}_s"))


@dataclass(frozen=True, kw_only=True)
class CameraValues:
    """What one camera's queries gave: progress and success (n,), one for each value asked for."""

    progress: np.ndarray[Any, np.dtype[np.float32]]
    success: np.ndarray[Any, np.dtype[np.float32]] | None


class RewardAnswers:
    """Answers score and compare requests of a model.

    Args:
        batcher: runs queries; `cost`: image tokens of one.
        decoders: threads that decode and prepare frames.
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
        pixels: int,
    ) -> None:
        self._model = model
        self._settings = settings
        self._batcher = batcher
        self._cost = cost
        self._decoders = decoders
        self._limits = ClipLimits(frames=settings.clip_frames, pixels=pixels)
        self._held = 0

    async def frames(self, value: Any, field_name: str) -> list[Frame]:
        """Decode and prepare a clip in a thread.

        Raises:
            RoboserveError: see `clips.clip_frames`.
        """

        def prepare() -> list[Frame]:
            found = clip_frames(value, field=field_name, limits=self._limits)
            return [Frame.of(self._model.prepare(frame)) for frame in found]

        return await asyncio.get_running_loop().run_in_executor(self._decoders, prepare)

    @contextmanager
    def held(self, frames: Sequence[Frame]) -> Iterator[None]:
        """Count prepared frames of a request under way.

        Raises:
            RoboserveError: `overloaded` beyond the limit.
        """
        size = sum(frame.pixels.nbytes for frame in frames)
        if self._held + size > self._settings.clip_bytes:
            limit = self._settings.clip_bytes
            raise RoboserveError("overloaded", f"clips: {self._held + size} bytes of frames under way, limit {limit}")
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    async def score(self, request: ScoreRequest, deadline: float | None, tally: Tally) -> list[dict[str, Any]]:
        """Score every clip; the first that fails fails the request, by its name."""
        return [await self._score(clip, request, deadline, tally) for clip in request.clips]

    async def _score(self, ask: ClipAsk, request: ScoreRequest, deadline: float | None, tally: Tally) -> dict[str, Any]:
        clips = {
            name: await self.frames(value, f"{ask.field}.cameras.{name}" if ask.named else f"{ask.field}.frames")
            for name, value in ask.cameras.items()
        }
        lengths = {name: len(clip) for name, clip in clips.items()}
        length = next(iter(lengths.values()))
        if set(lengths.values()) != {length}:
            raise RoboserveError("invalid_request", f"{ask.field}.cameras: differ in their frames: {lengths}")
        wanted, at = self._windows(request, length, ask.field)
        with self.held([frame for clip in clips.values() for frame in clip]):
            read = {
                name: await self.values(ask.instruction, clip, wanted, request.mode, deadline, tally)
                for name, clip in clips.items()
            }
        answer: dict[str, Any] = {"frames": length, "indices": at, "shown": [np.asarray(window) for window in wanted]}
        return answer | joined(read, named=ask.named)

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
        queries, readings = merged(wanted)
        works = [ScoreWork(instruction=instruction, frames=tuple(clip[i] for i in query)) for query in queries]
        answers = [_values(answer) for answer in await self.ask(works, deadline, tally)]
        if mode == "single_pass":
            return CameraValues(progress=answers[0].progress, success=answers[0].success)
        progress = [answers[reading.query].progress[reading.position] for reading in readings]
        success = None
        if answers[0].success is not None:
            success = np.asarray([_success(answers[item.query])[item.position] for item in readings], np.float32)
        return CameraValues(progress=np.asarray(progress, np.float32), success=success)

    async def ask(self, works: Sequence[Work], deadline: float | None, tally: Tally) -> list[FrameValues | float]:
        """Put queries before the batcher, a number of them at once, so that a long clip leaves room for others.

        Raises:
            RoboserveError: the first failure; the request's other queries are withdrawn.
        """
        room = asyncio.Semaphore(self._settings.request_queries)

        async def one(work: Work) -> FrameValues | float:
            async with room:
                served = await self._batcher.submit(work, cost=self._cost(work), deadline=deadline)
            tally.add(served)
            return served.result

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(work)) for work in works]
        except* RoboserveError as errors:
            raise _first(errors) from None
        return [task.result() for task in tasks]

    async def compare(self, request: CompareRequest, deadline: float | None, tally: Tally) -> list[dict[str, Any]]:
        """Compare every pair, in both orders where that is asked for."""
        return [await self._compare(pair, request, deadline, tally) for pair in request.pairs]

    async def _compare(
        self, ask: PairAsk, request: CompareRequest, deadline: float | None, tally: Tally
    ) -> dict[str, Any]:
        first = await self.frames(ask.first, f"{ask.field}.first")
        second = await self.frames(ask.second, f"{ask.field}.second")
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
        with self.held([*first, *second]):
            chances = await self.ask(works, deadline, tally)
        answer: dict[str, Any] = {"p_first": chances[0]}
        if request.swap:
            answer["p_first_swapped"] = 1.0 - _chance(chances[1])
        return answer | {"shown_first": np.asarray(shown[0]), "shown_second": np.asarray(shown[1])}


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


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
