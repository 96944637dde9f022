"""Robometer's loss: preference + progress of the first clip + success of the first clip, each with weight one.

Two quirks of the reference (trainers/rbm_heads_trainer.py) are off unless `parity` is set: the progress loss is divided
by the number of frames once more than a mean is, and padded frames count. A third, class weights of the success loss
that are multiplied in and divided out again, has no effect on the value and so is not there at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_LOGIT_LIMIT = 50.0


@dataclass(frozen=True, kw_only=True)
class PairTargets:
    """Targets of B pairs, T frames a clip; frames are those of the first clip.

    Attributes:
        first_is_better: float (B,), 1 or 0.
        progress: two-hot (B, T, bins); `progress_mask`: (B, T), 0 where progress is not taught.
        success: (B, T), 1 or 0; `success_mask`: (B, T), 0 where success is not taught.
    """

    first_is_better: Tensor
    progress: Tensor
    progress_mask: Tensor
    success: Tensor
    success_mask: Tensor


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The three parts; `total` is what is minimised."""

    preference: Tensor
    progress: Tensor
    success: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return self.preference + self.progress + self.success


def pair_losses(
    progress: Tensor, success: Tensor, preference: Tensor, targets: PairTargets, *, parity: bool = False
) -> Losses:
    """Return the losses of a batch of pairs.

    Args:
        progress: bin logits of the first clips (B, T, bins).
        success: logits of the first clips (B, T).
        preference: logits (B,).
        parity: reproduce the reference's division by T (see the module).
    """
    logits = preference.float().clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)
    cross_entropy = -(targets.progress * progress.float().log_softmax(-1)).sum(-1)
    progress_loss = _mean(cross_entropy, targets.progress_mask)
    if parity:
        progress_loss = progress_loss / progress.shape[1]
    per_frame = functional.binary_cross_entropy_with_logits(
        success.float().clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT), targets.success, reduction="none"
    )
    return Losses(
        preference=functional.binary_cross_entropy_with_logits(logits, targets.first_is_better),
        progress=progress_loss,
        success=_mean(per_frame, targets.success_mask),
    )


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean where the mask is 1; 0, with a gradient of 0, where it is 1 nowhere."""
    return (values * mask).sum() / torch.clamp(mask.sum(), min=1.0)
