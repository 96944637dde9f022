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
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from models.robometer.readout import VisionFeatures

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
    frames: Sequence[Sequence[VisionFeatures]],
    positions: Callable[[int], NDArray[np.int64]],
    *,
    asking: int,
) -> list[Tree]:
    """Return the trees worth reading; sequences that are in none are to be read each on its own.

    Args:
        sequences: int64 (L,) each; `positions` gives the rotary positions, int64 (3, L), of one by its index.
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
        spans = list(zip((0, *cuts[:-1].tolist()), cuts.tolist(), strict=True))
        paths, firsts = _nodes([sequences[member] for member in members], [frames[member] for member in members], spans)
        tokens = sum(len(first) * (end - start) for first, (start, end) in zip(firsts, spans, strict=True))
        if len(members) == 1 or tokens > WORTH_IT * cuts[-1] * len(members):
            continue
        levels = []
        for depth, (first, (start, end)) in enumerate(zip(firsts, spans, strict=True)):
            shown = [members[row] for row in first]
            levels.append(
                Level(
                    parents=paths[first, depth - 1] if depth else np.zeros(len(first), dtype=np.int64),
                    ids=np.stack([sequences[member][start:end] for member in shown]),
                    positions=np.stack([positions(member)[:, start:end] for member in shown], axis=1),
                    frames=tuple(frames[member][depth] for member in shown),
                )
            )
        found.append(Tree(members=tuple(members), levels=tuple(levels), paths=paths))
    return found


def _nodes(
    sequences: Sequence[NDArray[np.int64]],
    frames: Sequence[Sequence[VisionFeatures]],
    spans: Sequence[tuple[int, int]],
) -> tuple[NDArray[np.int64], list[list[int]]]:
    """Return each sequence's node at each depth, (sequences, depths), and the first sequence of each node, by depth.

    Args:
        spans: where each piece begins and ends in a sequence.
    """
    paths = np.zeros((len(sequences), len(spans)), dtype=np.int64)
    firsts: list[list[int]] = []
    for depth, (start, end) in enumerate(spans):
        nodes: dict[tuple[int, int, bytes], int] = {}
        firsts.append([])
        for row, sequence in enumerate(sequences):
            above = int(paths[row, depth - 1]) if depth else 0
            key = (above, id(frames[row][depth]), sequence[start:end].tobytes())
            if key not in nodes:
                nodes[key] = len(nodes)
                firsts[-1].append(row)
            paths[row, depth] = nodes[key]
    return paths, firsts
