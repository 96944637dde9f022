"""Context noise: the forward diffusion that context-smoothed pre-training puts on what a policy is told.

c_t = sqrt(a_t) c + sqrt(1 - a_t) eps with eps ~ N(0, 1), a_t falling with the level t in [0, 1] (context-smoothed
pre-training, arXiv 2605.12236, and its code). At level 0 a policy knows its context, at level 1 it knows none, if the
schedule erases it: a linear schedule of 100 levels leaves 0.6 of it, one of 1000 levels 0.006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_FIRST_BETA, _LAST_BETA = 1e-4, 0.02
_COSINE_OFFSET = 0.008


@dataclass(frozen=True, kw_only=True)
class ContextSchedule:
    """How much of a context is left at each level.

    Attributes:
        kind: "linear" is a product of 1 - beta with `levels` betas from 1e-4 to 0.02 (Ho et al. 2020); "cosine" is
            continuous (Nichol and Dhariwal 2021, offset 0.008) and knows no levels.
        levels: of the linear schedule. 1000 erases the context; 100 is what was published for OGBench.
        index: the level that t falls into: "floor" of t * levels, or "floor_last" of t * (levels - 1), as pi0's port.
    """

    kind: Literal["linear", "cosine"] = "linear"
    levels: int = 1000
    index: Literal["floor", "floor_last"] = "floor"

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"levels: {self.levels}, must be 1 or more")

    def kept(self, level: Tensor) -> Tensor:
        """Return the share of the context's variance that is left (a_t), of `level`'s shape, float32; 1 at exactly 0.

        Raises:
            ValueError: a level is outside [0, 1].
        """
        level = level.float()
        if level.numel() and not bool(((level >= 0) & (level <= 1)).all()):
            raise ValueError(f"context_level: from {level.min():g} to {level.max():g}, must be from 0 to 1")
        if self.kind == "cosine":
            angle = (level + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * (math.pi / 2)
            kept = (angle.cos() / math.cos(_COSINE_OFFSET / (1 + _COSINE_OFFSET) * math.pi / 2)) ** 2
        else:
            betas = torch.linspace(_FIRST_BETA, _LAST_BETA, self.levels, dtype=torch.float64, device=level.device)
            table = torch.cumprod(1 - betas, dim=0).float()
            steps = self.levels if self.index == "floor" else self.levels - 1
            kept = table[(level * steps).floor().long().clamp(0, self.levels - 1)]
        return torch.where(level == 0, torch.ones_like(kept), kept.clamp(0, 1))


REFERENCE_OGBENCH = ContextSchedule(levels=100)
"""As published for OGBench; leaves 0.6 of the context at the top."""


def noise_context(context: Tensor, level: Tensor, noise: Tensor, schedule: ContextSchedule) -> Tensor:
    """Return sqrt(a_t) context + sqrt(1 - a_t) noise; exactly the context where the level is 0.

    Args:
        context: (B, ...), of unit scale; `noise`: the same shape, standard normal.
        level: (B,) in [0, 1].
    """
    kept = schedule.kept(level).to(context).reshape(-1, *[1] * (context.dim() - 1))
    noised = kept.sqrt() * context + (1 - kept).sqrt() * noise
    return torch.where(kept == 1, context, noised)


def unit_rms(tokens: Tensor) -> Tensor:
    """Scale each vector of (..., size) to a root mean square of 1, so that noise of unit scale can erase it.

    Vectors of zeros stay zeros.
    """
    scale = tokens.float().square().mean(dim=-1, keepdim=True).sqrt()
    return torch.where(scale > 0, tokens / scale.clamp(min=1e-12).to(tokens), tokens)


def noise_slice(
    values: Tensor, start: int, stop: int, level: Tensor, noise: Tensor, schedule: ContextSchedule
) -> Tensor:
    """Noise columns `start` to `stop` of normalised vectors (B, S) with noise (B, stop - start); the rest stays.

    The whole state is `start` 0 and `stop` S; a goal is the columns that hold it.

    Raises:
        ValueError: there are no such columns.
    """
    if not 0 <= start < stop <= values.shape[-1]:
        raise ValueError(f"context: columns {start} to {stop}, must lie within 0 to {values.shape[-1]}")
    noised = noise_context(values[:, start:stop], level, noise, schedule)
    return torch.cat([values[:, :start], noised, values[:, stop:]], dim=-1)


def noise_feature(feature: Tensor, level: Tensor, noise: Tensor, schedule: ContextSchedule) -> Tensor:
    """Noise one vector an item (B, size), as that of a point cloud or an image, brought to unit RMS first."""
    return noise_context(unit_rms(feature), level, noise, schedule)


def noise_tokens(tokens: Tensor, mask: Tensor, level: Tensor, noise: Tensor, schedule: ContextSchedule) -> Tensor:
    """Noise tokens of images and text, each brought to unit RMS first; padding becomes zeros.

    Args:
        tokens: (B, N, size), as the language model is given them.
        mask: (B, N), whether a token counts.
        noise: (B, N, size), or (B, 1, size) to put one vector on all.
    """
    noised = noise_context(unit_rms(tokens), level, noise.expand_as(tokens), schedule)
    return torch.where(mask[..., None].bool(), noised, torch.zeros_like(noised))
