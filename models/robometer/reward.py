"""Robometer behind the contract of reward models: frames are seen once, clips are read in batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch

from models.folders import checkpoint_folder
from models.rewards.contract import FrameValues, RewardSpec
from models.robometer.adapter import open_checkpoint, require_any
from models.robometer.alike import trees
from models.robometer.images import fitted, patchify
from models.robometer.quantize import quantize
from models.robometer.readout import VisionFeatures, decode_progress, to_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from models.rewards.contract import FrameFeatures, Pair, Query
    from models.robometer.checkpoint import RobometerCheckpoint
    from models.robometer.readout import Readout
    from models.robometer.sequence import Grid

_LOGIT_LIMIT = 50.0
Value = TypeVar("Value")


class RobometerReward:
    """A Robometer checkpoint that answers.

    Args:
        checkpoint: what it runs.
        config: how it runs.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Configuration.

        Attributes:
            checkpoint: folder, or "zoo:NAME" for one that ships with the package; the folder of an adapter stands for
                its base with the adapter merged in.
            base: of an adapter: where its base lies, if not where it was trained from.
            device: "cpu", "cuda" or "auto" (a GPU where there is one).
            dtype: of the computation.
            quantization: of the language model's linear layers, by bitsandbytes (extra `vlm`): "int8", or "nf4" (four
                bits); "none" keeps them in `dtype`.
            forward_tokens: most tokens, padding included, of one run of the language model; more are run in turns.
        """

        checkpoint: str
        base: str | None = None
        device: Literal["auto", "cpu", "cuda"] = "auto"
        dtype: Literal["float32", "bfloat16", "float16"] = "float32"
        quantization: Literal["none", "int8", "nf4"] = "none"
        forward_tokens: int = 16_384

    def __init__(self, config: Config) -> None:
        folder = checkpoint_folder(config.checkpoint)
        checkpoint = open_checkpoint(folder, base=config.base, dtype=getattr(torch, config.dtype))
        self._start(checkpoint, config)

    @staticmethod
    def check_folder(folder: Path) -> None:
        """Check, before a start, that a checkpoint folder can be loaded; raises as `adapter.require_any`."""
        require_any(folder)

    @classmethod
    def of(cls, checkpoint: RobometerCheckpoint) -> RobometerReward:
        """Return a model that runs a checkpoint in memory, on the CPU in float32."""
        model = cls.__new__(cls)
        model._start(checkpoint, cls.Config(checkpoint="memory", device="cpu"))  # noqa: SLF001  its own
        return model

    def _start(self, checkpoint: RobometerCheckpoint, config: Config) -> None:
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._config = config
        self._device = torch.device(device)
        self._network = checkpoint.network
        to_dtype(self._network, getattr(torch, config.dtype))
        if config.quantization != "none":
            quantize(self._network, config.quantization, self._device)
        self._network.to(self._device).eval()
        self._sequencer = checkpoint.sequencer
        vision: Any = self._network.config.vision_config
        self._patch: int = vision.patch_size
        self._merge: int = vision.spatial_merge_size
        self._temporal: int = vision.temporal_patch_size
        settings = checkpoint.settings
        self.spec = RewardSpec(
            id=settings.id,
            revision=settings.revision,
            content_hash=checkpoint.content_hash,
            architecture="robometer",
            image_size=settings.image_size,
            max_frames=settings.max_frames,
            frame_policy=settings.frame_policy,
            prompt_version=settings.prompt.version,
            dtype=config.dtype if config.quantization == "none" else config.quantization,
            supports_compare=settings.prompt.compares,
            instruction_chars=settings.instruction_chars,
        )

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring a frame to the checkpoint's size, or to whole patches where it keeps each frame's own."""
        return fitted(frame, self.spec.image_size, self._patch * self._merge)

    def cost(self, frame: NDArray[np.uint8]) -> int:
        """Return the language-model tokens of a prepared frame's image."""
        unit = self._patch * self._merge
        rows, columns = frame.shape[0] // unit, frame.shape[1] // unit
        return int(rows * columns)

    @torch.inference_mode()
    def encode(self, frames: Sequence[NDArray[np.uint8]]) -> list[FrameFeatures]:
        """Run the vision tower, once for each size that is there."""
        features: list[FrameFeatures | None] = [None] * len(frames)
        sizes = {frame.shape[:2] for frame in frames}
        for height, width in sizes:
            chosen = [index for index, frame in enumerate(frames) if frame.shape[:2] == (height, width)]
            patches = patchify(
                [frames[index] for index in chosen], patch=self._patch, merge=self._merge, temporal=self._temporal
            )
            grid = (height // self._patch, width // self._patch)
            for index, seen in zip(chosen, self._see(patches, grid, len(chosen)), strict=True):
                features[index] = seen
        return [cast("FrameFeatures", seen) for seen in features]

    def _see(self, patches: torch.Tensor, grid: Grid, count: int) -> list[VisionFeatures]:
        seen = self._network.see(patches.to(self._device), grid, count)
        # A slice keeps the whole batch's memory alive; what a cache holds must be what it counts.
        return [replace(frame, layers=frame.layers.clone()) for frame in seen]

    def score(self, queries: Sequence[Query]) -> list[FrameValues]:
        """Read progress and success at the token after every frame."""
        frames = [[_own(frame) for frame in query.frames] for query in queries]
        rendered: dict[tuple[str, tuple[Grid, ...]], NDArray[np.int64]] = {}
        sequences = []
        for query, shown in zip(queries, frames, strict=True):
            key = (query.instruction, tuple(frame.grid for frame in shown))
            if key not in rendered:
                rendered[key] = self._sequencer.progress(*key)
            sequences.append(rendered[key])
        return self._in_turns(sequences, frames, self._scores)

    def compare(self, pairs: Sequence[Pair]) -> list[float]:
        """Read the preference token; the first clip stands first in the prompt."""
        if not self.spec.supports_compare:
            raise NotImplementedError("compare: this checkpoint's prompt asks for progress only")
        for pair in pairs:
            if len(pair.first) != len(pair.second):
                raise ValueError(f"compare: {len(pair.first)} and {len(pair.second)} frames, must be equally many")
        frames = [[_own(frame) for frame in (*pair.first, *pair.second)] for pair in pairs]
        sequences = [
            self._sequencer.preference(
                pair.instruction,
                [frame.grid for frame in shown[: len(pair.first)]],
                [frame.grid for frame in shown[len(pair.first) :]],
            )
            for pair, shown in zip(pairs, frames, strict=True)
        ]
        return self._in_turns(sequences, frames, lambda some, shown: _preferences(self._run(some, shown)))

    def _in_turns(
        self,
        sequences: Sequence[NDArray[np.int64]],
        frames: Sequence[Sequence[VisionFeatures]],
        answer: Callable[[Sequence[NDArray[np.int64]], Sequence[Sequence[VisionFeatures]]], list[Value]],
    ) -> list[Value]:
        """Run sequences, shortest first, in batches that stay within `forward_tokens`; answers in the given order."""
        values: list[Value | None] = [None] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        while order:
            count = len(order)
            while count > 1 and count * len(sequences[order[count - 1]]) > self._config.forward_tokens:
                count -= 1
            chosen, order = order[:count], order[count:]
            answers = answer([sequences[index] for index in chosen], [frames[index] for index in chosen])
            for index, value in zip(chosen, answers, strict=True):
                values[index] = value
        return [cast("Value", value) for value in values]

    @torch.inference_mode()
    def _scores(
        self, sequences: Sequence[NDArray[np.int64]], frames: Sequence[Sequence[VisionFeatures]]
    ) -> list[FrameValues]:
        """Read those that begin alike as trees, the others as a padded batch."""
        values: dict[int, FrameValues] = {}
        known: dict[int, NDArray[np.int64]] = {}

        def positions(index: int) -> NDArray[np.int64]:
            sequence = sequences[index]  # one object for all queries of equal words and sizes, see `score`
            if id(sequence) not in known:
                known[id(sequence)] = self._sequencer.positions(sequence, [frame.grid for frame in frames[index]])
            return known[id(sequence)]

        for tree in trees(sequences, frames, positions, asking=self._sequencer.asking):
            values |= zip(tree.members, _values(self._network.read(tree)), strict=True)
        alone = [index for index in range(len(sequences)) if index not in values]
        if alone:
            readout = self._run([sequences[index] for index in alone], [frames[index] for index in alone])
            values |= zip(alone, _values(readout), strict=True)
        return [values[index] for index in range(len(sequences))]

    @torch.inference_mode()
    def _run(self, sequences: Sequence[NDArray[np.int64]], frames: Sequence[Sequence[VisionFeatures]]) -> Readout:
        batch = self._sequencer.batch(sequences, [[frame.grid for frame in shown] for shown in frames])
        readout: Readout = self._network(batch.to(self._device), [frame for shown in frames for frame in shown])
        return readout


def load(folder: Path, *, base: str | None = None) -> RobometerReward:
    """Return the model of a checkpoint's or an adapter's folder, on the device there is, in float32.

    Raises:
        FileNotFoundError, ValueError: see `adapter.open_checkpoint`.
    """
    return RobometerReward(RobometerReward.Config(checkpoint=str(folder), base=base))


def _own(frame: FrameFeatures) -> VisionFeatures:
    if not isinstance(frame, VisionFeatures):
        raise TypeError(f"features: {type(frame).__name__}, must come from this model's encode")
    return frame


def _values(readout: Readout) -> list[FrameValues]:
    progress = torch.split(decode_progress(readout.progress).cpu(), list(readout.counts))
    limited = readout.success.float().clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)
    success = torch.split(limited.sigmoid().cpu(), list(readout.counts))
    return [FrameValues(progress=p.numpy(), success=s.numpy()) for p, s in zip(progress, success, strict=True)]


def _preferences(readout: Readout) -> list[float]:
    limited = readout.preference.float().clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)
    return [float(value) for value in limited.sigmoid().cpu()]
