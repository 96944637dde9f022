"""Backpropagation through the chain: the policy climbs the critics' gradient, through every step of its flow.

The learner is OGPO's with another policy loss, so that a comparison tells of nothing else:
- mean_m Q'_m(s, flow(z, s)), z ~ N(0, I), without noise on the way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from finetune.ogpo.agent import OgpoLearner

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.common.experience import Batch
    from finetune.ogpo.config import OgpoConfig


def bptt(config: OgpoConfig) -> OgpoConfig:
    """Return settings without what belongs to OGPO: its success buffer."""
    return replace(config, cloning=0.0, advantage="group", chi_squared=None)


class BpttLearner(OgpoLearner):
    """See the module; it takes `bptt`'s settings and a flow."""

    def policy_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return what is to be minimised."""
        noise = torch.randn(len(batch.states), *self.policy.chunk, generator=generator).to(batch.states)
        chunks = self.policy.decode(self.network, batch.states, noise)
        loss = -self.values(self.target, batch.states, chunks).mean()
        return loss, {"policy_loss": loss.item()}
