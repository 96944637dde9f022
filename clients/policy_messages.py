"""Messages of the native policy protocol, apart from any transport: requests to send, replies to read and refuse."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Dict, Mapping, Optional, Type, TypeVar

import numpy as np

from clients.contract import PolicyContract
from clients.errors import RoboserveError
from clients.images import Array, WireImage, encode_image, resize_with_pad

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class ActOptions:
    """Options of one act request; an option left at None is not sent, and the policy's default holds.

    Attributes:
        seed: noise seed; the same request with the same seed gives the same chunk.
        integration_steps: Euler steps of the flow, 1 or more.
        inference_delay: RTC: rows of the previous chunk that will be played before this answer arrives (d).
        leftover: RTC: unplayed rest of the previous chunk in model space, float32 (n, model action size).
        executed: RTC: rows of the previous chunk already played when the observation was taken; without `leftover` the
            server then uses its own memory of the session's last chunk.
        execution_horizon: RTC: row up to which the previous chunk still guides.
        return_model_actions: also return the chunk in model space.
        noise: what the chunk starts from, in model space, float32 (H, model action size).
        context_level: 0 trusts the context, 1 erases it; `context_noise`: float32 (context size,), takes its place.
        return_summary: also return what the policy read from the observation.
    """

    seed: Optional[int] = None
    integration_steps: Optional[int] = None
    inference_delay: Optional[int] = None
    leftover: Optional[Array] = None
    executed: Optional[int] = None
    execution_horizon: Optional[int] = None
    return_model_actions: Optional[bool] = None
    noise: Optional[Array] = None
    context_level: Optional[float] = None
    context_noise: Optional[Array] = None
    return_summary: Optional[bool] = None

    def to_map(self) -> Dict[str, Any]:
        """Return the wire form: the options that are set."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("leftover", "noise", "context_noise"):
            if values[name] is not None:
                values[name] = np.ascontiguousarray(values[name], dtype=np.float32)
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class ModelId:
    """Which weights gave an answer: the model's name, its author's revision, and the SHA-256 of what was loaded."""

    id: str
    revision: str
    content_hash: str


@dataclass(frozen=True)
class ActReply:
    """One answer of a policy.

    Attributes:
        actions: float32 (H, action size), physical units, finite, writable.
        model_actions: float32 (H, model action size) where it was asked for.
        timings: ms spent on the server, by part: queue, batch_wait, decode, forward, encode, total.
        batch_size: items in the batch that this request rode in.
        model: which weights answered.
        round_trip_ms: from the first byte sent to the reply decoded, on this side's clock.
        seed: that noise was drawn from, asked for or not; with it the same request gives the same chunk again. None for
            a policy that draws none.
        context_level: that was used; None for a policy without.
        summary: float32 (L,), what the policy read from the observation, where it was asked for.
    """

    actions: Array
    model_actions: Optional[Array]
    timings: Mapping[str, float]
    batch_size: int
    model: ModelId
    round_trip_ms: float
    seed: Optional[int] = None
    context_level: Optional[float] = None
    summary: Optional[Array] = None


def fit_images(
    contract: PolicyContract, images: Mapping[str, Array], *, codec: str = "jpeg", quality: int = 90
) -> Dict[str, WireImage]:
    """Resize (with padding) and encode the cameras that the contract names; other cameras are left out.

    Args:
        images: camera name to RGB uint8 (height, width, 3) of any size.
        codec: "jpeg", "png" or "raw"; see `clients.images.encode_image`.

    Raises:
        RoboserveError: `invalid_image` naming the camera that is missing or of another shape or dtype.
    """
    fitted: Dict[str, WireImage] = {}
    for camera in contract.cameras:
        image = images.get(camera.name)
        if image is None:
            given = ", ".join(images) or "none"
            raise RoboserveError("invalid_image", f"images.{camera.name}: the policy needs it, given were {given}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise RoboserveError(
                "invalid_image", f"images.{camera.name}: {image.dtype} {image.shape}, needs uint8 (height, width, 3)"
            )
        fitted[camera.name] = encode_image(resize_with_pad(image, camera.height, camera.width), codec, quality=quality)
    return fitted


def act_message(
    request_id: str,
    *,
    images: Mapping[str, WireImage],
    state: Array,
    instruction: str,
    session: str,
    deadline_ms: Optional[float],
    adapter: Optional[str],
    options: Optional[ActOptions],
) -> Dict[str, Any]:
    """Return an act request as the map that goes on the wire."""
    return {
        "type": "act",
        "request_id": request_id,
        "session": session,
        "deadline_ms": deadline_ms,
        "adapter": adapter,
        "observation": {
            "images": dict(images),
            "state": np.ascontiguousarray(state, dtype=np.float32),
            "instruction": instruction,
        },
        "options": {} if options is None else options.to_map(),
    }


def read_reply(message: Mapping[str, Any], contract: PolicyContract, *, round_trip_ms: float) -> ActReply:
    """Read an action reply, and refuse one that no robot may play.

    Raises:
        RoboserveError: `invalid_output` for another type, shape or dtype than the contract's, or values not finite.
    """
    if message.get("type") != "action":
        raise RoboserveError("invalid_output", f"reply type: {message.get('type')!r}, expected 'action'")
    actions = _matrix(message.get("actions"), "actions")
    if actions.shape != (contract.chunk_length, contract.action.size):
        wanted = (contract.chunk_length, contract.action.size)
        raise RoboserveError("invalid_output", f"actions: shape {actions.shape}, the contract says {wanted}")
    raw = message.get("model_actions")
    timings, model, batch = message.get("timings"), message.get("model"), message.get("batch_size")
    if not isinstance(timings, Mapping) or not isinstance(model, Mapping) or not isinstance(batch, int):
        raise RoboserveError("invalid_output", "reply: needs timings and model as maps and batch_size as an integer")
    return ActReply(
        actions=actions,
        model_actions=None if raw is None else _matrix(raw, "model_actions"),
        timings={str(name): float(value) for name, value in timings.items() if isinstance(value, (int, float))},
        batch_size=batch,
        model=ModelId(*(str(model.get(name, "")) for name in ("id", "revision", "content_hash"))),
        round_trip_ms=round_trip_ms,
        seed=_optional(message, "seed", int),
        context_level=_optional(message, "context_level", float),
        summary=_summary(message.get("summary")),
    )


def read_contract(message: Any) -> PolicyContract:
    """Read the server's first message.

    Raises:
        RoboserveError: the server's own refusal, or `contract_mismatch` where it is no contract of this protocol.
    """
    if not isinstance(message, Mapping):
        raise RoboserveError("contract_mismatch", "the server's first message is not a map: it speaks another protocol")
    if message.get("type") == "error":
        raise RoboserveError.from_map(message)
    return PolicyContract.from_map(message)


def _optional(message: Mapping[str, Any], name: str, kind: Type[_Number]) -> Optional[_Number]:
    value = message.get(name)
    if value is not None and not isinstance(value, kind):
        raise RoboserveError("invalid_output", f"{name}: must be of type {kind.__name__}")
    return value


def _summary(value: Any) -> Optional[Array]:
    if value is not None and not (isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "f"):
        raise RoboserveError("invalid_output", "summary: must be a one-dimensional array of floats")
    return value


def _matrix(value: Any, noun: str) -> Array:
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind != "f":
        raise RoboserveError("invalid_output", f"{noun}: must be a two-dimensional array of floats")
    if not np.isfinite(value).all():
        raise RoboserveError("invalid_output", f"{noun}: holds a value that is not finite")
    return value.astype(np.float32, copy=False)
