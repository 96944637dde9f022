"""A reward model in the worker's own process: no server, no network."""

from __future__ import annotations

import importlib
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from clients.errors import RoboserveError
from finetune.relabel.labeller import ModelFacts, checked_labels
from models.rewards.contract import Query
from models.rewards.frames import merged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from finetune.relabel.config import Plan
    from finetune.relabel.frames import FrameStore
    from finetune.relabel.labeller import Labels
    from models.rewards.contract import FrameFeatures, FrameValues, RewardModel
    from models.rewards.frames import Reading

_SHAPE = struct.Struct("<II")
_ENCODE_AT_ONCE = 32


def load_model(name: str, options: Mapping[str, Any]) -> RewardModel:
    """Load a model by `zoo:NAME`, a checkpoint folder, or `MODULE:CLASS` with the fields of its `Config`.

    Raises:
        RoboserveError: `invalid_request` naming what is missing.
    """
    module, _, attribute = name.partition(":")
    if not attribute.isidentifier() or module == "zoo":
        from models.rewards.load import load_reward

        try:
            return load_reward(name)
        except (OSError, ValueError) as error:
            raise RoboserveError("invalid_request", f"model: {error}") from error
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RoboserveError("invalid_request", f"model: {name!r:.80} cannot be imported") from error
    try:
        return cast("RewardModel", factory(factory.Config(**options)))
    except TypeError as error:
        raise RoboserveError("invalid_request", f"model_config: {error}") from error


class LocalLabeller:
    """Asks a model directly. Every frame is encoded once while its features fit in memory.

    Batches depend on the episode alone, so a resumed run computes what an unbroken one does, to the last bit.

    Args:
        model: kept by this labeller alone, since a model is called from one thread at a time.
        batch_frames: most frames that the queries of one forward show together.
        feature_bytes: features kept of the present episode.
    """

    def __init__(self, model: RewardModel, *, batch_frames: int = 512, feature_bytes: int = 256 * 2**20) -> None:
        self._model = model
        self._batch_frames = batch_frames
        self._feature_bytes = feature_bytes
        spec = model.spec
        self.facts = ModelFacts(
            id=spec.id,
            revision=spec.revision,
            content_hash=spec.content_hash,
            architecture=spec.architecture,
            dtype=spec.dtype,
            prompt_version=spec.prompt_version,
            frame_policy=spec.frame_policy,
            pixels="prepared by the model",
        )

    def pack(self, frame: NDArray[np.uint8]) -> bytes:
        """Prepare a frame, and put its size before its pixels."""
        prepared = self._model.prepare(frame)
        return _SHAPE.pack(*prepared.shape[:2]) + prepared.tobytes()

    def score(self, frames: FrameStore, instruction: str, plan: Plan) -> Labels:
        """See `Labeller`."""
        spec, windows = self._model.spec, plan.windows(len(frames))
        longest = max(map(len, windows))
        if longest > spec.max_frames:
            text = (
                f"frame_policy {plan.frame_policy}: shows {longest} frames, {spec.id} takes at most {spec.max_frames}"
            )
            raise RoboserveError("invalid_request", text)
        if len(instruction) > spec.instruction_chars:
            text = f"instruction: {len(instruction)} characters, {spec.id} takes at most {spec.instruction_chars}"
            raise RoboserveError("invalid_request", text)
        queries, readings = merged(windows)
        answers = self._answers(frames, instruction, queries)
        if plan.mode == "single_pass":
            return checked_labels(plan, len(frames), answers[0].progress, answers[0].success)
        progress = _read(readings, [answer.progress for answer in answers])
        successes = [answer.success for answer in answers if answer.success is not None]
        success = _read(readings, successes) if len(successes) == len(answers) else None
        return checked_labels(plan, len(frames), progress, success)

    def close(self) -> None:
        """Nothing is open."""

    def _answers(self, frames: FrameStore, instruction: str, queries: Sequence[tuple[int, ...]]) -> list[FrameValues]:
        features = _Features(self._model, frames, self._feature_bytes)
        answers: list[FrameValues] = []
        try:
            for batch in self._batches(queries):
                seen = features.of(sorted({index for shown in batch for index in shown}))
                answers += self._model.score(
                    [Query(instruction=instruction, frames=tuple(seen[index] for index in shown)) for shown in batch]
                )
        except Exception as error:
            raise RoboserveError("policy_failed", f"model: it raised on this episode: {error}") from error
        for shown, answer in zip(queries, answers, strict=True):
            for name, values in (("progress", answer.progress), ("success", answer.success)):
                if values is not None and values.shape != (len(shown),):
                    raise RoboserveError("invalid_output", f"{name}: not one number for each of {len(shown)} frames")
        return answers

    def _batches(self, windows: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        batch: list[tuple[int, ...]] = []
        shown = 0
        for window in windows:
            if batch and shown + len(window) > self._batch_frames:
                yield batch
                batch, shown = [], 0
            batch.append(window)
            shown += len(window)
        yield batch


class _Features:
    """Features by frame, least recently used ones dropped first."""

    def __init__(self, model: RewardModel, frames: FrameStore, limit: int) -> None:
        self._model, self._frames, self._limit = model, frames, limit
        self._kept: OrderedDict[int, FrameFeatures] = OrderedDict()
        self._bytes = 0

    def of(self, indices: Sequence[int]) -> dict[int, FrameFeatures]:
        found: dict[int, FrameFeatures] = {}
        for index in indices:
            if index in self._kept:
                self._kept.move_to_end(index)
                found[index] = self._kept[index]
        missing = [index for index in indices if index not in found]
        for start in range(0, len(missing), _ENCODE_AT_ONCE):
            group = missing[start : start + _ENCODE_AT_ONCE]
            pixels = [_unpack(self._frames.read(index)) for index in group]
            for index, features in zip(group, self._model.encode(pixels), strict=True):
                found[index] = self._kept[index] = features
                self._bytes += features.nbytes
        while self._bytes > self._limit and self._kept:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return found


def _read(readings: Sequence[Reading], values: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.array([values[reading.query][reading.position] for reading in readings], np.float32)


def _unpack(packed: bytes) -> NDArray[np.uint8]:
    height, width = _SHAPE.unpack_from(packed)
    return np.frombuffer(packed, dtype=np.uint8, offset=_SHAPE.size).reshape(height, width, 3).copy()
