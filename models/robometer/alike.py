"""Queries that begin alike, read as one tree: what they share is computed once.

All prefixes of an episode ask in the same words, show the same first frame, and often the same second and third. A
sequence is cut after each progress token; pieces that follow the same pieces and show the same frame are one node. The
network reads the tree level by level, each node behind the keys and values of those it follows, so a value is what it
is in a sequence of its own, to float tolerance.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from models.robometer.network import VisionFeatures

WORTH_IT = 0.7
"""A tree is read where it has at most this share of its sequences' tokens: each level costs a run of its own."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """Nodes of one depth.

    Attributes:
        parents: int64 (n,): the node of the level before that each one follows; zeros at the first level.
        ids: int64 (n, L), the last one a progress token; `positions`: int64 (3, n, L), rotary.
        frames: the frame that each node shows.
    """

    parents: NDArray[np.int64]
    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    frames: tuple[VisionFeatures, ...]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Sequences that begin alike.

    Attributes:
        members: which sequences of the batch.
        levels: from the first piece to the last.
        paths: int64 (members, levels): the node of each member at each level.
    """

    members: tuple[int, ...]
    levels: tuple[Level, ...]
    paths: NDArray[np.int64]


def trees(
    sequences: Sequence[NDArray[np.int64]],
    positions: Sequence[NDArray[np.int64]],
    frames: Sequence[Sequence[VisionFeatures]],
    *,
    asking: int,
) -> list[Tree]:
    """Return the trees worth reading; sequences that are in none are to be read each on its own.

    Args:
        sequences: int64 (L,) each; `positions`: int64 (3, L) each.
        frames: the frames of each sequence, one before each of its progress tokens.
        asking: id of the progress token.
    """
    ends = [np.flatnonzero(sequence == asking) + 1 for sequence in sequences]
    groups: dict[tuple[bytes, bytes], list[int]] = defaultdict(list)
    for index, (sequence, cuts) in enumerate(zip(sequences, ends, strict=True)):
        groups[sequence[: cuts[0]].tobytes(), cuts.tobytes()].append(index)
    found = []
    for members in groups.values():
        cuts = ends[members[0]]
        tree = _tree(members, cuts, sequences, positions, frames)
        tokens = sum(level.ids.size for level in tree.levels)
        if len(members) > 1 and tokens <= WORTH_IT * cuts[-1] * len(members):
            found.append(tree)
    return found


def _tree(
    members: Sequence[int],
    cuts: NDArray[np.int64],
    sequences: Sequence[NDArray[np.int64]],
    positions: Sequence[NDArray[np.int64]],
    frames: Sequence[Sequence[VisionFeatures]],
) -> Tree:
    levels = []
    paths = np.zeros((len(members), len(cuts)), dtype=np.int64)
    above = np.zeros(len(members), dtype=np.int64)
    for depth, (start, end) in enumerate(zip((0, *cuts[:-1]), cuts, strict=True)):
        nodes: dict[tuple[int, int, bytes], int] = {}
        first: list[int] = []
        for row, member in enumerate(members):
            key = (int(above[row]), id(frames[member][depth]), sequences[member][start:end].tobytes())
            if key not in nodes:
                nodes[key] = len(nodes)
                first.append(row)
            paths[row, depth] = nodes[key]
        shown = [members[row] for row in first]
        levels.append(
            Level(
                parents=above[first],
                ids=np.stack([sequences[member][start:end] for member in shown]),
                positions=np.stack([positions[member][:, start:end] for member in shown], axis=1),
                frames=tuple(frames[member][depth] for member in shown),
            )
        )
        above = paths[:, depth]
    return Tree(members=tuple(members), levels=tuple(levels), paths=paths)
