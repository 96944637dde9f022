"""The policy's objective: whole chains of denoising, each with one ratio, clipped around an average of the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Clipped(NamedTuple):
    """The loss, a scalar, and the share of chains at which it is flat."""

    loss: Tensor
    clipped: Tensor


def clipped_loss(ratio: Tensor, advantage: Tensor, *, low: float, high: float) -> Clipped:
    """Return - mean min(ratio A, clip(ratio, low, high) A) (Schulman et al. 2017).

    Args:
        ratio, advantage: (B, G), of each chain's likelihood to that under the policy that drew it, and A.
    """
    free, bound = ratio * advantage, ratio.clamp(low, high) * advantage
    return Clipped(-torch.minimum(free, bound).mean(), (bound < free).float().mean())
