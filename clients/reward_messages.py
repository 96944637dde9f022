"""What a reward client is given and gives back, and replies of the server, read and refused where they are unusable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from clients.errors import RoboserveError
from clients.images import Array

Frame = Union[bytes, Array]


@dataclass(frozen=True)
class Video:
    """An mp4 file's bytes; `fps`: samples a second, None for every frame."""

    data: bytes
    fps: Optional[float] = None


Frames = Union[Array, Sequence[Frame], Video, Path]
"""A clip: uint8 (T, h, w, 3), a list of frames (arrays, or JPEG or PNG bytes), a `Video`, or an mp4 file's path."""


@dataclass(frozen=True)
class Clip:
    """A clip to be judged by an instruction: `frames` of one camera, or `cameras` by name."""

    instruction: str
    frames: Optional[Frames] = None
    cameras: Optional[Mapping[str, Frames]] = None


@dataclass(frozen=True)
class ClipPair:
    """Two clips under one instruction; they must show equally many frames."""

    instruction: str
    first: Frames
    second: Frames


@dataclass(frozen=True)
class ModelIdentity:
    """Which weights, in which arithmetic and in which words, gave an answer."""

    id: str
    revision: str
    content_hash: str
    architecture: str
    dtype: str
    prompt_version: str


@dataclass(frozen=True)
class CameraValues:
    """One camera's values, float32 (n,) each; success is None where the model gives none."""

    progress: Array
    success: Optional[Array]


@dataclass(frozen=True)
class ClipScore:
    """Values of one clip.

    Attributes:
        frames: frames of the clip as the server decoded it.
        indices: int64 (n,), the frame that each value belongs to.
        shown: the frames that each value was read from; one entry for all in the modes `single_pass` and `final`.
        progress: float32 (n,), 0 to 1; with several cameras the mean.
        success: float32 (n,), probability that the task is done; None where the model gives none.
        cameras: each camera's values, where they were named; `progress_min`, `progress_max` then span them.
    """

    frames: int
    indices: Array
    shown: Tuple[Array, ...]
    progress: Array
    success: Optional[Array]
    cameras: Mapping[str, CameraValues]
    progress_min: Optional[Array]
    progress_max: Optional[Array]

    @property
    def final(self) -> float:
        """Progress at the clip's last frame."""
        return float(self.progress[-1])


@dataclass(frozen=True)
class Scores:
    """An answer: one `ClipScore` for each clip, in order, and how it came about.

    Attributes:
        frame_policy: the policy's name, or "indices".
        batch_size: largest batch that a part of it rode in; `timings`: ms on the server.
    """

    clips: Tuple[ClipScore, ...]
    model: ModelIdentity
    mode: str
    frame_policy: str
    batch_size: int
    timings: Mapping[str, float]


@dataclass(frozen=True)
class Preference:
    """P(the first clip is better); `p_first_swapped` is one minus the answer in the other order, where it was asked."""

    p_first: float
    p_first_swapped: Optional[float]

    @property
    def mean(self) -> float:
        """The mean over the orders that were asked."""
        return self.p_first if self.p_first_swapped is None else 0.5 * (self.p_first + self.p_first_swapped)


@dataclass(frozen=True)
class Preferences:
    """An answer to `compare`, in the order of the pairs."""

    pairs: Tuple[Preference, ...]
    model: ModelIdentity
    frame_policy: str
    batch_size: int
    timings: Mapping[str, float]


@dataclass(frozen=True)
class Value:
    """The value of an episode after its latest frame; with several cameras `progress` and `success` are means."""

    frame: int
    progress: float
    success: Optional[float]
    progress_min: float
    progress_max: float
    shown: Array
    model: ModelIdentity


def read_scores(message: Mapping[str, Any], *, clips: int) -> Scores:
    """Read a reply to `score`.

    Raises:
        RoboserveError: `invalid_output` for a reply of another type or form, or values not finite.
    """
    _expect(message, "scores")
    found = message.get("clips")
    if not isinstance(found, list) or len(found) != clips:
        raise RoboserveError("invalid_output", f"clips: the server answered other than the {clips} that were asked")
    return Scores(
        clips=tuple(_clip_score(clip, f"clips[{index}]") for index, clip in enumerate(found)),
        model=_model(message),
        mode=str(message.get("mode")),
        frame_policy=str(message.get("frame_policy")),
        batch_size=int(message.get("batch_size", 0)),
        timings=_timings(message),
    )


def read_preferences(message: Mapping[str, Any], *, pairs: int) -> Preferences:
    """Read a reply to `compare`; raises as `read_scores`."""
    _expect(message, "preferences")
    found = message.get("pairs")
    if not isinstance(found, list) or len(found) != pairs:
        raise RoboserveError("invalid_output", f"pairs: the server answered other than the {pairs} that were asked")
    return Preferences(
        pairs=tuple(
            Preference(
                p_first=_number(pair, "p_first"),
                p_first_swapped=None if pair.get("p_first_swapped") is None else _number(pair, "p_first_swapped"),
            )
            for pair in found
        ),
        model=_model(message),
        frame_policy=str(message.get("frame_policy")),
        batch_size=int(message.get("batch_size", 0)),
        timings=_timings(message),
    )


def read_value(message: Mapping[str, Any]) -> Value:
    """Read a reply to `append`; raises as `read_scores`."""
    _expect(message, "value")
    return Value(
        frame=int(_number(message, "frame")),
        progress=_number(message, "progress"),
        success=None if message.get("success") is None else _number(message, "success"),
        progress_min=_number(message, "progress_min"),
        progress_max=_number(message, "progress_max"),
        shown=_indices(message.get("shown"), "shown"),
        model=_model(message),
    )


def _clip_score(clip: Any, field: str) -> ClipScore:
    if not isinstance(clip, Mapping):
        raise RoboserveError("invalid_output", f"{field}: is not a map")
    indices = _indices(clip.get("indices"), f"{field}.indices")
    values = _camera(clip, len(indices), field)
    cameras = clip.get("cameras") or {}
    shown: List[Any] = list(clip.get("shown") or [])
    spans = {
        name: None if clip.get(name) is None else _vector(clip.get(name), len(indices), f"{field}.{name}")
        for name in ("progress_min", "progress_max")
    }
    return ClipScore(
        frames=int(_number(clip, "frames")),
        indices=indices,
        shown=tuple(_indices(window, f"{field}.shown") for window in shown),
        progress=values.progress,
        success=values.success,
        cameras={str(name): _camera(part, len(indices), f"{field}.cameras.{name}") for name, part in cameras.items()},
        progress_min=spans["progress_min"],
        progress_max=spans["progress_max"],
    )


def _camera(part: Mapping[str, Any], count: int, field: str) -> CameraValues:
    success = part.get("success")
    return CameraValues(
        progress=_vector(part.get("progress"), count, f"{field}.progress"),
        success=None if success is None else _vector(success, count, f"{field}.success"),
    )


def _expect(message: Mapping[str, Any], kind: str) -> None:
    if message.get("type") != kind:
        raise RoboserveError("invalid_output", f"reply type: {message.get('type')!r}, expected {kind!r}")


def _model(message: Mapping[str, Any]) -> ModelIdentity:
    model = message.get("model")
    if not isinstance(model, Mapping):
        raise RoboserveError("invalid_output", "reply: needs model as a map")
    names = ("id", "revision", "content_hash", "architecture", "dtype", "prompt_version")
    return ModelIdentity(*(str(model.get(name, "")) for name in names))


def _timings(message: Mapping[str, Any]) -> Dict[str, float]:
    timings = message.get("timings")
    known = timings if isinstance(timings, Mapping) else {}
    return {str(name): float(value) for name, value in known.items() if isinstance(value, (int, float))}


def _vector(value: Any, count: int, field: str) -> Array:
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.shape != (count,):
        raise RoboserveError("invalid_output", f"{field}: must be {count} floats")
    if not np.isfinite(value).all():
        raise RoboserveError("invalid_output", f"{field}: holds a value that is not finite")
    return value.astype(np.float32, copy=False)


def _indices(value: Any, field: str) -> Array:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.ndim != 1:
        raise RoboserveError("invalid_output", f"{field}: must be a vector of integers")
    return value.astype(np.int64, copy=False)


def _number(source: Mapping[str, Any], name: str) -> float:
    value = source.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise RoboserveError("invalid_output", f"{name}: must be a finite number")
    return float(value)
