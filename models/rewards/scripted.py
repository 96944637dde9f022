"""Reward models without weights: the clock that every other is measured against, and one that reads pixels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.rewards.contract import FrameValues, Pair, Query, RewardSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class SeenFrame:
    """The features of a scripted model: the frame's mean brightness, 0 to 1, and its red channel's largest value."""

    brightness: float
    reddest: int
    nbytes: int = 64


class BrightnessReward:
    """Progress is how bright a frame is, success whether it is over one half: an answer that a test can work out.

    A frame whose red channel reaches `poison` makes the call that carries it raise, as a model does on input that it
    cannot take; `seconds_per_frame` makes a forward slow.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Configuration.

        Attributes:
            image_size: side of the square frames.
            max_frames: most frames of one query.
            poison: red value from which a frame makes the model raise; 256 for never.
            seconds_per_frame: time that a forward takes for each frame it is shown.
        """

        image_size: int = 32
        max_frames: int = 64
        poison: int = 256
        seconds_per_frame: float = 0.0

    def __init__(self, config: Config) -> None:
        self._config = config
        self.spec = RewardSpec(
            id="brightness",
            revision="1",
            content_hash="0" * 64,
            architecture="scripted",
            image_size=(config.image_size, config.image_size),
            max_frames=config.max_frames,
            frame_policy="linspace-8",
        )
        self.encoded = 0
        self.forwards = 0

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pick pixels by nearest neighbour."""
        side = self._config.image_size
        if frame.shape[:2] == (side, side):
            return frame
        rows = np.arange(side) * frame.shape[0] // side
        columns = np.arange(side) * frame.shape[1] // side
        return np.ascontiguousarray(frame[rows][:, columns])

    def cost(self, frame: NDArray[np.uint8]) -> int:
        """Return 1."""
        del frame
        return 1

    def encode(self, frames: Sequence[NDArray[np.uint8]]) -> list[SeenFrame]:
        """Look at each frame."""
        self.encoded += len(frames)
        return [SeenFrame(brightness=float(frame.mean()) / 255.0, reddest=int(frame[..., 0].max())) for frame in frames]

    def score(self, queries: Sequence[Query]) -> list[FrameValues]:
        """Read the brightness of every shown frame."""
        self._forward([query.frames for query in queries])
        return [self._values(query) for query in queries]

    def compare(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the logistic of ten times the difference in the last frames' brightness."""
        self._forward([pair.first + pair.second for pair in pairs])
        return [
            float(1.0 / (1.0 + np.exp(-10.0 * (_brightness(pair.first)[-1] - _brightness(pair.second)[-1]))))
            for pair in pairs
        ]

    def _forward(self, clips: Sequence[tuple[object, ...]]) -> None:
        self.forwards += 1
        frames = [frame for clip in clips for frame in clip]
        time.sleep(self._config.seconds_per_frame * len(frames))
        if any(isinstance(frame, SeenFrame) and frame.reddest >= self._config.poison for frame in frames):
            raise RuntimeError("a poisoned frame")

    def _values(self, query: Query) -> FrameValues:
        progress = _brightness(query.frames)
        return FrameValues(progress=progress, success=(progress > 0.5).astype(np.float32))


def _brightness(frames: Sequence[object]) -> NDArray[np.float32]:
    return np.array([frame.brightness for frame in frames if isinstance(frame, SeenFrame)], dtype=np.float32)


def clock(length: int) -> NDArray[np.float32]:
    """Return the values of a model that only counts frames, float32 (length,), 0 to 1.

    It scores high wherever progress and time go together, which is why no metric is shown without it.
    """
    return np.linspace(0.0, 1.0, length, dtype=np.float32) if length > 1 else np.ones(length, dtype=np.float32)
