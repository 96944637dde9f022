"""Times in [0, 1] as features that a network can read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SHORTEST, _LONGEST = 4e-3, 4.0


def time_features(time: Tensor, size: int) -> Tensor:
    """Sines, then cosines, of times (B,) at `size` / 2 periods from 4e-3 to 4 in equal ratios, float32 (B, size)."""
    fraction = torch.linspace(0.0, 1.0, size // 2, device=time.device)
    angle = time.float()[:, None] * (2 * math.pi / (_SHORTEST * (_LONGEST / _SHORTEST) ** fraction))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def paired_time_features(first: Tensor, second: Tensor, size: int) -> Tensor:
    """Features of two times in the width of one: sines and cosines of the first, then of the second, (B, size).

    No parameter of a network that reads them changes its shape, so weights that were trained on one time still load
    (the published pi0 port of context-smoothed pre-training, arXiv 2605.12236).
    """
    return torch.cat([time_features(first, size // 2), time_features(second, size // 2)], dim=-1)
