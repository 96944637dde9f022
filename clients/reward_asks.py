"""Requests of the reward protocol, apart from any transport: clips brought to the form in which they travel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Protocol, Sequence, Tuple, Union

import numpy as np

from clients.errors import RoboserveError
from clients.images import encode_image, resize_with_pad
from clients.reward_messages import Clip, ClipPair, Frame, Frames, Video

if TYPE_CHECKING:
    from clients.reward_contract import RewardContract


class FrameTerms(Protocol):
    """What a contract says of frames."""

    @property
    def image_size(self) -> Optional[Tuple[int, int]]:
        """(height, width) that frames are brought to."""
        ...

    @property
    def limits(self) -> Mapping[str, float]:
        """Caps by name, `clip_frames` among them."""
        ...


@dataclass(frozen=True)
class ScoreAsk:
    """What `score` was called with; see `clients.reward.RewardClient.score`."""

    clips: Sequence[Clip]
    mode: str
    frame_policy: Optional[str]
    indices: Optional[Sequence[int]]
    every: int
    deadline_ms: Optional[float]

    def message(self, contract: RewardContract, codec: str) -> Dict[str, Any]:
        """Return the wire form; raises as `wire_frames`."""
        asked = [wire_clip(clip, contract, codec=codec, field=f"clips[{i}]") for i, clip in enumerate(self.clips)]
        return {
            "type": "score",
            "clips": asked,
            "mode": self.mode,
            "frame_policy": self.frame_policy,
            "indices": None if self.indices is None else [int(index) for index in self.indices],
            "every": self.every,
            "deadline_ms": self.deadline_ms,
        }


@dataclass(frozen=True)
class CompareAsk:
    """What `compare` was called with; see `clients.reward.RewardClient.compare`."""

    pairs: Sequence[ClipPair]
    frame_policy: Optional[str]
    swap: bool
    deadline_ms: Optional[float]

    def message(self, contract: RewardContract, codec: str) -> Dict[str, Any]:
        """Return the wire form; raises as `wire_frames`."""
        asked = [wire_pair(pair, contract, codec=codec, field=f"pairs[{i}]") for i, pair in enumerate(self.pairs)]
        return {
            "type": "compare",
            "pairs": asked,
            "frame_policy": self.frame_policy,
            "swap": self.swap,
            "deadline_ms": self.deadline_ms,
        }


def append_message(
    session: str,
    frames: Union[Frame, Frames, Mapping[str, Union[Frame, Frames]]],
    contract: RewardContract,
    *,
    codec: str,
    deadline_ms: Optional[float],
) -> Dict[str, Any]:
    """Return the wire form of frames that go to a streaming session; raises as `wire_frames`."""
    sent: Any = (
        {name: _some(part, contract, codec, f"frames.{name}") for name, part in frames.items()}
        if isinstance(frames, Mapping)
        else _some(frames, contract, codec, "frames")
    )
    return {"type": "append", "session": session, "frames": sent, "deadline_ms": deadline_ms}


def _some(frames: Union[Frame, Frames], contract: RewardContract, codec: str, field: str) -> Any:
    single = isinstance(frames, bytes) or (isinstance(frames, np.ndarray) and frames.ndim == 3)
    many: Any = [frames] if single else frames
    return wire_frames(many, contract, codec=codec, field=field)


def wire_frames(frames: Frames, contract: FrameTerms, *, codec: str, field: str) -> Any:
    """Bring a clip to the form it travels in: arrays at the contract's size and encoded, all else as it is.

    Args:
        codec: "png" (exact), "jpeg" or "raw" (exact), for frames given as arrays.
        field: what to call it in a refusal.

    Raises:
        RoboserveError: `invalid_image` or `too_large` naming the field.
    """
    if isinstance(frames, Path):
        return {"video": frames.read_bytes(), "fps": None}
    if isinstance(frames, Video):
        return {"video": frames.data, "fps": frames.fps}
    if isinstance(frames, np.ndarray) and frames.ndim != 4:
        raise RoboserveError("invalid_image", f"{field}: shape {frames.shape}, needs (frames, height, width, 3)")
    if not len(frames):
        raise RoboserveError("invalid_image", f"{field}: has no frames, needs at least one")
    if len(frames) > contract.limits["clip_frames"]:
        limit = int(contract.limits["clip_frames"])
        raise RoboserveError("too_large", f"{field}: {len(frames)} frames, limit {limit}")
    return [_wire_frame(frame, contract, codec, f"{field}[{index}]") for index, frame in enumerate(frames)]


def _wire_frame(frame: Frame, contract: FrameTerms, codec: str, field: str) -> Any:
    if isinstance(frame, bytes):
        return frame
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise RoboserveError("invalid_image", f"{field}: {frame.dtype} {frame.shape}, needs uint8 (height, width, 3)")
    if contract.image_size is not None:
        frame = resize_with_pad(frame, *contract.image_size)
    return encode_image(np.asarray(frame), codec)


def wire_clip(clip: Clip, contract: RewardContract, *, codec: str, field: str) -> Dict[str, Any]:
    """Return a clip's wire form; raises as `wire_frames`, and `invalid_request` without frames or with both kinds."""
    if (clip.frames is None) == (clip.cameras is None):
        raise RoboserveError("invalid_request", f"{field}: needs either frames or cameras")
    if clip.frames is not None:
        frames = wire_frames(clip.frames, contract, codec=codec, field=f"{field}.frames")
        return {"instruction": clip.instruction, "frames": frames}
    cameras = {
        name: wire_frames(frames, contract, codec=codec, field=f"{field}.cameras.{name}")
        for name, frames in (clip.cameras or {}).items()
    }
    return {"instruction": clip.instruction, "cameras": cameras}


def wire_pair(pair: ClipPair, contract: RewardContract, *, codec: str, field: str) -> Dict[str, Any]:
    """Return a pair's wire form; raises as `wire_frames`."""
    return {
        "instruction": pair.instruction,
        "first": wire_frames(pair.first, contract, codec=codec, field=f"{field}.first"),
        "second": wire_frames(pair.second, contract, codec=codec, field=f"{field}.second"),
    }
