"""From a decoded message to a checked request: every field is looked at once, here, whatever the dialect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from clients.images import decode_image
from models.policies.contract import ActOptions, Observation
from serving.fields import flag, integer, kind_of, number, refuse_unknown, short_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from models.policies.contract import PolicySpec

_MAX_STEPS = 100
_MAX_DEADLINE_MS = 3_600_000.0
_MESSAGE_ENTRIES = frozenset(
    ("type", "request_id", "session", "deadline_ms", "model", "adapter", "observation", "options")
)
_OBSERVATION_ENTRIES = frozenset(("images", "state", "instruction"))
_RTC_OPTIONS = ("inference_delay", "leftover", "executed", "execution_horizon")
_CONTEXT_OPTIONS = ("context_level", "context_noise")
_OPTION_ENTRIES = frozenset(
    (
        "seed",
        "integration_steps",
        "return_model_actions",
        "return_summary",
        "noise",
        *_CONTEXT_OPTIONS,
        *_RTC_OPTIONS,
    )
)
_MOST_NOISE = 100.0


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


def parse_act(message: Mapping[str, Any], spec: PolicySpec, *, session: str, max_pixels: int) -> ActRequest:
    """Check an act request against the policy's spec.

    Args:
        message: decoded map of a native request.
        session: used when the message names none; "" for none.
        max_pixels: cap on one image.

    Raises:
        RoboserveError: naming the field, the value and the limit.
    """
    refuse_unknown(message, _MESSAGE_ENTRIES, "message")
    observation = message.get("observation")
    if not isinstance(observation, dict):
        raise RoboserveError("invalid_request", "observation: must be a map with images, state and instruction")
    options = message.get("options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise RoboserveError("invalid_request", "options: must be a map")
    return ActRequest(
        request_id=short_text(message, "request_id"),
        session=short_text(message, "session") or session,
        adapter=short_text(message, "adapter"),
        deadline_ms=number(message, "deadline_ms", 0.0, _MAX_DEADLINE_MS),
        observation=parse_observation(observation, spec, max_pixels=max_pixels),
        options=_options(options, spec),
        executed=integer(options, "executed", 0, spec.chunk_length),
        return_model_actions=flag(options, "return_model_actions"),
    )


def parse_observation(observation: Mapping[str, Any], spec: PolicySpec, *, max_pixels: int) -> Observation:
    """Check cameras, state and instruction.

    Raises:
        RoboserveError: `invalid_request`, `invalid_image`, `invalid_state` or `too_large`.
    """
    refuse_unknown(observation, _OBSERVATION_ENTRIES, "observation")
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
    if images.keys() != wanted.keys():
        raise _wrong_cameras(images, wanted)
    return {
        name: decode_image(
            images[name],
            field=f"observation.images.{name}",
            max_pixels=max_pixels,
            size=(camera.height, camera.width),
        )
        for name, camera in wanted.items()
    }


def _wrong_cameras(images: Mapping[str, Any], wanted: Mapping[str, Any]) -> RoboserveError:
    missing = sorted(set(wanted) - set(images))
    if missing:
        given = ", ".join(sorted(images))[:200] or "none"
        text = f"observation.images: camera {', '.join(missing)} is missing; given are {given}"
    else:
        names = ", ".join(sorted(set(images) - set(wanted)))[:200]
        text = f"observation.images: unknown camera {names}; the policy has {', '.join(wanted)}"
    return RoboserveError("invalid_request", text)


def check_state(state: Any, spec: PolicySpec, *, field: str = "observation.state") -> NDArray[np.float32]:
    """Return the state as float32 (state.size,). `field` is what the client calls it.

    Raises:
        RoboserveError: `invalid_state`.
    """
    if not isinstance(state, np.ndarray) or state.dtype.kind not in "fiu":
        raise RoboserveError("invalid_state", f"{field}: must be a numeric array, is {kind_of(state)}")
    if state.shape != (spec.state.size,):
        raise RoboserveError("invalid_state", f"{field}: shape {state.shape}, the policy needs ({spec.state.size},)")
    values = _as_float32(state)
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        name, value = spec.state.names[bad], state[bad]
        raise RoboserveError("invalid_state", f"{field}: {name!r} is {value}, must be a finite float32")
    return values


def _as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype == np.float32:
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def check_instruction(instruction: Any, spec: PolicySpec, *, field: str = "observation.instruction") -> str:
    """Return the instruction. `field` is what the client calls it.

    Raises:
        RoboserveError: `invalid_request` or `too_large`.
    """
    if not isinstance(instruction, str):
        raise RoboserveError("invalid_request", f"{field}: must be text, is {kind_of(instruction)}")
    if len(instruction) > spec.instruction_chars:
        raise RoboserveError("too_large", f"{field}: {len(instruction)} characters, limit {spec.instruction_chars}")
    return instruction


def _options(options: Mapping[str, Any], spec: PolicySpec) -> ActOptions:
    if not options:
        return ActOptions()
    refuse_unknown(options, _OPTION_ENTRIES, "options")
    supported = {**_drawing_options(spec), **dict.fromkeys(_RTC_OPTIONS, spec.supports_rtc)}
    _refuse_unsupported(supported, options, spec)
    return ActOptions(
        seed=integer(options, "seed", 0, 2**63 - 1),
        integration_steps=integer(options, "integration_steps", 1, _MAX_STEPS),
        inference_delay=integer(options, "inference_delay", 0, spec.chunk_length - 1) or 0,
        leftover=_leftover(options.get("leftover"), spec),
        execution_horizon=integer(options, "execution_horizon", 1, spec.chunk_length),
        noise=_noise(options, "noise", (spec.chunk_length, spec.action.size)),
        context_level=number(options, "context_level", 0.0, 1.0),
        context_noise=_noise(options, "context_noise", (spec.context_size,)),
        return_summary=flag(options, "return_summary"),
    )


def require_supported(options: ActOptions, spec: PolicySpec) -> None:
    """Refuse what a revision of the policy cannot do, though the configured checkpoint can.

    Raises:
        RoboserveError: `invalid_request`.
    """
    supported = _drawing_options(spec)
    _refuse_unsupported(supported, {name: getattr(options, name) for name in supported}, spec)


def _drawing_options(spec: PolicySpec) -> dict[str, bool]:
    """Return the options on how a chunk is drawn, and whether a policy honours them."""
    return {
        "seed": spec.supports_seed,
        "integration_steps": spec.integration_steps > 0,
        "noise": spec.supports_noise,
        "return_summary": spec.supports_summary,
        **dict.fromkeys(_CONTEXT_OPTIONS, spec.context_size > 0),
    }


def _refuse_unsupported(supported: Mapping[str, bool], options: Mapping[str, Any], spec: PolicySpec) -> None:
    for name, honoured in supported.items():
        value = options.get(name)
        if not honoured and value is not None and value is not False:
            raise RoboserveError("invalid_request", f"options.{name}: policy {spec.id!r} does not support it")


def _noise(options: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    value = options.get(name)
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.shape != shape:
        raise RoboserveError("invalid_request", f"options.{name}: must be a float array of shape {shape}")
    numbers = _as_float32(value)
    if not (np.abs(numbers) <= _MOST_NOISE).all():
        raise RoboserveError("invalid_request", f"options.{name}: values must be finite and within {_MOST_NOISE:g}")
    return numbers


def _leftover(leftover: Any, spec: PolicySpec) -> NDArray[np.float32] | None:
    if leftover is None:
        return None
    ok = isinstance(leftover, np.ndarray) and leftover.dtype.kind == "f" and leftover.ndim == 2
    if not ok or not 0 < leftover.shape[0] <= spec.chunk_length or leftover.shape[1] != spec.action.size:
        needed = f"a float array of 1 to {spec.chunk_length} rows by {spec.action.size}"
        raise RoboserveError("invalid_request", f"options.leftover: must be {needed}")
    rows = _as_float32(leftover)
    if not np.isfinite(rows).all():
        raise RoboserveError("invalid_request", "options.leftover: has values that are not finite float32")
    return rows
