"""Pairs of clips whose order is known: what a reward model's preference is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finetune.rewards.material import BEST

if TYPE_CHECKING:
    from finetune.rewards.material import Material

AGAINST = ("suboptimal", "failure", "different_task", "rewound", "reversed")
"""What a success is set against: a worse rollout of its task, another task's success, or itself played otherwise."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """Frames of a rollout in the order in which they are shown."""

    rollout: int
    frames: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class KnownPair:
    """A success and something worse under the success's instruction.

    Attributes:
        against: one of `AGAINST`; `kind`: the worse rollout's kind where the dataset says it, else as `against`.
    """

    task: str
    against: str
    kind: str
    instruction: str
    better: Played
    worse: Played


def known_pairs(material: Material, *, seed: int) -> list[KnownPair]:
    """Return the pairs of every success of two frames or more.

    It meets one worse rollout of each kind that its task has, a success of another task, itself rewound (forwards to
    the end, then back over at least half of it) and itself reversed.
    """
    found: list[KnownPair] = []
    for index, rollout in enumerate(material.rollouts):
        if rollout.quality != BEST or rollout.length < 2:
            continue
        random = np.random.default_rng([seed, index])
        whole = tuple(range(rollout.length))
        back = int(random.integers(1, max(2, rollout.length // 2)))
        worse = [
            *_worse_rollouts(material, index, random),
            ("rewound", "rewound", Played(rollout=index, frames=(*whole, *whole[-2 : back - 1 : -1]))),
            ("reversed", "reversed", Played(rollout=index, frames=whole[::-1])),
        ]
        found += [
            KnownPair(
                task=rollout.task,
                against=against,
                kind=kind,
                instruction=rollout.instruction,
                better=Played(rollout=index, frames=whole),
                worse=played,
            )
            for against, kind, played in worse
        ]
    return found


def _worse_rollouts(material: Material, index: int, random: np.random.Generator) -> list[tuple[str, str, Played]]:
    task = material.rollouts[index].task
    piles: dict[tuple[str, str], list[int]] = {}
    for other, rollout in enumerate(material.rollouts):
        if rollout.task == task and rollout.quality != BEST:
            piles.setdefault((rollout.quality, rollout.kind or rollout.quality), []).append(other)
        if rollout.task != task and rollout.quality == BEST:
            piles.setdefault(("different_task", "different_task"), []).append(other)
    found = []
    for (against, kind), pile in sorted(piles.items()):
        other = pile[int(random.integers(len(pile)))]
        frames = tuple(range(material.rollouts[other].length))
        found.append((against, kind, Played(rollout=other, frames=frames)))
    return found
