"""Who gives the values: the seam between the job and a reward model, served or in the worker's own process."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.relabel.config import Plan, RelabelConfig
    from finetune.relabel.frames import FrameStore


class StopJobError(Exception):
    """No further episode can be labelled; what is done is kept, and the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The model that a job is pinned to.

    Attributes:
        frame_policy: the one it was trained for.
        pixels: who brings frames to the model's size and how: part of what a value depends on.
    """

    id: str
    revision: str
    content_hash: str
    architecture: str
    dtype: str
    prompt_version: str
    frame_policy: str
    pixels: str

    def to_map(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Values of one episode as one camera saw it.

    Attributes:
        frames: int64 (n,), ascending: the frame that each value belongs to.
        progress: float32 (n,), 0 to 1.
        success: float32 (n,), 0 to 1; None where the model gives none.
    """

    frames: NDArray[np.int64]
    progress: NDArray[np.float32]
    success: NDArray[np.float32] | None


class Labeller(Protocol):
    """Gives values for packed frames."""

    @property
    def facts(self) -> ModelFacts:
        """The model."""
        ...

    def pack(self, frame: NDArray[np.uint8]) -> bytes:
        """Bring a decoded frame, RGB (h, w, 3), to what `score` reads."""
        ...

    def score(self, frames: FrameStore, instruction: str, plan: Plan) -> Labels:
        """Return the values of one episode.

        Raises:
            RoboserveError: this episode cannot be labelled.
            StopJobError: none can.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


def open_labeller(config: RelabelConfig) -> Labeller:
    """Connect to the server, or load the model into this process.

    Raises:
        RoboserveError: naming what is wrong with the model's name.
        StopJobError: the server cannot be reached, or refuses.
    """
    if config.server is not None:
        from finetune.relabel.served import ServedLabeller

        return ServedLabeller(config)
    from finetune.relabel.local import LocalLabeller, load_model

    return LocalLabeller(load_model(str(config.model), config.model_config))


def checked_labels(
    plan: Plan, length: int, progress: NDArray[np.float32], success: NDArray[np.float32] | None
) -> Labels:
    """Return the labels that a model's answer for an episode of `length` frames makes.

    Args:
        progress, success: one value for each query; in mode `single_pass` one for each frame of the one query.

    Raises:
        RoboserveError: `invalid_output` for another number of values or one that is not finite.
    """
    frames = plan.labelled(length)
    order: Any = slice(None)
    count = len(frames)
    if plan.mode == "single_pass":
        # A policy may show a frame twice; its last value has seen the most.
        shown = plan.windows(length)[0]
        last = {frame: at for at, frame in enumerate(shown)}
        order, count = [last[frame] for frame in frames], len(shown)
    for name, values in (("progress", progress), ("success", success)):
        if values is not None and (values.shape != (count,) or not np.isfinite(values).all()):
            raise RoboserveError("invalid_output", f"{name}: not one finite number for each of {count} values")
    return Labels(
        frames=np.array(frames, dtype=np.int64),
        progress=np.asarray(progress, np.float32)[order],
        success=None if success is None else np.asarray(success, np.float32)[order],
    )
