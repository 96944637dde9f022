"""The engine that runs transformers in the replica itself: no vLLM, the same answers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from clients.errors import RoboserveError
from models.vlm.adapters import Adapters
from models.vlm.checkpoint import load_checkpoint
from models.vlm.constraint import Grammars
from models.vlm.decoding import Draw
from models.vlm.text import AnswerText
from serving.vlm.adapter_slots import AdapterSlots
from serving.vlm.contract import LabelReading, VlmSpec, check_images, label_id
from serving.vlm.stepper import AnswerWork, LabelWork, Stepper

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from pathlib import Path

    from models.vlm.checkpoint import VlmCheckpoint
    from models.vlm.inputs import Prompt
    from models.vlm.messages import Message
    from serving.vlm.contract import VlmChunk, VlmRequest
    from serving.vlm.engines import TransformersSettings

Result = TypeVar("Result")


class TransformersEngine:
    """A vision-language model of the Qwen-VL families in this process; `start` makes one.

    Args:
        checkpoint: what runs.
        settings: its limits.
    """

    def __init__(self, checkpoint: VlmCheckpoint, settings: TransformersSettings) -> None:
        self._checkpoint = checkpoint
        self._max_queue = settings.max_queue
        network: Any = checkpoint.network
        self._grammars = Grammars(
            checkpoint.tokenizer, vocabulary=network.config.get_text_config().vocab_size, ends=checkpoint.ends
        )
        adapters = Adapters(network)
        self._stepper = Stepper(checkpoint, adapters, max_batch=settings.max_batch, batch_tokens=settings.batch_tokens)
        self._slots = AdapterSlots(
            lambda name, folder: self._stepper.between_steps(lambda: adapters.load(name, folder)),
            lambda slot: self._stepper.between_steps(lambda: adapters.free(slot)),
        )
        self.spec = VlmSpec(
            id=checkpoint.folder.id,
            revision=checkpoint.folder.revision,
            content_hash=checkpoint.folder.content_hash,
            engine="transformers",
            dtype=settings.dtype if settings.quantization == "none" else settings.quantization,
            context=min(settings.context or checkpoint.folder.context, checkpoint.folder.context),
            images=settings.images,
        )
        self._composers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="vlm-compose")
        self._closed = False

    @classmethod
    async def start(cls, settings: TransformersSettings) -> TransformersEngine:
        """Load a checkpoint and its adapters.

        Raises:
            FileNotFoundError, ValueError, ImportError: see `load_checkpoint` and `Grammars`.
            RoboserveError: `invalid_request` for an adapter that does not fit.
        """
        checkpoint = await asyncio.to_thread(
            load_checkpoint,
            settings.folder,
            device=settings.device,
            dtype=settings.dtype,
            quantization=settings.quantization,
        )
        engine = cls(checkpoint, settings)
        for name, folder in settings.all_adapters(checkpoint.folder).items():
            await engine.load_adapter(name, folder)
        return engine

    @property
    def adapters(self) -> Mapping[str, str]:
        """Name to content hash of the adapters."""
        return dict(self._slots.hashes)

    async def stream(self, request: VlmRequest) -> AsyncGenerator[VlmChunk]:
        """Go on with a conversation; see `VlmEngine`."""
        self._admit()
        async with self._slots.hold(request.adapter) as slot:
            work = await self._off_loop(lambda: self._answer_work(request, slot))
            self._stepper.submit(work)
            try:
                while True:
                    item = await work.out.get()
                    if isinstance(item, RoboserveError):
                        raise item
                    yield item
                    if item.finish is not None:
                        return
            finally:
                work.over = True

    async def labels(
        self, messages: tuple[Message, ...], labels: tuple[str, ...], *, adapter: str | None = None
    ) -> LabelReading:
        """Return how probable each label is as the next token; see `VlmEngine`."""
        self._admit()
        ids = tuple(label_id(self._checkpoint.tokenizer, label) for label in labels)
        async with self._slots.hold(adapter) as slot:
            prompt = await self._off_loop(lambda: self._compose(messages, room=1))
            done: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
            self._stepper.submit(LabelWork(prompt=prompt, ids=ids, slot=slot, done=done))
            return LabelReading(logprobs=tuple(await done), prompt_tokens=len(prompt))

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Add an adapter between two steps; see `VlmEngine`."""
        await self._slots.load(name, folder)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; see `VlmEngine`."""
        await self._slots.unload(name)

    def check_health(self) -> None:
        """Raise when nothing can be answered any more."""
        if self._closed or self._stepper.fault is not None:
            raise RuntimeError("the engine stopped") from self._stepper.fault

    async def close(self) -> None:
        """Fail what is under way and free threads."""
        self._closed = True
        await self._stepper.close()
        self._composers.shutdown(wait=False)

    def _admit(self) -> None:
        if self._closed or self._stepper.fault is not None:
            raise RoboserveError("unavailable", "vlm: the engine stopped")
        if self._stepper.under_way >= self._max_queue:
            raise RoboserveError(
                "overloaded", f"vlm: {self._stepper.under_way} requests under way, limit {self._max_queue}"
            )

    def _answer_work(self, request: VlmRequest, slot: str | None) -> AnswerWork:
        sampling, constraint = request.sampling, request.constraint
        prompt = self._compose(request.messages, room=sampling.max_tokens)
        mask = None
        if constraint is not None:
            try:
                mask = self._grammars.compile(constraint.kind, constraint.value)
            except ValueError as error:
                raise RoboserveError("invalid_request", f"constraint: {error}") from error
        draw = Draw(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            tops=sampling.logprobs,
            mask=mask,
        )
        text = AnswerText(self._checkpoint.tokenizer, sampling.stop)
        return AnswerWork(prompt=prompt, draw=draw, slot=slot, text=text, max_tokens=sampling.max_tokens)

    def _compose(self, messages: Sequence[Message], *, room: int) -> Prompt:
        check_images(messages, self.spec)
        prompt = self._checkpoint.composer.compose(messages)
        if len(prompt) + room > self.spec.context:
            raise RoboserveError(
                "too_large",
                f"messages: {len(prompt)} tokens and {room} of the answer, limit {self.spec.context} together",
            )
        return prompt

    async def _off_loop(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._composers, work)
