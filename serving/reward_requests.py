"""From a decoded message to a checked reward request; frames are looked at later, off the event loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from models.rewards.frames import MODES, FramePolicy
from serving.fields import flag, integer, kind_of, number, refuse_unknown, short_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.rewards.contract import RewardSpec
    from serving.config import RewardSettings

_MAX_DEADLINE_MS = 3_600_000.0
_HEADER = ("type", "request_id", "deadline_ms", "model")
_SCORE = frozenset((*_HEADER, "clips", "mode", "frame_policy", "indices", "every"))
_COMPARE = frozenset((*_HEADER, "pairs", "frame_policy", "swap"))
_OPEN = frozenset((*_HEADER, "session", "instruction", "cameras", "frame_policy"))
_APPEND = frozenset((*_HEADER, "session", "frames"))
_CLIP = frozenset(("instruction", "frames", "cameras"))
_PAIR = frozenset(("instruction", "first", "second"))
ONLY_CAMERA = "front"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What every request may carry; `deadline_ms` counts from receipt."""

    request_id: str | None
    deadline_ms: float | None


@dataclass(frozen=True, kw_only=True)
class ClipAsk:
    """A clip to be scored: camera to what stood in the message; `named`: whether the client named the cameras."""

    instruction: str
    cameras: Mapping[str, Any]
    named: bool
    field: str


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """A checked score request; `indices` takes the place of a frame policy."""

    header: Header
    clips: tuple[ClipAsk, ...]
    mode: str
    policy: FramePolicy
    indices: tuple[int, ...] | None
    every: int


@dataclass(frozen=True, kw_only=True)
class PairAsk:
    """Two clips to be compared, as they stood in the message."""

    instruction: str
    first: Any
    second: Any
    field: str


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """A checked compare request."""

    header: Header
    pairs: tuple[PairAsk, ...]
    policy: FramePolicy
    swap: bool


@dataclass(frozen=True, kw_only=True)
class OpenRequest:
    """A checked request for a streaming session."""

    header: Header
    session: str | None
    instruction: str
    cameras: tuple[str, ...]
    policy: FramePolicy


@dataclass(frozen=True, kw_only=True)
class AppendRequest:
    """A checked request to append frames: camera to what stood in the message; None where there is one camera."""

    header: Header
    session: str
    cameras: Mapping[str, Any] | None
    frames: Any


class RewardParser:
    """Checks messages against a model and its service's limits.

    Args:
        spec: the model's; `settings`: the service's.
    """

    def __init__(self, spec: RewardSpec, settings: RewardSettings) -> None:
        self._spec = spec
        self._settings = settings

    def score(self, message: Mapping[str, Any]) -> ScoreRequest:
        """Check a score request.

        Raises:
            RoboserveError: naming the field, the value and the limit.
        """
        refuse_unknown(message, _SCORE, "message")
        mode = message.get("mode", "prefix")
        if not isinstance(mode, str) or mode not in MODES:
            raise RoboserveError("invalid_request", f"mode: {mode!r:.40}; known are {', '.join(MODES)}")
        indices = self._indices(message, mode)
        every = integer(message, "every", 1, self._settings.clip_frames, where="") or 1
        if every > 1 and mode != "prefix":
            raise RoboserveError("invalid_request", f"every: {every}, belongs to the mode 'prefix', not to {mode!r}")
        return ScoreRequest(
            header=_header(message),
            clips=tuple(self._clip(clip, f"clips[{index}]") for index, clip in enumerate(self._list(message, "clips"))),
            mode=mode,
            policy=self._policy(message),
            indices=indices,
            every=every,
        )

    def compare(self, message: Mapping[str, Any]) -> CompareRequest:
        """Check a compare request; raises as `score` does, also for a model that cannot compare."""
        if not self._spec.supports_compare:
            raise RoboserveError("invalid_request", f"type: compare, which {self._spec.id!r} does not support")
        refuse_unknown(message, _COMPARE, "message")
        pairs = []
        for index, pair in enumerate(self._list(message, "pairs")):
            field = f"pairs[{index}]"
            if not isinstance(pair, dict):
                raise RoboserveError("invalid_request", f"{field}: must be a map, is {kind_of(pair)}")
            refuse_unknown(pair, _PAIR, field)
            for side in ("first", "second"):
                if side not in pair:
                    raise RoboserveError("invalid_request", f"{field}.{side}: is missing")
            asked = PairAsk(
                instruction=self._instruction(pair, field), first=pair["first"], second=pair["second"], field=field
            )
            pairs.append(asked)
        return CompareRequest(
            header=_header(message),
            pairs=tuple(pairs),
            policy=self._policy(message),
            swap=flag(message, "swap", where=""),
        )

    def open(self, message: Mapping[str, Any]) -> OpenRequest:
        """Check a request for a session; raises as `score` does."""
        refuse_unknown(message, _OPEN, "message")
        cameras = message.get("cameras", [ONLY_CAMERA])
        if not isinstance(cameras, list) or not cameras or not all(isinstance(name, str) for name in cameras):
            raise RoboserveError("invalid_request", "cameras: must be a list of names, at least one")
        self._camera_names(cameras, "cameras")
        return OpenRequest(
            header=_header(message),
            session=short_text(message, "session"),
            instruction=self._instruction(message, ""),
            cameras=tuple(cameras),
            policy=self._policy(message),
        )

    def append(self, message: Mapping[str, Any]) -> AppendRequest:
        """Check a request to append frames; raises as `score` does."""
        refuse_unknown(message, _APPEND, "message")
        if "frames" not in message:
            raise RoboserveError("invalid_request", "frames: is missing")
        frames = message["frames"]
        named = isinstance(frames, dict) and not set(frames) <= {"video", "fps", "npy"}
        return AppendRequest(
            header=_header(message),
            session=session_of(message),
            cameras=frames if named else None,
            frames=None if named else frames,
        )

    def _list(self, message: Mapping[str, Any], field: str) -> list[Any]:
        value = message.get(field)
        if not isinstance(value, list) or not value:
            raise RoboserveError("invalid_request", f"{field}: must be a list of at least one, is {kind_of(value)}")
        if len(value) > self._settings.clips:
            raise RoboserveError("too_large", f"{field}: {len(value)}, limit {self._settings.clips} in one request")
        return value

    def _clip(self, clip: Any, field: str) -> ClipAsk:
        if not isinstance(clip, dict):
            raise RoboserveError("invalid_request", f"{field}: must be a map, is {kind_of(clip)}")
        refuse_unknown(clip, _CLIP, field)
        if ("frames" in clip) == ("cameras" in clip):
            raise RoboserveError("invalid_request", f"{field}: must have either 'frames' or 'cameras'")
        named = "cameras" in clip
        cameras = clip["cameras"] if named else {ONLY_CAMERA: clip["frames"]}
        if not isinstance(cameras, dict) or not cameras:
            raise RoboserveError("invalid_request", f"{field}.cameras: must be a map of at least one camera")
        self._camera_names(list(cameras), f"{field}.cameras")
        return ClipAsk(instruction=self._instruction(clip, field), cameras=cameras, named=named, field=field)

    def _camera_names(self, names: list[str], field: str) -> None:
        if len(names) > self._settings.cameras:
            raise RoboserveError("too_large", f"{field}: {len(names)} cameras, limit {self._settings.cameras}")
        if len(set(names)) != len(names) or not all(0 < len(name) <= 128 for name in names):
            raise RoboserveError("invalid_request", f"{field}: names must differ and have 1 to 128 characters")

    def _instruction(self, source: Mapping[str, Any], field: str) -> str:
        return self.instruction(source.get("instruction"), f"{field}.instruction" if field else "instruction")

    def instruction(self, text: Any, where: str) -> str:
        """Check an instruction that a message calls `where`; raises as `score` does."""
        if not isinstance(text, str):
            raise RoboserveError("invalid_request", f"{where}: must be text, is {kind_of(text)}")
        if len(text) > self._spec.instruction_chars:
            raise RoboserveError("too_large", f"{where}: {len(text)} characters, limit {self._spec.instruction_chars}")
        return text

    def _policy(self, message: Mapping[str, Any]) -> FramePolicy:
        name = message.get("frame_policy") or self._spec.frame_policy
        try:
            policy = FramePolicy.parse(str(name))
        except ValueError as error:
            raise RoboserveError("invalid_request", f"frame_policy: {error}") from error
        if policy.count > self._spec.max_frames:
            raise RoboserveError(
                "too_large", f"frame_policy: {policy.name} shows {policy.count} frames, limit {self._spec.max_frames}"
            )
        return policy

    def _indices(self, message: Mapping[str, Any], mode: str) -> tuple[int, ...] | None:
        value = message.get("indices")
        if value is None:
            return None
        if mode == "prefix" or message.get("frame_policy") is not None:
            raise RoboserveError(
                "invalid_request", "indices: cannot be combined with a frame policy or with the mode 'prefix'"
            )
        listed = value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind in "iu" else value
        if not isinstance(listed, list) or not listed or not all(type(index) is int for index in listed):
            raise RoboserveError("invalid_request", "indices: must be a list of integers, at least one")
        if len(listed) > self._spec.max_frames:
            raise RoboserveError("too_large", f"indices: {len(listed)} frames, limit {self._spec.max_frames}")
        if min(listed) < 0 or sorted(listed) != listed:
            raise RoboserveError("invalid_request", "indices: must be 0 or more and in order of time")
        return tuple(listed)


def session_of(message: Mapping[str, Any]) -> str:
    """Return the streaming session that a message names.

    Raises:
        RoboserveError: `invalid_request`.
    """
    session = short_text(message, "session")
    if session is None:
        raise RoboserveError("invalid_request", "session: is missing")
    return session


def _header(message: Mapping[str, Any]) -> Header:
    return Header(
        request_id=short_text(message, "request_id"), deadline_ms=number(message, "deadline_ms", 0.0, _MAX_DEADLINE_MS)
    )
