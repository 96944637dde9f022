"""How much better than the rest of its group a chunk is, by critics that may disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.ogpo.config import ChiSquaredConfig


def advantages(values: Tensor, kind: Literal["group", "conservative", "penultimate"]) -> Tensor:
    """Return the advantages (B, G) of G chunks for each of B states.

    Args:
        values: (M, B, G), each head's. `kind`: as in `OgpoConfig`; "penultimate" needs three heads.

    Raises:
        ValueError: fewer heads.
    """
    if kind == "group":
        return centred(values.mean(dim=0))
    if kind == "conservative":
        return agreed(centred(values), dissenters=0)
    return agreed(centred(values), dissenters=1)


def centred(values: Tensor) -> Tensor:
    """Return values (..., G) less the mean of their group."""
    return values - values.mean(dim=-1, keepdim=True)


def agreed(advantage: Tensor, *, dissenters: int) -> Tensor:
    """Return what the heads agree on, (B, G): the one closest to zero where all have one sign, and 0 elsewhere.

    Args:
        advantage: (M, B, G). `dissenters`: heads on that side of zero, or nearest to it, that are passed over.

    Raises:
        ValueError: so many that a minority would decide.
    """
    heads = len(advantage)
    if heads < 2 * dissenters + 1:
        raise ValueError(f"heads: {heads}, must be {2 * dissenters + 1} or more where {dissenters} may disagree")
    ordered = advantage.sort(dim=0).values
    least, most = ordered[dissenters], ordered[heads - 1 - dissenters]
    return least.clamp(min=0) + most.clamp(max=0)


def standardised(advantage: Tensor) -> Tensor:
    """Return advantages (B, G) divided by their group's deviation."""
    return advantage / (advantage.std(dim=-1, keepdim=True) + 1e-6)


def blended(values: Tensor, ratio: Tensor, config: ChiSquaredConfig) -> Tensor:
    """Return the heads' mean where the policy is where it was, and towards their smallest the further it went.

    Args:
        values: (M, ...). `ratio`: of the policy's likelihood to the slow one's, of the shape of one head's values.
    """
    doubt = torch.sigmoid(config.sharpness * (ratio - 1))
    return (1 - doubt) * values.mean(dim=0) + doubt * values.min(dim=0).values


def penalised(values: Tensor, ratio: Tensor, config: ChiSquaredConfig) -> tuple[Tensor, float]:
    """Return advantages (B, G) less the chi-squared penalty, and the penalty's coefficient beta.

    Args:
        values: (M, B, G). `ratio`: (B, G).
    """
    beta = config.coefficient * values.std(dim=0).mean()
    return centred(blended(values, ratio, config) - beta * ratio), beta.item()
