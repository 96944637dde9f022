"""ReWiND's loss: progress where the words fit the clip, none where they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from models.rewind.sampling import ClipPlan

_MATCHED, _MISMATCHED = 2.0, 1.0
"""Weights of matched clips and of their mismatched twins (github.com/rewind-reward/ReWiND)."""


def rewind_loss(
    read: Callable[[Tensor, Tensor], Tensor], text: Tensor, frames: Tensor, plans: Sequence[ClipPlan]
) -> Tensor:
    """Return the loss of a batch, in which every clip is shown twice: under its own words and under another's.

    Clips are rolled against the words by the number of those of the target domain, or by one where all are; a clip
    that comes to words of its own task is left out of its group. The first frame teaches nothing. Groups (broad and
    target domain, matched and mismatched) are averaged by themselves; a domain weighs as its share of the batch.

    Args:
        read: the network: (2B, text width), (2B, T, image width) to values (2B, T).
        text: (B, text width); `frames`: (B, T, image width), both in the order of `plans`.
    """
    target = sum(not plan.broad for plan in plans)
    shift = target if target < len(plans) else 1
    values = read(torch.cat([text, text]), torch.cat([frames, frames.roll(shift, 0)]))
    goals = torch.stack([torch.from_numpy(plan.targets) for plan in plans]).to(values)
    errors = (values - torch.cat([goals, torch.zeros_like(goals)])).square()[:, 1:].mean(1)
    matched, mismatched = errors[: len(plans)], errors[len(plans) :]
    differs = torch.tensor([plan.text_task != plans[row - shift].task for row, plan in enumerate(plans)])
    total = values.new_zeros(())
    for broad in (True, False):
        own = torch.tensor([plan.broad == broad for plan in plans])
        part = _MATCHED * _mean(matched, own) + _MISMATCHED * _mean(mismatched, own & differs)
        total = total + own.float().mean() * part / (_MATCHED + _MISMATCHED)
    return total


def _mean(errors: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the chosen ones, 0 where there is none."""
    weights = chosen.to(errors)
    return (errors * weights).sum() / weights.sum().clamp(min=1.0)
