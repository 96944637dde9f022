"""What an engine is asked and answers, whoever runs it: vLLM, transformers, or another server.

Two questions: go on with a conversation (`stream`), and how probable are these words as its next token (`labels`).
Labels are read from the whole vocabulary's distribution, before any constraint or temperature, so they are the same
numbers whichever engine reads them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from clients.errors import RoboserveError
from models.vlm.messages import images_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from pathlib import Path

    from models.vlm.constraint import ConstraintKind
    from models.vlm.messages import Message

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """What an answer must be.

    Attributes:
        kind: "choice" of texts, "regex", "json" schema, or Lark "grammar" (as llguidance reads it).
        value: tuple of texts, pattern, schema map, or grammar.
    """

    kind: ConstraintKind
    value: Any


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_tokens: most tokens of the answer.
        temperature: 0 takes the likeliest; `top_p`: of nucleus sampling, 0 to 1 (0 excluded).
        seed: of the draw; None draws anew each time.
        stop: texts that end the answer and are not part of it.
        logprobs: likeliest tokens to tell with each token; None tells nothing.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class VlmRequest:
    """A conversation to go on with.

    Attributes:
        adapter: name of the adapter that answers; None is the base.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    constraint: Constraint | None = None
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of an answer; `top`: the likeliest (text, logprob) in its place, most likely first."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class VlmChunk:
    """The next piece of an answer; the last has `finish` and the usage.

    Attributes:
        tokens: only where log-probabilities were asked for.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    finish: FinishReason | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class LabelReading:
    """How probable each label is as the next token.

    Attributes:
        logprobs: of each label, in the order asked, over the whole vocabulary; None where the engine could not tell (a
            remote server shows only its likeliest).
    """

    logprobs: tuple[float | None, ...]
    prompt_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class VlmSpec:
    """What an engine runs.

    Attributes:
        id, revision, content_hash: of the base model; empty hash where a remote server does not tell.
        engine: "vllm", "transformers" or "openai".
        dtype: of the computation, or the kind of quantisation.
        context: most tokens of prompt and answer together.
        images: most images of one conversation.
    """

    id: str
    revision: str
    content_hash: str
    engine: str
    dtype: str
    context: int
    images: int


def check_images(messages: Sequence[Message], spec: VlmSpec) -> None:
    """Refuse a conversation with more images than an engine takes.

    Raises:
        RoboserveError: `too_large`.
    """
    count = len(images_of(messages))
    if count > spec.images:
        raise RoboserveError("too_large", f"messages: {count} images, limit {spec.images}")


def label_id(tokenizer: Any, label: str) -> int:
    """Return the token that a label is.

    Raises:
        RoboserveError: `invalid_request` where it is none or several.
    """
    ids = tokenizer(label, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise RoboserveError("invalid_request", f"labels: {label[:32]!r} is {len(ids)} tokens, must be one")
    return int(ids[0])


def answering_hash(engine: VlmEngine, adapter: str | None) -> str:
    """Return what pins an answer's weights, SHA-256 in hex: the base's hash, or one of it and the adapter's."""
    base = engine.spec.content_hash
    if adapter is None:
        return base
    return hashlib.sha256(f"{base}:{adapter}:{engine.adapters.get(adapter, '')}".encode()).hexdigest()


class VlmEngine(Protocol):
    """Runs one vision-language model and its adapters.

    Errors are `RoboserveError`: `too_large` where prompt and answer exceed the context, `not_found` for an adapter,
    `invalid_request` for a constraint that cannot be compiled or a label that is not one token, `unavailable` where the
    engine ended or cannot be reached, `overloaded` where its queue is full.
    """

    @property
    def spec(self) -> VlmSpec:
        """What it runs."""
        ...

    @property
    def adapters(self) -> Mapping[str, str]:
        """Name to content hash of the adapters that it can answer with."""
        ...

    def stream(self, request: VlmRequest) -> AsyncGenerator[VlmChunk]:
        """Go on with a conversation; closing the iterator early frees what it holds."""
        ...

    async def labels(
        self, messages: tuple[Message, ...], labels: tuple[str, ...], *, adapter: str | None = None
    ) -> LabelReading:
        """Return how probable each label, a text of one token, is as the answer's first token."""
        ...

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Add an adapter, or put a new one in the place of the old."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
        ...

    def check_health(self) -> None:
        """Raise RuntimeError when it can answer no more."""
        ...

    async def close(self) -> None:
        """Free what it holds; requests under way fail as `unavailable`."""
        ...
