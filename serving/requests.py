"""From a decoded message to a checked request: every field is looked at once, here, whatever the dialect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from clients.images import decode_image
from models.policies.contract import ActOptions, Observation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from models.policies.contract import PolicySpec

_ID_CHARS = 128
_MAX_STEPS = 100
_MAX_DEADLINE_MS = 3_600_000.0


@dataclass(frozen=True, kw_only=True)
class ActRequest:
    """A checked request. `deadline_ms` counts from receipt; `executed` asks for RTC from the session's memory."""

    request_id: str | None
    session: str
    adapter: str | None
    deadline_ms: float | None
    observation: Observation
    options: ActOptions
    executed: int | None
    return_model_actions: bool


def request_id_of(message: Any) -> str | None:
    """Return the request's id if it has a usable one, for the error that answers it."""
    value = message.get("request_id") if isinstance(message, dict) else None
    return value if isinstance(value, str) and len(value) <= _ID_CHARS else None


def short_text(message: Mapping[str, Any], field: str) -> str | None:
    """Return an optional id-like text; an empty one counts as none.

    Raises:
        RoboserveError: `invalid_request`.
    """
    value = message.get(field)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > _ID_CHARS:
        raise RoboserveError("invalid_request", f"{field}: must be text of at most {_ID_CHARS} characters")
    return value


def parse_act(message: Mapping[str, Any], spec: PolicySpec, *, session: str, max_pixels: int) -> ActRequest:
    """Check an act request against the policy's spec.

    Args:
        message: decoded map of a native request.
        session: used when the message names none.
        max_pixels: cap on one image.

    Raises:
        RoboserveError: naming the field, the value and the limit.
    """
    observation = message.get("observation")
    if not isinstance(observation, dict):
        raise RoboserveError("invalid_request", "observation: must be a map with images, state and instruction")
    options = message.get("options") or {}
    if not isinstance(options, dict):
        raise RoboserveError("invalid_request", "options: must be a map")
    return ActRequest(
        request_id=request_id_of(message),
        session=short_text(message, "session") or session,
        adapter=short_text(message, "adapter"),
        deadline_ms=_number(message, "deadline_ms", 0.0, _MAX_DEADLINE_MS),
        observation=parse_observation(observation, spec, max_pixels=max_pixels),
        options=_options(options, spec),
        executed=_integer(options, "executed", 0, spec.chunk_length),
        return_model_actions=options.get("return_model_actions") is True,
    )


def parse_observation(observation: Mapping[str, Any], spec: PolicySpec, *, max_pixels: int) -> Observation:
    """Check cameras, state and instruction.

    Raises:
        RoboserveError: `invalid_request`, `invalid_image`, `invalid_state` or `too_large`.
    """
    unknown = sorted(set(observation) - {"images", "state", "instruction"})
    if unknown:
        raise RoboserveError("invalid_request", f"observation: unknown entries {', '.join(unknown)[:200]}")
    return Observation(
        images=_images(observation.get("images"), spec, max_pixels),
        state=check_state(observation.get("state"), spec),
        instruction=check_instruction(observation.get("instruction"), spec),
    )


def _images(images: Any, spec: PolicySpec, max_pixels: int) -> dict[str, NDArray[np.uint8]]:
    wanted = {camera.name: camera for camera in spec.cameras}
    if not isinstance(images, dict):
        raise RoboserveError(
            "invalid_request", f"observation.images: must be a map with {', '.join(wanted) or 'no cameras'}"
        )
    missing, extra = sorted(set(wanted) - set(images)), sorted(set(images) - set(wanted))
    if missing:
        raise RoboserveError("invalid_request", f"observation.images: camera {', '.join(missing)} is missing")
    if extra:
        names = ", ".join(extra)[:200]
        raise RoboserveError(
            "invalid_request", f"observation.images: unknown camera {names}; the policy has {', '.join(wanted)}"
        )
    decoded = {}
    for name, camera in wanted.items():
        image = decode_image(images[name], field=f"observation.images.{name}", max_pixels=max_pixels)
        if image.shape[:2] != (camera.height, camera.width):
            given, needed = f"{image.shape[1]} x {image.shape[0]}", f"{camera.width} x {camera.height}"
            raise RoboserveError(
                "invalid_image", f"observation.images.{name}: {given} pixels, the policy needs {needed}"
            )
        decoded[name] = image
    return decoded


def check_state(state: Any, spec: PolicySpec) -> NDArray[np.float32]:
    """Return the state as float32 (state.size,).

    Raises:
        RoboserveError: `invalid_state`.
    """
    if not isinstance(state, np.ndarray) or state.dtype.kind not in "fiu":
        raise RoboserveError("invalid_state", "observation.state: must be a numeric array")
    if state.shape != (spec.state.size,):
        raise RoboserveError(
            "invalid_state", f"observation.state: shape {state.shape}, the policy needs ({spec.state.size},)"
        )
    with np.errstate(over="ignore"):
        values = state.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise RoboserveError("invalid_state", f"observation.state: {spec.state.names[bad[0]]!r} is {values[bad[0]]}")
    return values


def check_instruction(instruction: Any, spec: PolicySpec) -> str:
    """Return the instruction.

    Raises:
        RoboserveError: `invalid_request` or `too_large`.
    """
    if not isinstance(instruction, str):
        raise RoboserveError("invalid_request", "observation.instruction: must be text")
    if len(instruction) > spec.instruction_chars:
        text = f"observation.instruction: {len(instruction)} characters, limit {spec.instruction_chars}"
        raise RoboserveError("too_large", text)
    return instruction


def _options(options: Mapping[str, Any], spec: PolicySpec) -> ActOptions:
    known = {
        "seed",
        "integration_steps",
        "inference_delay",
        "leftover",
        "executed",
        "execution_horizon",
        "return_model_actions",
    }
    unknown = sorted(set(options) - known)
    if unknown:
        raise RoboserveError(
            "invalid_request",
            f"options: unknown entries {', '.join(unknown)[:200]}; known are {', '.join(sorted(known))}",
        )
    parsed = ActOptions(
        seed=_integer(options, "seed", 0, 2**63 - 1),
        integration_steps=_integer(options, "integration_steps", 1, _MAX_STEPS),
        inference_delay=_integer(options, "inference_delay", 0, spec.chunk_length - 1) or 0,
        leftover=_leftover(options.get("leftover"), spec),
        execution_horizon=_integer(options, "execution_horizon", 1, spec.chunk_length),
    )
    asked_rtc = parsed.leftover is not None or options.get("executed") is not None
    if asked_rtc and not spec.supports_rtc:
        raise RoboserveError(
            "invalid_request", f"options.leftover: policy {spec.id!r} does not support real-time chunking"
        )
    return parsed


def _leftover(leftover: Any, spec: PolicySpec) -> NDArray[np.float32] | None:
    if leftover is None:
        return None
    ok = isinstance(leftover, np.ndarray) and leftover.dtype.kind == "f" and leftover.ndim == 2
    if not ok or not 0 < leftover.shape[0] <= spec.chunk_length or leftover.shape[1] != spec.action.size:
        needed = f"a float array of 1 to {spec.chunk_length} rows by {spec.action.size}"
        raise RoboserveError("invalid_request", f"options.leftover: must be {needed}")
    if not np.isfinite(leftover).all():
        raise RoboserveError("invalid_request", "options.leftover: has values that are not finite")
    return np.asarray(leftover, dtype=np.float32)


def _integer(source: Mapping[str, Any], field: str, low: int, high: int) -> int | None:
    value = source.get(field)
    if value is None:
        return None
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise RoboserveError("invalid_request", f"{field}: {value!r:.40}, must be a whole number from {low} to {high}")
    return value


def _number(source: Mapping[str, Any], field: str, low: float, high: float) -> float | None:
    value = source.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise RoboserveError("invalid_request", f"{field}: must be a number")
    number = float(value)
    if number <= low:
        raise RoboserveError("deadline_exceeded", f"{field}: {number:g}, already passed when it arrived")
    if not number <= high:
        raise RoboserveError("invalid_request", f"{field}: {number:g}, limit {high:g}")
    return number
