"""Who answers in an evaluation: a model in this process, a served one, or the clock."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from clients.errors import RoboserveError
from finetune.relabel.frames import FrameStore
from finetune.relabel.labeller import Labels, ModelFacts, checked_labels
from models.rewards.contract import Pair, Query
from models.rewards.frames import MODES, merged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from finetune.relabel.config import Plan
    from models.rewards.contract import FrameFeatures, FrameValues, RewardModel

_FRAMES_AT_ONCE = 512
_ENCODE_AT_ONCE = 32
FEATURE_BYTES = 512 * 2**20

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Kept frames, by their rows, that are shown together, and the instruction that they are judged by."""

    instruction: str
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PairAsk:
    """Two clips of kept frames under one instruction, equally many."""

    instruction: str
    first: tuple[int, ...]
    second: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Final:
    """A clip's values at its last frame; `success` is None where the judge gives none."""

    progress: float
    success: float | None


class Judge(Protocol):
    """Gives values for frames that it was given once and keeps, small and beyond a cap on disk."""

    @property
    def facts(self) -> ModelFacts:
        """Who it is."""
        ...

    @property
    def compares(self) -> bool:
        """Whether it tells which of two clips is better."""
        ...

    def keep(self, frames: Iterable[NDArray[np.uint8]], count: int | None = None) -> range:
        """Keep frames, RGB uint8 (h, w, 3) of any size, and return their rows; `count`: how many there must be."""
        ...

    def curve(self, instruction: str, rows: range, plan: Plan) -> Labels:
        """Return the values of a clip of kept frames as a plan asks; `Labels.frames` count from the clip's first.

        Raises:
            RoboserveError: it gives no values for this clip.
        """
        ...

    def finals(self, asks: Sequence[Ask]) -> list[Final]:
        """Return the values at the last row of each ask; raises as `curve`."""
        ...

    def prefer(self, asks: Sequence[PairAsk]) -> list[float]:
        """Return P(first is better) of each ask; raises as `curve`."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class Clock:
    """The baseline that looks at nothing: progress is the share of time gone by, every clip ends done, no clip wins."""

    facts = ModelFacts(
        id="clock",
        revision="-",
        content_hash="-",
        architecture="clock",
        dtype="-",
        prompt_version="none",
        frame_policy="all",
        pixels="none",
    )
    compares = True

    def __init__(self) -> None:
        self._rows = 0

    def keep(self, frames: Iterable[NDArray[np.uint8]], count: int | None = None) -> range:
        """Count them; nothing is decoded where their number is known."""
        count = sum(1 for _ in frames) if count is None else count
        self._rows += count
        return range(self._rows - count, self._rows)

    def curve(self, instruction: str, rows: range, plan: Plan) -> Labels:
        """See `Judge`."""
        del instruction
        frames = np.array(plan.labelled(len(rows)), dtype=np.int64)
        share = (frames / (len(rows) - 1) if len(rows) > 1 else np.ones(1)).astype(np.float32)
        return Labels(frames=frames, progress=share, success=share)

    def finals(self, asks: Sequence[Ask]) -> list[Final]:
        """See `Judge`."""
        return [Final(progress=1.0, success=1.0) for _ in asks]

    def prefer(self, asks: Sequence[PairAsk]) -> list[float]:
        """See `Judge`."""
        return [0.5 for _ in asks]

    def close(self) -> None:
        """Nothing is open."""


class LocalJudge:
    """A model in this process. The features of a frame are made once, while they fit into `feature_bytes`.

    Args:
        model: kept by this judge alone, since a model is called from one thread at a time.
        feature_bytes: features kept, the least lately used going first.
        batch_frames: most frames that one call shows together.
    """

    def __init__(
        self, model: RewardModel, *, feature_bytes: int = FEATURE_BYTES, batch_frames: int = _FRAMES_AT_ONCE
    ) -> None:
        spec = model.spec
        self._model, self._spec = model, spec
        self._open = ExitStack()
        self._store = self._open.enter_context(FrameStore())
        self._features = _Features(model, self._store, feature_bytes)
        self._batch_frames = batch_frames
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
        self.compares = spec.supports_compare

    def keep(self, frames: Iterable[NDArray[np.uint8]], count: int | None = None) -> range:
        """See `Judge`."""
        return kept(self._store, (self._features.pack(frame) for frame in frames), count)

    def curve(self, instruction: str, rows: range, plan: Plan) -> Labels:
        """See `Judge`; windows that one query answers on its way take no query of their own."""
        queries, readings = merged(plan.windows(len(rows)))
        values = self._score([Ask(instruction=instruction, rows=tuple(rows[i] for i in query)) for query in queries])
        if plan.mode == MODES[0]:
            return checked_labels(plan, len(rows), values[0].progress, values[0].success)
        progress = np.array([values[at.query].progress[at.position] for at in readings], np.float32)
        known = [value.success for value in values if value.success is not None]
        success = np.array([known[at.query][at.position] for at in readings], np.float32) if known else None
        return checked_labels(plan, len(rows), progress, success)

    def finals(self, asks: Sequence[Ask]) -> list[Final]:
        """See `Judge`."""
        return [
            Final(
                progress=float(value.progress[-1]), success=None if value.success is None else float(value.success[-1])
            )
            for value in self._score(asks)
        ]

    def prefer(self, asks: Sequence[PairAsk]) -> list[float]:
        """See `Judge`."""
        found: list[float] = []
        for batch in batches(asks, [len(ask.first) + len(ask.second) for ask in asks], self._batch_frames):
            seen = self._features.of({row for ask in batch for row in (*ask.first, *ask.second)})
            pairs = [
                Pair(
                    instruction=ask.instruction,
                    first=tuple(seen[row] for row in ask.first),
                    second=tuple(seen[row] for row in ask.second),
                )
                for ask in batch
            ]
            found += [checked_chance(float(chance)) for chance in self._model.compare(pairs)]
        return found

    def close(self) -> None:
        """See `Judge`."""
        self._open.close()

    def _score(self, asks: Sequence[Ask]) -> list[FrameValues]:
        spec = self._spec
        longest = max(len(ask.rows) for ask in asks)
        if longest > spec.max_frames:
            text = f"frame policy: shows {longest} frames, {spec.id} takes at most {spec.max_frames}"
            raise RoboserveError("invalid_request", text)
        longest = max(len(ask.instruction) for ask in asks)
        if longest > spec.instruction_chars:
            text = f"instruction: {longest} characters, {spec.id} takes at most {spec.instruction_chars}"
            raise RoboserveError("invalid_request", text)
        found: list[FrameValues] = []
        for batch in batches(asks, [len(ask.rows) for ask in asks], self._batch_frames):
            seen = self._features.of({row for ask in batch for row in ask.rows})
            found += self._model.score(
                [Query(instruction=ask.instruction, frames=tuple(seen[row] for row in ask.rows)) for ask in batch]
            )
        return found


def open_judge(model: str, *, api_key: str | None = None, options: dict[str, object] | None = None) -> Judge:
    """Return the judge that a name stands for.

    Args:
        model: "zoo:NAME", a checkpoint's folder, "MODULE:CLASS", or a served model's address, ws://HOST:PORT/reward/NAME.
        options: fields of the model's configuration, where it is a "MODULE:CLASS".

    Raises:
        RoboserveError: naming what is wrong with the name, or why the server cannot be reached.
    """
    if "://" in model:
        from finetune.rewards.judge_served import ServedJudge

        return ServedJudge(model, api_key=api_key)
    from finetune.relabel.local import load_model

    return LocalJudge(load_model(model, options or {}))


def kept(store: FrameStore, packed: Iterable[bytes], count: int | None) -> range:
    """Add frames to a store and return their rows.

    Raises:
        RoboserveError: `invalid_request` where there are not `count`, if that is given.
    """
    start = len(store)
    for frame in packed:
        store.add(frame)
    if count is not None and len(store) - start != count:
        raise RoboserveError("invalid_request", f"clip: {len(store) - start} frames, {count} were expected")
    return range(start, len(store))


def batches(items: Sequence[Item], sizes: Sequence[int], limit: int) -> Iterator[list[Item]]:
    """Give items in order, in groups whose sizes add up to no more than `limit`; a larger one goes alone."""
    group: list[Item] = []
    spent = 0
    for item, size in zip(items, sizes, strict=True):
        if group and spent + size > limit:
            yield group
            group, spent = [], 0
        group.append(item)
        spent += size
    if group:
        yield group


def checked_chance(value: float) -> float:
    """Return a probability.

    Raises:
        RoboserveError: `invalid_output` for a number that is none.
    """
    if not 0.0 <= value <= 1.0:  # false for NaN too
        raise RoboserveError("invalid_output", f"compare: the model gave {value!r}, must be 0 to 1")
    return value


class _Features:
    """Features of kept frames by row."""

    def __init__(self, model: RewardModel, store: FrameStore, limit: int) -> None:
        self._model, self._store, self._limit = model, store, limit
        self._shapes: list[tuple[int, ...]] = []
        self._kept: OrderedDict[int, FrameFeatures] = OrderedDict()
        self._bytes = 0

    def pack(self, frame: NDArray[np.uint8]) -> bytes:
        prepared = self._model.prepare(frame)
        self._shapes.append(prepared.shape)
        return prepared.tobytes()

    def of(self, rows: set[int]) -> dict[int, FrameFeatures]:
        found: dict[int, FrameFeatures] = {}
        for row in rows & self._kept.keys():
            self._kept.move_to_end(row)
            found[row] = self._kept[row]
        missing = sorted(rows - found.keys())
        for start in range(0, len(missing), _ENCODE_AT_ONCE):
            group = missing[start : start + _ENCODE_AT_ONCE]
            for row, features in zip(group, self._model.encode([self._pixels(row) for row in group]), strict=True):
                found[row] = self._kept[row] = features
                self._bytes += features.nbytes
        while self._bytes > self._limit and self._kept:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return found

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        return np.frombuffer(self._store.read(row), dtype=np.uint8).reshape(self._shapes[row]).copy()
