"""OpenAI's chat request, as much of it as is served; what would change the answer and is not served is refused.

Field names and meanings: https://platform.openai.com/docs/api-reference/chat; `structured_outputs` is vLLM's.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clients.errors import RoboserveError
from models.vlm.messages import Message
from serving.clips import ClipLimits, decode_frame
from serving.vlm.contract import Constraint, Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serving.vlm.config import VlmLimits

_DATA = "data:image/"
_KINDS = ("png", "jpeg", "jpg")
ModelT = TypeVar("ModelT", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TextPart(_Part):
    """A text of a turn."""

    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    """An image, inline."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Part):
    """An image of a turn."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Turn(_Part):
    """One turn; an assistant's has text only."""

    role: Literal["system", "user", "assistant", "developer"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str | None = None


class JsonSchema(_Part):
    """A schema that the answer must keep."""

    name: str = "answer"
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(_Part):
    """What the answer is: text, any JSON, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_goes_with_its_type(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: must be there for the type json_schema, and only for it")
        return self


class StructuredOutputs(_Part):
    """vLLM's field for answers of a form: one of the four."""

    choice: list[str] | None = None
    regex: str | None = None
    json_: dict[str, Any] | None = Field(None, alias="json")
    grammar: str | None = None

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if sum(value is not None for value in (self.choice, self.regex, self.json_, self.grammar)) != 1:
            raise ValueError("must have exactly one of choice, regex, json, grammar")
        return self


class StreamOptions(_Part):
    """What a stream tells beside the answer."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """One request. Fields that change nothing here (`user`, `metadata`, `store`, `service_tier`) are accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str
    messages: list[Turn] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: Literal[1] = 1
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] = 0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] = 0
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A request that passed: what the engine is asked, and how the answer is told."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    constraint: Constraint | None
    stream: bool
    include_usage: bool


def parse_chat(body: bytes, limits: VlmLimits, *, images: int, pixels: int) -> Chat:
    """Read a request.

    Args:
        images: most images of it; `pixels`: of each.

    Raises:
        RoboserveError: `malformed`, `invalid_request`, `invalid_image` or `too_large`, naming field and limit.
    """
    request = read_model(body, ChatRequest)
    messages = read_turns(request.messages, limits, images=images, pixels=pixels)
    wanted = request.max_completion_tokens or request.max_tokens or min(limits.default_tokens, limits.answer_tokens)
    if wanted > limits.answer_tokens:
        raise RoboserveError("too_large", f"max_tokens: {wanted}, limit {limits.answer_tokens}")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stop) > 4 or not all(stop):
        raise RoboserveError("invalid_request", f"stop: {len(stop)} texts, limit 4, none empty")
    if request.top_logprobs is not None and not request.logprobs:
        raise RoboserveError("invalid_request", "top_logprobs: needs logprobs: true")
    sampling = Sampling(
        max_tokens=wanted,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=tuple(stop),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )
    return Chat(
        model=request.model,
        messages=messages,
        sampling=sampling,
        constraint=_constraint(request),
        stream=request.stream,
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
    )


def read_turns(turns: Sequence[Turn], limits: VlmLimits, *, images: int, pixels: int) -> tuple[Message, ...]:
    """Return a conversation with its images decoded; counts are checked before a pixel is. Raises as `parse_chat`."""
    if len(turns) > limits.messages:
        raise RoboserveError("too_large", f"messages: {len(turns)}, limit {limits.messages}")
    _count(turns, limits, images)
    return tuple(_message(turn, index, pixels) for index, turn in enumerate(turns))


def read_model(body: bytes, model: type[ModelT]) -> ModelT:
    """Read JSON into a pydantic model.

    Raises:
        RoboserveError: `malformed` for what is no JSON map, `invalid_request` naming the fields that are wrong.
    """
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RoboserveError("malformed", "body: is not valid JSON") from error
    if not isinstance(raw, dict):
        raise RoboserveError("malformed", "body: must be a JSON map")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:4])
        raise RoboserveError("invalid_request", where[:400]) from error


def inline_image(url: str, *, field: str, pixels: int) -> Any:
    """Return the image of a data URL, uint8 (height, width, 3) RGB; no address is ever fetched.

    Raises:
        RoboserveError: `invalid_image` or `too_large`.
    """
    head, comma, data = url.partition(",")
    kind = head.removeprefix(_DATA).removesuffix(";base64")
    if not comma or not head.startswith(_DATA) or not head.endswith(";base64") or kind not in _KINDS:
        raise RoboserveError(
            "invalid_image", f"{field}: {head[:40]!r}; images come inline, as data:image/png;base64 or image/jpeg"
        )
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RoboserveError("invalid_image", f"{field}: is not base64") from error
    return decode_frame(raw, field, ClipLimits(frames=1, pixels=pixels))


def _count(turns: Sequence[Turn], limits: VlmLimits, images: int) -> None:
    parts = [part for turn in turns if not isinstance(turn.content, str) for part in turn.content]
    shown = sum(isinstance(part, ImagePart) for part in parts)
    if shown > images:
        raise RoboserveError("too_large", f"messages: {shown} images, limit {images}")
    texts = [turn.content for turn in turns if isinstance(turn.content, str)]
    chars = sum(map(len, texts)) + sum(len(part.text) for part in parts if isinstance(part, TextPart))
    if chars > limits.text_chars:
        raise RoboserveError("too_large", f"messages: {chars} characters of text, limit {limits.text_chars}")


def _message(turn: Turn, index: int, pixels: int) -> Message:
    role: Any = "system" if turn.role == "developer" else turn.role
    if isinstance(turn.content, str):
        return Message(role=role, content=(turn.content,))
    parts: list[Any] = []
    for place, part in enumerate(turn.content):
        if isinstance(part, TextPart):
            parts.append(part.text)
        elif role == "user":
            field = f"messages.{index}.content.{place}.image_url"
            parts.append(inline_image(part.image_url.url, field=field, pixels=pixels))
        else:
            raise RoboserveError("invalid_request", f"messages.{index}: the role {role} shows no images")
    return Message(role=role, content=tuple(parts))


def _constraint(request: ChatRequest) -> Constraint | None:
    wanted = request.structured_outputs
    form = request.response_format
    if wanted is not None:
        if form is not None and form.type != "text":
            raise RoboserveError("invalid_request", "structured_outputs: not together with response_format")
        values = {"choice": wanted.choice, "regex": wanted.regex, "json": wanted.json_, "grammar": wanted.grammar}
        [(kind, value)] = [(name, value) for name, value in values.items() if value is not None]
        return Constraint(kind=kind, value=tuple(value) if isinstance(value, list) else value)  # type: ignore[arg-type]
    if form is None or form.type == "text":
        return None
    schema = {"type": "object"} if form.json_schema is None else form.json_schema.schema_
    return Constraint(kind="json", value=schema)
