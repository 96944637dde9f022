"""From checked requests to labels: frames decoded off the loop, known pairs from memory, the rest asked."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from clients.errors import RoboserveError
from clients.images import resize_with_pad
from models.preference.alike import alike, side_key
from models.preference.combine import with_threshold
from models.preference.contract import TIE, Judgement, Pair, Usage
from serving.clips import ClipLimits, clip_frames
from serving.preference_cache import LabelCache
from serving.together import first_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from models.preference.contract import Labeller, LabelOptions
    from serving.preference_budget import Account, Budget
    from serving.preference_config import PreferenceSettings
    from serving.preference_metrics import PreferenceMetrics
    from serving.preference_requests import LabelRequest, PairAsk


@dataclass(frozen=True, kw_only=True)
class PairAnswer:
    """One pair's label; `source` is one of `clients.preference_messages.SOURCES`, `keys` name both sides' pixels."""

    judgement: Judgement
    source: str
    keys: tuple[bytes, bytes]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    pair: Pair
    keys: tuple[bytes, bytes]
    alike: bool
    size: int


@dataclass(kw_only=True)
class LabelTally:
    """What a request took that nobody had asked before."""

    usage: Usage = field(default_factory=Usage)


class PreferenceAnswers:
    """Labels pairs for one replica.

    Args:
        labeller: who is asked.
        decoders: threads that decode frames.
        pixels: cap on one frame.
    """

    def __init__(
        self,
        labeller: Labeller,
        settings: PreferenceSettings,
        *,
        budget: Budget,
        metrics: PreferenceMetrics,
        decoders: Executor,
        pixels: int,
    ) -> None:
        self._labeller, self._settings = labeller, settings
        self._budget, self._metrics = budget, metrics
        self._decoders = decoders
        self.max_frames = min(settings.clip_frames, labeller.spec.max_frames)
        self._limits = ClipLimits(frames=self.max_frames, pixels=pixels)
        self.cache = LabelCache(settings.cache_bytes)
        self._under_way = 0
        self._bytes = 0

    async def label(
        self,
        request: LabelRequest,
        account: Account,
        tally: LabelTally,
        *,
        on_label: Callable[[int, PairAnswer], Awaitable[None]] | None = None,
    ) -> list[PairAnswer]:
        """Label every pair; the first that fails fails the request, and what it took of the budget is given back.

        Args:
            on_label: told each label with the number of its pair, as it comes.

        Raises:
            RoboserveError: `overloaded`, `budget_exhausted`, what is wrong with a frame, or the labeller's own.
        """
        with self._admitted(len(request.pairs), account):
            try:
                async with asyncio.TaskGroup() as group:
                    tasks: list[asyncio.Task[PairAnswer]] = []
                    for index, ask in enumerate(request.pairs):
                        seen = await self._see(ask)
                        await self._hold(seen.size, tasks)
                        work = self._one(index, seen, request.options, account, tally, on_label)
                        tasks.append(group.create_task(work))
                        tasks[-1].add_done_callback(partial(self._let_go, seen.size))
            except BaseExceptionGroup as errors:  # raising in except* wraps on Python 3.11.2
                raise first_of(errors) from None
            return [task.result() for task in tasks]

    @contextmanager
    def _admitted(self, pairs: int, account: Account) -> Iterator[None]:
        limit = self._settings.under_way
        if self._under_way + pairs > limit:
            text = f"pairs: {self._under_way} wait for a label and {pairs} are asked, limit {limit} together"
            raise RoboserveError("overloaded", text)
        self._budget.take(account, pairs)
        self._count(pairs)
        try:
            yield
        except BaseException:  # a cancelled request is one that failed, too
            self._budget.give_back(account, pairs)
            raise
        finally:
            self._count(-pairs)

    def _count(self, by: int) -> None:
        self._under_way += by
        self._metrics.on_state(under_way=self._under_way, kept=self.cache.bytes)

    async def _see(self, ask: PairAsk) -> _Seen:
        """Decode both sides in a thread and name them by their pixels."""
        spec = self._labeller.spec

        def look() -> _Seen:
            first, second = (
                self._frames(ask.first, f"{ask.field}.first"),
                self._frames(ask.second, f"{ask.field}.second"),
            )
            if spec.equal_frames and len(first) != len(second):
                text = f"{ask.field}: first shows {len(first)} frames, second {len(second)}, must be equally many"
                raise RoboserveError("invalid_request", text)
            pair = Pair(goal=ask.goal, first=first, second=second, values=ask.values)
            return _Seen(
                pair=pair,
                alike=alike(pair, self._settings.alike),
                keys=(side_key(first), side_key(second)),
                size=sum(frame.nbytes for frame in (*first, *second)),
            )

        return await asyncio.get_running_loop().run_in_executor(self._decoders, look)

    def _frames(self, value: Any, field_name: str) -> tuple[NDArray[np.uint8], ...]:
        size = self._labeller.spec.image_size
        found = clip_frames(value, field=field_name, limits=self._limits)
        return tuple(frame if size is None else resize_with_pad(frame, *size) for frame in found)

    async def _one(
        self,
        index: int,
        seen: _Seen,
        options: LabelOptions,
        account: Account,
        tally: LabelTally,
        on_label: Callable[[int, PairAnswer], Awaitable[None]] | None,
    ) -> PairAnswer:
        if seen.alike:
            judgement, source = Judgement(chances=(0.0, 0.0, 1.0), label=TIE), "alike"
        else:
            key = self._key(seen, options)
            judgement, source = await self.cache.get(key, lambda: self._ask(seen.pair, options, account, tally))
        answer = PairAnswer(judgement=with_threshold(judgement, options.tie_threshold), source=source, keys=seen.keys)
        self._metrics.on_pair(answer.judgement, source)
        if on_label is not None:
            await on_label(index, answer)
        return answer

    async def _hold(self, size: int, own: Sequence[asyncio.Task[PairAnswer]]) -> None:
        """Count frames; where they do not fit beside the request's own earlier ones, wait until one of those is done.

        Raises:
            RoboserveError: `overloaded` where other requests take the room, `too_large` where all of it is too little.
        """
        limit = self._settings.frame_bytes
        if size > limit:
            raise RoboserveError("too_large", f"pairs: one of {size} bytes of frames, limit {limit} in all")
        while self._bytes + size > limit:
            going = [task for task in own if not task.done()]
            if not going:
                text = f"pairs: {self._bytes + size} bytes of frames under way, limit {limit}"
                raise RoboserveError("overloaded", text)
            await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # a task's callbacks run after whoever waits for it is woken
        self._bytes += size

    def _let_go(self, size: int, _task: asyncio.Task[PairAnswer]) -> None:
        self._bytes -= size

    async def _ask(self, pair: Pair, options: LabelOptions, account: Account, tally: LabelTally) -> Judgement:
        try:
            [judgement] = await self._labeller.label([pair], options)
        except RoboserveError:
            raise
        except ValueError as error:
            raise RoboserveError("invalid_request", str(error)) from error
        except Exception as error:
            raise RoboserveError("policy_failed", "pairs: the labeller failed on one of them") from error
        self._budget.spend(account, judgement.usage.tokens)
        self._metrics.on_asked(judgement.usage, unparsed=judgement.unparsed)
        tally.usage += judgement.usage
        return judgement

    def _key(self, seen: _Seen, options: LabelOptions) -> bytes:
        """Return what a judgement depends on, but for the threshold, which is applied to a kept one as well."""
        spec = self._labeller.spec
        digest = hashlib.blake2b(digest_size=24)
        parts = (*seen.keys, seen.pair.goal, spec.id, spec.revision, spec.content_hash, spec.prompt_id)
        for part in (*parts, options.protocol, options.order_swap, options.votes, seen.pair.values):
            data = part if isinstance(part, bytes) else repr(part).encode()
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.digest()
