"""The engine that runs vLLM: continuous batching, prefix and image caches, adapters that ride in one batch.

The prompt is rendered by the same composer as for transformers, so that both read the same tokens; vLLM expands an
image's token itself. Images go by the hash of their pixels, so one that was seen is neither preprocessed nor encoded
anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from itertools import count
from typing import TYPE_CHECKING, Any

from PIL import Image

from clients.errors import RoboserveError
from models.vlm.adapters import check_adapter
from models.vlm.checkpoint import VlmFolder, load_composer
from models.vlm.constraint import Grammars
from models.vlm.messages import images_of, user
from serving.vlm.adapter_slots import AdapterSlots
from serving.vlm.contract import LabelReading, Token, VlmChunk, VlmSpec, check_images, label_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from pathlib import Path

    from models.vlm.inputs import Composer
    from models.vlm.messages import Message
    from serving.vlm.contract import Constraint, FinishReason, Sampling, VlmRequest
    from serving.vlm.engines import VllmSettings

logger = logging.getLogger("ray.serve")

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its binding would share one core among all replicas of a machine
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
}


class VllmEngine:
    """A vision-language model in vLLM's own process; `start` makes one."""

    def __init__(self, engine: Any, folder: VlmFolder, composer: Composer, settings: VllmSettings) -> None:
        self._engine, self._composer, self._settings = engine, composer, settings
        tokenizer = composer.tokenizer
        self._grammars = Grammars(tokenizer, vocabulary=len(tokenizer), ends=frozenset({int(tokenizer.eos_token_id)}))
        self._numbers = count(1)
        self._requests: dict[str, Any] = {}
        self._slots = AdapterSlots(self._load_slot, self._free_slot)
        self._under_way = 0
        self._closed = False
        self.spec = VlmSpec(
            id=folder.id,
            revision=folder.revision,
            content_hash=folder.content_hash,
            engine="vllm",
            dtype=settings.dtype if settings.quantization == "none" else settings.quantization,
            context=min(settings.context or folder.context, folder.context),
            images=settings.images,
        )

    @classmethod
    async def start(cls, settings: VllmSettings) -> VllmEngine:
        """Start vLLM on a checkpoint and load its adapters.

        Raises:
            ImportError: vLLM is not installed; the message says how it is.
            FileNotFoundError, ValueError: the checkpoint is missing or damaged.
        """
        folder = VlmFolder.read(settings.folder)
        composer = load_composer(settings.folder)
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        raw = await asyncio.to_thread(_start_engine, settings, folder)
        engine = cls(raw, folder, composer, settings)
        for name, path in settings.all_adapters(folder).items():
            await engine.load_adapter(name, path)
        # vLLM compiles its log-probabilities at the first request that wants them: seconds, which no caller should pay.
        await engine._read((user("."),), [0], None)
        return engine

    @property
    def adapters(self) -> Mapping[str, str]:
        """Name to content hash of the adapters."""
        return dict(self._slots.hashes)

    async def stream(self, request: VlmRequest) -> AsyncGenerator[VlmChunk]:
        """Go on with a conversation; see `VlmEngine`."""
        params = await asyncio.to_thread(self._params, request.sampling, request.constraint)
        tops = request.sampling.logprobs
        answered = 0
        async with self._slots.hold(request.adapter) as slot:
            async for output in self._generate(request.messages, params, slot):
                answer = output.outputs[0]
                answered += len(answer.token_ids)
                finish: FinishReason | None = None
                if answer.finish_reason is not None:
                    finish = "length" if answer.finish_reason == "length" else "stop"
                tokens = () if tops is None else tuple(self._tokens(answer, tops))
                yield VlmChunk(
                    text=answer.text,
                    tokens=tokens,
                    finish=finish,
                    prompt_tokens=len(output.prompt_token_ids),
                    answer_tokens=answered,
                )

    async def labels(
        self, messages: tuple[Message, ...], labels: tuple[str, ...], *, adapter: str | None = None
    ) -> LabelReading:
        """Return how probable each label is as the next token; see `VlmEngine`."""
        ids = [label_id(self._composer.tokenizer, label) for label in labels]
        async with self._slots.hold(adapter) as slot:
            return await self._read(messages, ids, slot)

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Add an adapter; see `VlmEngine`."""
        await self._slots.load(name, folder)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; see `VlmEngine`."""
        await self._slots.unload(name)

    def check_health(self) -> None:
        """Raise when vLLM's process has ended."""
        if self._closed or self._engine.errored:
            raise RuntimeError("the engine stopped")

    async def close(self) -> None:
        """End vLLM's process."""
        self._closed = True
        engine, self._engine = self._engine, _Ended()
        await asyncio.to_thread(engine.shutdown)

    async def _read(self, messages: tuple[Message, ...], ids: list[int], slot: str | None) -> LabelReading:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=ids, output_kind=RequestOutputKind.FINAL_ONLY
        )
        async for output in self._generate(messages, params, slot):
            table = output.outputs[0].logprobs[0]
            logprobs = tuple(table[number].logprob for number in ids)
            return LabelReading(logprobs=logprobs, prompt_tokens=len(output.prompt_token_ids))
        raise RoboserveError("internal", "vlm: the engine gave no answer")

    async def _generate(self, messages: tuple[Message, ...], params: Any, slot: str | None) -> AsyncGenerator[Any]:
        """Yield vLLM's outputs; an iterator that is closed early aborts the request there.

        Raises:
            RoboserveError: as `VlmEngine` says.
        """
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError

        self._admit()
        check_images(messages, self.spec)
        prompt = await asyncio.to_thread(self._prompt, messages)
        self._under_way += 1
        lora = None if slot is None else self._requests[slot]
        try:
            async for output in self._engine.generate(prompt, params, f"r{next(self._numbers)}", lora_request=lora):
                yield output
        except EngineDeadError as error:
            raise RoboserveError("unavailable", "vlm: the engine stopped") from error
        except (ValueError, VLLMValidationError) as error:
            raise self._refusal(error) from error
        finally:
            self._under_way -= 1

    def _admit(self) -> None:
        if self._closed or self._engine.errored:
            raise RoboserveError("unavailable", "vlm: the engine stopped")
        if self._under_way >= self._settings.max_queue:
            raise RoboserveError(
                "overloaded", f"vlm: {self._under_way} requests under way, limit {self._settings.max_queue}"
            )

    def _prompt(self, messages: Sequence[Message]) -> dict[str, Any]:
        images = images_of(messages)
        prompt: dict[str, Any] = {"prompt": self._composer.render(messages)}
        if images:
            prompt["multi_modal_data"] = {"image": [Image.fromarray(image) for image in images]}
            hashes = [hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest() for image in images]
            prompt["multi_modal_uuids"] = {"image": hashes}
        return prompt

    def _refusal(self, error: Exception) -> RoboserveError:
        """Say what vLLM refused; its own words for a prompt that is too long do not name our fields."""
        text = str(error)
        if "maximum model length" in text or "longer than" in text or "context length" in text:
            return RoboserveError("too_large", f"messages: over {self.spec.context} tokens with the answer, the limit")
        return RoboserveError("invalid_request", f"vlm: {text[:200]}")

    def _params(self, sampling: Sampling, constraint: Constraint | None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        structured = None
        if constraint is not None:
            try:  # vLLM compiles in its core, where a grammar that cannot be compiled is harder to tell from a fault
                self._grammars.compile(constraint.kind, constraint.value)
            except ValueError as error:
                raise RoboserveError("invalid_request", f"constraint: {error}") from error
            value = list(constraint.value) if constraint.kind == "choice" else constraint.value
            structured = StructuredOutputsParams(**{constraint.kind: value}, disable_any_whitespace=True)
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop=list(sampling.stop),
            logprobs=sampling.logprobs,
            structured_outputs=structured,
            output_kind=RequestOutputKind.DELTA,
        )

    def _tokens(self, answer: Any, tops: int) -> list[Token]:
        decode, end = self._composer.tokenizer.decode, self._composer.tokenizer.eos_token_id
        tokens = []
        for number, table in zip(answer.token_ids, answer.logprobs or (), strict=False):
            if number == end:
                continue
            ranked = sorted(table.items(), key=lambda item: -item[1].logprob)[:tops]
            top = tuple((decode([key]), value.logprob) for key, value in ranked)
            tokens.append(Token(text=decode([number]), logprob=table[number].logprob, top=top))
        return tokens

    async def _load_slot(self, name: str, folder: Path) -> str:
        from vllm.lora.request import LoRARequest

        rank = check_adapter(folder)
        if rank > self._settings.max_rank:
            raise ValueError(f"adapter: rank {rank}, limit {self._settings.max_rank} (engine.max_rank)")
        number = next(self._numbers)
        slot = f"{name}-{number}"
        request = LoRARequest(lora_name=slot, lora_int_id=number, lora_path=str(folder))
        try:
            await self._engine.add_lora(request)
        except Exception as error:
            raise ValueError(f"adapter: {folder.name!r} does not fit the base: {error}"[:300]) from error
        self._requests[slot] = request
        return slot

    async def _free_slot(self, slot: str) -> None:
        await self._engine.remove_lora(self._requests.pop(slot).lora_int_id)


class _Ended:
    """In the engine's place once it has ended, so that nothing of vLLM's is left to be torn down with the process."""

    errored = True


def _start_engine(settings: VllmSettings, folder: VlmFolder) -> Any:
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise ImportError("engine: vllm is not installed: `make vllm` on a CPU, the extra vllm on a GPU") from error
    context = min(settings.context or folder.context, folder.context)
    options: dict[str, Any] = {}
    if settings.quantization != "none":
        options["quantization"] = settings.quantization
    args = AsyncEngineArgs(
        model=str(settings.folder),
        dtype=settings.dtype,
        enforce_eager=settings.eager,
        max_model_len=context,
        max_num_seqs=settings.max_batch,
        limit_mm_per_prompt={"image": settings.images, "video": 0},
        kv_cache_memory_bytes=settings.kv_cache_bytes,
        mm_processor_cache_gb=settings.image_cache_gib,
        enable_prefix_caching=True,
        enable_lora=True,
        max_loras=settings.max_adapters,
        max_lora_rank=settings.max_rank,
        tensor_parallel_size=settings.tensor_parallel,
        structured_outputs_config={"backend": "guidance", "disable_any_whitespace": True},
        trust_remote_code=False,
        enable_mm_embeds=False,
        disable_log_stats=True,
        **options,
    )
    return AsyncLLM.from_engine_args(args)
