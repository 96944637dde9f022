"""From checked queries to paths: images decoded off the loop, the engine asked about all at once, answers read."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from clients.errors import RoboserveError
from clients.images import encode_image
from models.hamster.drawing import STYLES, overlay
from models.hamster.view import View
from serving.clips import ClipLimits, decode_frame
from serving.path_planner import UnreadableAnswerError
from serving.together import together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from models.hamster.path import Path
    from serving.path_config import PathSettings
    from serving.path_metrics import PathMetrics
    from serving.path_planner import PathPlanner, Plan
    from serving.path_requests import PathOptions, PathQuery

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """One query's path; `drawing`: PNG, where one was asked for."""

    plan: Plan
    drawing: bytes | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """An image as the model sees it; `whole` is the image itself, where it is drawn on later."""

    shown: NDArray[np.uint8]
    view: View
    whole: NDArray[np.uint8] | None

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.shown.nbytes + (0 if self.whole is None or self.whole is self.shown else self.whole.nbytes)


@dataclass(kw_only=True)
class PathTally:
    """What a request took: questions, tokens, seconds of decoding in all and of the longest answer."""

    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    decode_s: float = 0.0
    answer_s: float = 0.0


class PathAnswers:
    """Answers queries for one replica.

    Args:
        planner: who is asked.
        decoders: threads that decode and draw.
        pixels: cap on one image.
    """

    def __init__(
        self,
        planner: PathPlanner,
        settings: PathSettings,
        *,
        metrics: PathMetrics,
        decoders: Executor,
        pixels: int,
    ) -> None:
        self._planner, self._settings, self._metrics = planner, settings, metrics
        self._decoders = decoders
        self._limits = ClipLimits(frames=1, pixels=pixels)
        self._under_way = 0
        self._bytes = 0

    async def answer(
        self, queries: Sequence[PathQuery], options: PathOptions, tally: PathTally
    ) -> list[Answered | UnreadableAnswerError]:
        """Answer every query, in order; an answer that holds no path is that query's error and nobody else's.

        Raises:
            RoboserveError: `overloaded`, what is wrong with an image or an instruction, or the engine's own.
        """
        with self._admitted(len(queries)):
            return await together(self._one(query, options, tally) for query in queries)

    @contextmanager
    def _admitted(self, images: int) -> Iterator[None]:
        limit = self._settings.under_way
        if self._under_way + images > limit:
            text = f"queries: {self._under_way} wait for a path and {images} are asked, limit {limit} together"
            raise RoboserveError("overloaded", text)
        self._count(images)
        try:
            yield
        finally:
            self._count(-images)

    def _count(self, by: int) -> None:
        self._under_way += by
        self._metrics.on_under_way(self._under_way)

    async def _one(self, query: PathQuery, options: PathOptions, tally: PathTally) -> Answered | UnreadableAnswerError:
        started = time.perf_counter()
        seen = await self._off_loop(lambda: self._see(query, options))
        with self._held(seen.nbytes):
            decoded = time.perf_counter()
            tally.decode_s += decoded - started
            try:
                plan = await self._ask(query, seen, options, tally)
            except UnreadableAnswerError as error:
                self._metrics.on_unreadable(error.reason)
                return error
            finally:
                tally.answer_s = max(tally.answer_s, time.perf_counter() - decoded)
            self._metrics.on_path(plan, structured=options.structured)
            whole = seen.whole
            if whole is None:
                return Answered(plan=plan, drawing=None)
            return Answered(plan=plan, drawing=await self._off_loop(lambda: drawn(whole, plan.path, options)))

    async def _ask(self, query: PathQuery, seen: _Seen, options: PathOptions, tally: PathTally) -> Plan:
        said = await self._planner.ask(seen.shown, query.instruction, options, field=query.field)
        tally.calls += 1
        tally.prompt_tokens += said.prompt_tokens
        tally.answer_tokens += said.answer_tokens
        self._metrics.on_said(prompt=said.prompt_tokens, answer=said.answer_tokens)
        return self._planner.read(said, seen.view, options, field=query.field)

    def _see(self, query: PathQuery, options: PathOptions) -> _Seen:
        image = decode_frame(query.image, query.image_field, self._limits)
        shown, view = self._planner.shown(image, options)
        return _Seen(shown=shown, view=view, whole=None if options.draw is None else image)

    @contextmanager
    def _held(self, size: int) -> Iterator[None]:
        """Count decoded images while they are held.

        Raises:
            RoboserveError: `overloaded`, or `too_large` for one that fits into no empty server.
        """
        limit = self._settings.image_bytes
        if self._bytes + size > limit:
            code = "overloaded" if size <= limit else "too_large"
            raise RoboserveError(code, f"image: {self._bytes + size} bytes of images under way, limit {limit}")
        self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size

    async def _off_loop(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)


def drawn(image: NDArray[np.uint8], path: Path, options: PathOptions) -> bytes:
    """Return a path drawn as the options say, as PNG of the image's size or the canvas's."""
    style = STYLES[options.draw or "demo"]
    ground = image if options.form == "overlay" else np.zeros_like(image)
    if options.canvas is not None:
        height, width = options.canvas
        ground = np.zeros((height, width, 3), np.uint8)
        path = path.in_view(View.pad(image.shape[1], image.shape[0], size=(width, height)))
    encoded = encode_image(overlay(ground, path, style=style), "png")
    if not isinstance(encoded, bytes):
        raise TypeError("png: is bytes")
    return encoded
