"""Steps of one network, given in turn to all who ask: labels that are read together, answers that go on together.

Everything the network does happens on one thread. Between two steps anyone may come in or leave, so a long answer keeps
nobody waiting for longer than a step.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from clients.errors import RoboserveError
from models.vlm.decoding import Decoding, Draw, Drawn, label_logprobs
from serving.vlm.contract import Token, VlmChunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.vlm.adapters import Adapters
    from models.vlm.checkpoint import VlmCheckpoint
    from models.vlm.inputs import Prompt
    from models.vlm.text import AnswerText
    from serving.vlm.contract import FinishReason

logger = logging.getLogger("ray.serve")
Result = TypeVar("Result")


@dataclass(kw_only=True, eq=False)
class LabelWork:
    """Labels to be read: token ids after a prompt; `slot` of the adapter."""

    prompt: Prompt
    ids: tuple[int, ...]
    slot: str | None
    done: asyncio.Future[list[float]]


@dataclass(kw_only=True, eq=False)
class AnswerWork:
    """One answer: `out` carries its chunks, the last with `finish`, or an error in the place of the rest."""

    prompt: Prompt
    draw: Draw
    slot: str | None
    text: AnswerText
    max_tokens: int
    out: asyncio.Queue[VlmChunk | RoboserveError] = field(default_factory=asyncio.Queue)
    answered: int = 0
    over: bool = False


@dataclass(kw_only=True, eq=False)
class _Round:
    """Answers that began together."""

    decoding: Decoding
    works: list[AnswerWork]
    slot: str | None


class Stepper:
    """Runs a checkpoint for everyone.

    Args:
        checkpoint: what runs; `adapters`: its adapters, which only this thread switches.
        max_batch: most prompts of one forward; `batch_tokens`: most tokens of it, padding included.
    """

    def __init__(self, checkpoint: VlmCheckpoint, adapters: Adapters, *, max_batch: int, batch_tokens: int) -> None:
        self._checkpoint, self._adapters = checkpoint, adapters
        self._max_batch, self._batch_tokens = max_batch, batch_tokens
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vlm-forward")
        self._labels: deque[LabelWork] = deque()
        self._waiting: deque[AnswerWork] = deque()
        self._rounds: list[_Round] = []
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self.fault: BaseException | None = None

    @property
    def under_way(self) -> int:
        """Requests that wait or go on."""
        going = sum(len(group.decoding.rows) for group in self._rounds)
        return len(self._labels) + len(self._waiting) + going

    def submit(self, work: LabelWork | AnswerWork) -> None:
        """Let work in at the next step."""
        if isinstance(work, LabelWork):
            self._labels.append(work)
        else:
            self._waiting.append(work)
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())
        self._wake.set()

    async def between_steps(self, work: Callable[[], Result]) -> Result:
        """Run something on the network's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Fail what is under way, let the running step end, free the thread."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        self._fail_all("the engine is closing")
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        try:
            while True:
                self._wake.clear()
                while self._labels or self._waiting or self._rounds:
                    await self._turn()
                await self._wake.wait()
        except Exception as error:
            self.fault = error
            logger.exception("the engine stopped")
            self._fail_all("the engine stopped")

    async def _turn(self) -> None:
        """Read the labels that wait, let answers begin, and give each round of answers one step."""
        if self._labels:
            await self._read_labels(self._take(self._labels))
        if self._waiting:
            await self._begin(self._take(self._waiting))
        for group in list(self._rounds):
            await self._step(group)

    def _take(self, queue: deque[Any]) -> list[Any]:
        """Take what rides together: of one adapter, within the token budget once padded."""
        first = queue.popleft()
        taken, longest = [first], len(first.prompt)
        for work in list(queue):
            if len(taken) >= self._max_batch:
                break
            padded = max(longest, len(work.prompt))
            if work.slot == first.slot and padded * (len(taken) + 1) <= self._batch_tokens:
                queue.remove(work)
                taken.append(work)
                longest = padded
        return taken

    async def _read_labels(self, works: list[LabelWork]) -> None:
        works = [work for work in works if not work.done.done()]
        if not works:
            return

        def read() -> list[list[float]]:
            self._adapters.use(works[0].slot)
            return label_logprobs(self._checkpoint, [work.prompt for work in works], [work.ids for work in works])

        try:
            tables = await self._forward(read)
        except RoboserveError as error:
            if len(works) == 1:
                _settle(works[0], error)
            else:  # one of them may have spoilt it for the others
                for work in works:
                    await self._read_labels([work])
            return
        for work, table in zip(works, tables, strict=True):
            if not work.done.done():
                work.done.set_result(table)

    async def _begin(self, works: list[AnswerWork]) -> None:
        works = [work for work in works if not work.over]
        if not works:
            return

        def begin() -> Decoding:
            self._adapters.use(works[0].slot)
            return Decoding(self._checkpoint, [work.prompt for work in works], [work.draw for work in works])

        try:
            decoding = await self._forward(begin)
        except RoboserveError as error:
            if len(works) == 1:
                _fail(works[0], error)
            else:
                for work in works:
                    await self._begin([work])
            return
        self._rounds.append(_Round(decoding=decoding, works=works, slot=works[0].slot))

    async def _step(self, group: _Round) -> None:
        try:
            drawn = await self._forward(group.decoding.draw)
            ended = {item.row for item in drawn if self._tell(group, item)}
            await self._forward(lambda: self._advance(group, ended))
        except RoboserveError as error:
            for work in group.works:
                _fail(work, error)
            self._rounds.remove(group)
            return
        if not group.decoding.rows:
            self._rounds.remove(group)

    def _advance(self, group: _Round, ended: set[int]) -> None:
        self._adapters.use(group.slot)
        group.decoding.advance(ended)

    def _tell(self, group: _Round, item: Drawn) -> bool:
        """Pass a token on to who asked; return whether the answer is over."""
        work = group.works[item.row]
        if work.over:
            return True
        work.answered += 1
        if group.decoding.is_end(item.token):
            return self._end(work, work.text.end(), "stop")
        shown = work.text.add(item.token)
        tokens = (self._token(item, item.logprob),) if item.logprob is not None else ()
        if work.text.stopped:
            return self._end(work, shown, "stop", tokens)
        if work.answered >= work.max_tokens:
            return self._end(work, shown + work.text.end(), "length", tokens)
        if shown or tokens:
            work.out.put_nowait(VlmChunk(text=shown, tokens=tokens))
        return False

    def _end(self, work: AnswerWork, text: str, finish: FinishReason, tokens: tuple[Token, ...] = ()) -> bool:
        work.over = True
        counts = {"prompt_tokens": len(work.prompt), "answer_tokens": work.answered}
        work.out.put_nowait(VlmChunk(text=text, tokens=tokens, finish=finish, **counts))
        return True

    def _token(self, item: Drawn, logprob: float) -> Token:
        decode = self._checkpoint.tokenizer.decode
        top = tuple((decode([token]), value) for token, value in item.top)
        return Token(text=decode([item.token]), logprob=logprob, top=top)

    async def _forward(self, work: Callable[[], Result]) -> Result:
        """Run a step on the network's thread.

        Raises:
            RoboserveError: `internal`, with what the network raised as its cause.
        """
        try:
            return await self.between_steps(work)
        except Exception as error:
            logger.exception("a forward failed", extra={"model": self._checkpoint.folder.id})
            raise RoboserveError("internal", "vlm: the model failed on this request") from error

    def _fail_all(self, why: str) -> None:
        error = RoboserveError("unavailable", f"vlm: {why}")
        for work in self._labels:
            _settle(work, error)
        for answer in [*self._waiting, *(work for group in self._rounds for work in group.works)]:
            _fail(answer, error)
        self._labels.clear()
        self._waiting.clear()
        self._rounds.clear()


def _settle(work: LabelWork, error: RoboserveError) -> None:
    if not work.done.done():
        work.done.set_exception(error)


def _fail(work: AnswerWork, error: RoboserveError) -> None:
    if not work.over:
        work.over = True
        work.out.put_nowait(error)
