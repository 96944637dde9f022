"""Training clips of ReWiND: parts of successes, played forwards or forwards and back.

A part [s, e) of an episode of N frames has progress (i + 1) / (N - s) at its i-th frame, so it ends at 1 only where it
reaches the episode's end. Rewound, it starts in the first half, ends in the second, and is followed by its own reverse,
along which progress falls (github.com/rewind-reward/ReWiND). Only indices are drawn: nothing is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from models.rewards.frames import FramePolicy
from models.rewind.checkpoint import FRAME_POLICY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from models.rewards.episodes import EpisodeInfo

SHORTEST = 3


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How clips are drawn; the defaults are the reference's.

    Attributes:
        policy: frame policy that brings a part to its count of frames; shorter parts repeat their last frame.
        rewind: share of clips that are rewound.
        negative_text: share of clips of the target domain that are shown under another task's words, as no progress.
        from_start: share of clips that begin with their episode, as every clip does when rewards are asked for;
            0 in the reference.
        broad: data sources of broad data (OXE in the reference), all others being the target domain.
        broad_share: share of a batch that broad data takes where there is some.
    """

    policy: str = FRAME_POLICY
    rewind: float = 0.8
    negative_text: float = 0.2
    from_start: float = 0.0
    broad: tuple[str, ...] = ()
    broad_share: float = 0.8

    def __post_init__(self) -> None:
        if FramePolicy.parse(self.policy).count < 2:
            raise ValueError(f"policy {self.policy!r}: must show a fixed count of frames, 2 or more")
        for name in ("rewind", "negative_text", "from_start", "broad_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} {getattr(self, name):g}: must be 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """A clip to be shown, the words to show it under, and what it teaches.

    Attributes:
        episode: index of the episode; `frames`: indices into it, T of them.
        task: the task that the clip shows; `text_task`, `instruction`: the one whose words it is shown under.
        targets: float32 (T,), 0 to 1.
        broad: whether it is broad data.
    """

    episode: int
    frames: tuple[int, ...]
    task: str
    text_task: str
    instruction: str
    targets: NDArray[np.float32]
    broad: bool


def part_targets(start: int, end: int, length: int) -> NDArray[np.float32]:
    """Return progress along frames `start` to `end` (excluded) of an episode of `length`: (i + 1) / (length - start).

    Raises:
        ValueError: fewer than three frames, or outside the episode.
    """
    if not 0 <= start <= end - SHORTEST or end > length:
        raise ValueError(f"part [{start}, {end}): must hold {SHORTEST} frames or more of {length}")
    return (np.arange(1, end - start + 1) / (length - start)).astype(np.float32)


def rewound(start: int, end: int, length: int, back: int) -> tuple[list[int], NDArray[np.float32]]:
    """Return (path, targets) of a part followed by its own reverse.

    Args:
        back: frames that are played backwards, 1 to `end - start - 1`; the one it turns at is not repeated.

    Raises:
        ValueError: `back` is out of range, or as `part_targets`.
    """
    targets = part_targets(start, end, length)
    if not 1 <= back < len(targets):
        raise ValueError(f"back {back}: must be 1 to {len(targets) - 1}")
    path = [*range(start, end), *range(end - 2, end - 2 - back, -1)]
    return path, np.concatenate([targets, targets[::-1][1 : back + 1]])


@dataclass(kw_only=True)
class ClipSampler:
    """Draws batches of clips from successful episodes; the same generator state gives the same batch.

    Args:
        wordings: task to the words that ask for it, any of which is drawn; the episodes' own for tasks that it lacks.

    Raises:
        ValueError: no successful episode of three frames or more, in the target domain or in a broad source that is
            named, or negative text is wanted of a single task.
    """

    episodes: Sequence[EpisodeInfo]
    config: SamplerConfig = field(default_factory=SamplerConfig)
    wordings: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        usable = [
            index
            for index, episode in enumerate(self.episodes)
            if episode.quality == "successful" and episode.length >= SHORTEST
        ]
        self._broad = [index for index in usable if self.episodes[index].source in self.config.broad]
        self._target = [index for index in usable if self.episodes[index].source not in self.config.broad]
        if not self._target or bool(self.config.broad) != bool(self._broad):
            raise ValueError("episodes: the target domain, and the broad data if any, need a success of three frames")
        own: dict[str, set[str]] = {}
        for index in usable:
            own.setdefault(self.episodes[index].task, set()).add(self.episodes[index].instruction)
        self._words = {task: tuple(self.wordings.get(task, sorted(texts))) for task, texts in sorted(own.items())}
        if self.config.negative_text and len(self._words) < 2:
            raise ValueError("negative_text: needs two tasks or more")
        self._policy = FramePolicy.parse(self.config.policy)

    def draw(self, count: int, random: np.random.Generator) -> list[ClipPlan]:
        """Return `count` clips, broad data first."""
        broad = round(self.config.broad_share * count) if self._broad else 0
        return [self._clip(broad=number < broad, random=random) for number in range(count)]

    def _clip(self, *, broad: bool, random: np.random.Generator) -> ClipPlan:
        pool = self._broad if broad else self._target
        index = pool[int(random.integers(len(pool)))]
        task = text_task = self.episodes[index].task
        path, targets = self._path(self.episodes[index].length, random)
        if not broad and random.random() < self.config.negative_text:
            others = [other for other in self._words if other != task]
            text_task, targets = others[int(random.integers(len(others)))], np.zeros_like(targets)
        words = self._words[text_task]
        shown = self._shown(len(path))
        return ClipPlan(
            episode=index,
            frames=tuple(path[place] for place in shown),
            task=task,
            text_task=text_task,
            instruction=words[int(random.integers(len(words)))],
            targets=targets[shown],
            broad=broad,
        )

    def _path(self, length: int, random: np.random.Generator) -> tuple[list[int], NDArray[np.float32]]:
        turns = random.random() < self.config.rewind
        latest = min(length // 2 - 1, length - SHORTEST) if turns else length - SHORTEST
        start = int(random.integers(0, max(0, latest) + 1))
        if random.random() < self.config.from_start:
            start = 0
        earliest = max(length // 2 + 1, start + SHORTEST) if turns else start + SHORTEST
        end = int(random.integers(earliest, length + 1))
        if turns:
            return rewound(start, end, length, int(random.integers(1, end - start)))
        return list(range(start, end)), part_targets(start, end, length)

    def _shown(self, length: int) -> list[int]:
        if length < self._policy.count:
            return [*range(length), *([length - 1] * (self._policy.count - length))]
        return list(self._policy.indices(length))
