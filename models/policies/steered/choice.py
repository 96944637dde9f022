"""What the high-level agent chooses: initial action noise z, context level t, context noise eps."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Numbers = TypeVar("Numbers", NDArray[Any], Tensor)

Playing = Literal["likeliest", "drawn"]


@dataclass(frozen=True, kw_only=True)
class ChoiceSpace:
    """Where each part of a choice lies in its vector, and how it is scaled.

    The agent's own scale is [-1, 1]; z and eps are multiplied by their bounds, and t goes from `level_least` to
    `level_bound`, which may be the same. A part that is not chosen has size 0.

    Attributes:
        noise, level, context: numbers of each part in the vector.
        rows, columns: of a chunk (H, A). `context_size`: numbers of context noise that the policy takes.
        context_rank: 0 chooses each of these; k chooses k numbers, from which `context_basis` makes all.
    """

    noise: int
    level: int
    context: int
    rows: int
    columns: int
    context_size: int
    noise_bound: float
    level_bound: float
    context_bound: float
    level_least: float = 0.0
    context_rank: int = 0

    @classmethod
    def of(
        cls,
        *,
        rows: int,
        columns: int,
        context_size: int,
        noise_bound: float,
        level_bound: float,
        context_bound: float,
        level_least: float = 0.0,
        context_rank: int = 0,
        whole_chunk: bool = False,
    ) -> ChoiceSpace:
        """Return the space for a policy with chunks (rows, columns) and so much context.

        Args:
            whole_chunk: choose a noise for every row; otherwise one is repeated over them.

        Raises:
            ValueError: a context is to be modulated, and the policy has none; the least level is above the bound; or
                the context's rank is above its size.
        """
        if not 0 <= context_rank <= context_size:
            raise ValueError(f"context_rank: {context_rank}, must be from 0 to the context's size, {context_size}")
        if not 0 <= level_least <= level_bound:
            raise ValueError(f"level_least: {level_least}, must be from 0 to level_bound, {level_bound}")
        if context_size == 0 and (level_bound or context_bound):
            raise ValueError("level_bound: the policy was trained without context noise, so both bounds must be 0")
        return cls(
            noise=rows * columns if whole_chunk else columns,
            level=1 if level_bound else 0,
            context=(context_rank or context_size) if context_bound and level_bound else 0,
            rows=rows,
            columns=columns,
            context_size=context_size,
            noise_bound=noise_bound,
            level_bound=level_bound,
            context_bound=context_bound,
            level_least=level_least,
            context_rank=context_rank,
        )

    @property
    def parts(self) -> tuple[int, ...]:
        """Sizes of the parts that are chosen, in order."""
        return tuple(size for size in (self.noise, self.level, self.context) if size)

    @property
    def size(self) -> int:
        """Numbers of a choice."""
        return sum(self.parts)

    def level_of(self, raw: Numbers) -> Numbers:
        """Return levels for numbers in [-1, 1]."""
        return self.level_least + (raw + 1) / 2 * (self.level_bound - self.level_least)

    def spread(self, choices: NDArray[np.float32], random: np.random.Generator) -> Steering:
        """Return what a policy is told for choices (N, size) in [-1, 1].

        Args:
            random: source of context noise that is not chosen, standard normal.
        """
        number = len(choices)
        z = choices[:, : self.noise] * self.noise_bound
        rows = z.reshape(number, -1, self.columns)
        noise = np.broadcast_to(rows, (number, self.rows, self.columns)).astype(np.float32)
        raw = choices[:, self.noise] if self.level else np.full(number, -1.0, np.float32)
        level = np.asarray(self.level_of(raw), np.float32)
        if self.context:
            context = choices[:, self.noise + self.level :] * self.context_bound
            if self.context_rank:
                context = context @ context_basis(self.context_rank, self.context_size)
        else:
            context = random.standard_normal((number, self.context_size), np.float32)
        return Steering(
            noise=noise,
            level=np.clip(level, 0.0, 1.0),
            context_noise=np.asarray(context, np.float32),
        )


def context_basis(rank: int, size: int) -> NDArray[np.float32]:
    """Return the matrix (rank, size) by which a few numbers make context noise, always the same.

    Its signs are random and its scale sqrt(3 / rank): numbers that are uniform in [-1, 1] make noise of unit variance,
    as the policy was trained on.
    """
    drawn = hashlib.shake_256(f"{rank} x {size}".encode()).digest(-(-rank * size // 8))
    signs = np.unpackbits(np.frombuffer(drawn, np.uint8))[: rank * size].reshape(rank, size)
    return (2.0 * signs.astype(np.float32) - 1.0) * np.float32(math.sqrt(3 / rank))


@dataclass(frozen=True, kw_only=True)
class Steering:
    """What steers a frozen policy, for N observations.

    Attributes:
        noise: float32 (N, H, A). `level`: float32 (N,), 0 to 1. `context_noise`: float32 (N, C), C 0 for a policy
            without context.
    """

    noise: NDArray[np.float32]
    level: NDArray[np.float32]
    context_noise: NDArray[np.float32]
