"""What every update ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take a step of an optimiser down a loss."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def ema(average: torch.nn.Module, network: torch.nn.Module, rate: float) -> None:
    """Move averaged weights towards a network's by `rate`, in place."""
    averaged: list[Tensor] = list(average.parameters())
    current: list[Tensor] = list(network.parameters())
    with torch.no_grad():
        torch._foreach_lerp_(averaged, current, rate)
