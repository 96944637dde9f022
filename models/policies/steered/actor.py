"""The high-level actor: from an observation to distributions over what steers a frozen policy."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_SPREAD, _MIDDLE = 3.5, -1.5
"""Log standard deviations lie between -5 and 2."""


class ChoiceActor(nn.Module):
    """Independent tanh-Gaussians for the parts of a choice, on one trunk.

    Args:
        parts: sizes of the parts.
    """

    def __init__(self, states: int, parts: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (states, hidden, hidden, hidden):
            layers += [nn.Linear(width, hidden), nn.Mish()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(hidden, 2 * size) for size in parts)

    def forward(self, states: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return choices (B, U) in [-1, 1] and the log-probability of each part, (parts, B).

        Args:
            noise: (B, U), standard normal; None takes the middle of each distribution.
        """
        features = self.trunk(states)
        choices, scores, start = [], [], 0
        for head in self.heads:
            mean, raw = head(features).chunk(2, dim=-1)
            log_std = _SPREAD * raw.tanh() + _MIDDLE
            size = mean.shape[-1]
            drawn = torch.zeros_like(mean) if noise is None else noise[:, start : start + size]
            before = mean + log_std.exp() * drawn
            # log(1 - tanh(x)^2) in the form that does not lose its digits for large x
            bend = 2 * (math.log(2.0) - before - functional.softplus(-2 * before))
            scores.append((-0.5 * drawn**2 - log_std - 0.5 * math.log(2 * math.pi) - bend).sum(dim=-1))
            choices.append(before.tanh())
            start += size
        return torch.cat(choices, dim=-1), torch.stack(scores)
