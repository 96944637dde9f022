"""The four-strategy sampler: every training item is a pair of clips, one of which got further.

Starting from a successful episode, the worse clip comes from one of four strategies, equally likely: `rewind` (the same
clip, forwards and then back), `suboptimal` (a worse episode of the same task), `different_task` (another task's clip
under this instruction) and `reverse` (the same clip backwards). Starting from another episode, that one is the worse
and a random success of its task the better (github.com/robometer/robometer, data/samplers).

Where the reference pairs a worse episode with a random part of a success, which may well have got less far, the whole
success is shown here. Only indices are drawn: nothing is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from models.robometer.targets import progress_targets, success_mask, success_targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from models.rewards.episodes import EpisodeInfo

Strategy = Literal["rewind", "suboptimal", "different_task", "reverse"]
STRATEGIES: tuple[Strategy, ...] = ("rewind", "suboptimal", "different_task", "reverse")
PARTIAL_GAP = 0.2
_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """A clip to be shown, and what it teaches.

    Attributes:
        episode: index of the episode; `frames`: indices into it, T of them.
        progress, success: targets (T,); `progress_mask`, `success_mask`: where they are taught (T,).
    """

    episode: int
    frames: tuple[int, ...]
    progress: NDArray[np.float32]
    success: NDArray[np.float32]
    progress_mask: NDArray[np.float32]
    success_mask: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PairPlan:
    """Two clips under one instruction, in the order in which they are shown."""

    instruction: str
    first: ClipPlan
    second: ClipPlan
    first_is_better: bool
    strategy: Strategy


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How pairs are drawn.

    Attributes:
        frames: frames of every clip (T).
        strategies: equally likely; one that stands twice is twice as likely.
        successes: share of pairs that are drawn for a successful episode; None for their share of the episodes, as in
            the reference, whose data are mostly successes. Where they are not, few pairs would teach what words mean.
        from_start: share of forward clips that begin with their episode, as every clip does when rewards are asked for;
            0 in the reference.
        same_source: share of different-task clips that come from the same source.
        parity: padding frames teach, as in the reference.
    """

    frames: int = 8
    strategies: tuple[Strategy, ...] = STRATEGIES
    successes: float | None = None
    from_start: float = 0.0
    same_source: float = 0.5
    parity: bool = False


@dataclass(kw_only=True)
class PairSampler:
    """Draws pairs from episodes; the same generator state gives the same pair.

    Raises:
        ValueError: no successful episode of at least three frames.
    """

    episodes: Sequence[EpisodeInfo]
    config: SamplerConfig = field(default_factory=SamplerConfig)

    def __post_init__(self) -> None:
        self._successes: dict[str, list[int]] = {}
        self._others: dict[str, list[int]] = {}
        for index, episode in enumerate(self.episodes):
            if episode.length >= 3:
                kind = self._successes if episode.quality == "successful" else self._others
                kind.setdefault(episode.task, []).append(index)
        if not self._successes:
            raise ValueError("episodes: none is successful and has three frames or more")
        self._better, self._worse = (
            sorted(i for part in table.values() for i in part) for table in (self._successes, self._others)
        )
        self._usable = sorted(self._better + self._worse)

    def draw(self, random: np.random.Generator) -> PairPlan:
        """Return one pair."""
        while True:
            index = self._owner(random)
            if self.episodes[index].quality != "successful":
                better = self._partner(index, self._successes, random)
                if better is not None:
                    return self._ordered(self._whole(better), self._whole(index), index, "suboptimal", random)
                continue
            for _ in range(_ATTEMPTS):
                strategy = self.config.strategies[int(random.integers(len(self.config.strategies)))]
                pair = self._from_success(index, strategy, random)
                if pair is not None:
                    return pair

    def _owner(self, random: np.random.Generator) -> int:
        """Return the episode that a pair is drawn for."""
        chosen = self._usable
        if self.config.successes is not None and self._worse:
            chosen = self._better if random.random() < self.config.successes else self._worse
        return chosen[int(random.integers(len(chosen)))]

    def _from_success(self, index: int, strategy: Strategy, random: np.random.Generator) -> PairPlan | None:
        if strategy == "suboptimal":
            worse = self._partner(index, self._others, random)
            if worse is None:
                return None
            return self._ordered(self._whole(index), self._whole(worse), index, strategy, random)
        start, turn, end = self._part(index, random)
        forward = list(range(start, end + 1))
        better = self._clip(index, forward)
        if strategy == "rewind":
            return self._ordered(
                better, self._clip(index, [*forward, *range(end - 1, turn - 1, -1)]), index, strategy, random
            )
        if strategy == "reverse":
            return self._ordered(better, self._clip(index, forward[::-1]), index, strategy, random)
        other = self._stranger(index, random)
        if other is None:
            return None
        begin, _, stop = self._part(other, random)
        return self._ordered(
            better, self._clip(other, list(range(begin, stop + 1)), stranger=True), index, strategy, random
        )

    def _part(self, index: int, random: np.random.Generator) -> tuple[int, int, int]:
        """Return three distinct indices in order: where a clip starts, turns back to, and ends."""
        low, middle, high = np.sort(random.choice(self.episodes[index].length, 3, replace=False)).tolist()
        if random.random() < self.config.from_start:
            low = 0
        return low, middle, high

    def _partner(self, index: int, table: dict[str, list[int]], random: np.random.Generator) -> int | None:
        own = self.episodes[index]
        choices = table.get(own.task, [])
        if own.partial_success is not None:
            choices = [other for other in choices if self._far_apart(own.partial_success, other)]
        return choices[int(random.integers(len(choices)))] if choices else None

    def _far_apart(self, partial: float, other: int) -> bool:
        theirs = self.episodes[other].partial_success
        return theirs is None or abs(theirs - partial) >= PARTIAL_GAP

    def _stranger(self, index: int, random: np.random.Generator) -> int | None:
        own = self.episodes[index]
        others = [i for i in self._usable if self.episodes[i].task != own.task]
        near = [i for i in others if self.episodes[i].source == own.source]
        choices = near if near and random.random() < self.config.same_source else others
        return choices[int(random.integers(len(choices)))] if choices else None

    def _whole(self, index: int) -> ClipPlan:
        return self._clip(index, list(range(self.episodes[index].length)))

    def _clip(self, index: int, path: list[int], *, stranger: bool = False) -> ClipPlan:
        """Show `path` in T frames, first and last kept; a shorter one is padded with its last frame."""
        episode, count = self.episodes[index], self.config.frames
        if len(path) >= count:
            shown = [path[int(place)] for place in np.rint(np.linspace(0, len(path) - 1, count))]
            real = np.ones(count, dtype=np.float32)
        else:
            shown = path + [path[-1]] * (count - len(path))
            real = (np.arange(count) < len(path)).astype(np.float32)
        if self.config.parity:
            real = np.ones(count, dtype=np.float32)
        successful = episode.quality == "successful" and not stranger
        progress = progress_targets(shown, episode.length, cutoff=episode.cutoff)
        if stranger:
            progress = np.zeros_like(progress)
        success = success_targets(progress, cutoff=episode.cutoff, successful=successful)
        taught = (stranger or episode.quality == "successful") and not episode.preference_only
        return ClipPlan(
            episode=index,
            frames=tuple(shown),
            progress=progress,
            success=success,
            progress_mask=real * float(taught),
            success_mask=real * success_mask(progress, success, successful=successful),
        )

    def _ordered(
        self, better: ClipPlan, worse: ClipPlan, owner: int, strategy: Strategy, random: np.random.Generator
    ) -> PairPlan:
        """Put a pair in the order of a fair coin; the instruction is that of the episode the pair was drawn for."""
        first_is_better = bool(random.random() < 0.5)
        return PairPlan(
            instruction=self.episodes[owner].instruction,
            first=better if first_is_better else worse,
            second=worse if first_is_better else better,
            first_is_better=first_is_better,
            strategy=strategy,
        )
