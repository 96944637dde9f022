"""Best-of-N distillation: the policy clones what was played, and what is played is the best of N of its draws.

As Q-chunking has it (arXiv 2507.07969): the critics' target, too, is of the best of N. The learner is OGPO's with
another policy loss. It acts with the best of N, so that is what it is judged by; `single_` is a plain draw.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from finetune.ogpo.agent import OgpoLearner

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from finetune.common.chunk_policy import ChunkPolicy
    from finetune.common.experience import Batch
    from finetune.common.learner import Mode
    from finetune.ogpo.config import OgpoConfig
    from models.policies.chunk_field import ChunkField


def distillation(config: OgpoConfig, *, best_of: int = 8) -> OgpoConfig:
    """Return settings with the best of N where chunks are played and in the critics' target."""
    return replace(config, best_of=best_of, target_best_of=best_of, cloning=0.0, advantage="group", chi_squared=None)


class DistillationLearner(OgpoLearner):
    """See the module; it takes `distillation`'s settings."""

    def __init__(self, config: OgpoConfig, policy: ChunkPolicy, network: ChunkField, *, seed: int) -> None:
        super().__init__(config, policy, network, seed=seed)
        self.judged: Mapping[str, Mode] = {"": "collect", "single_": "draw"}

    def policy_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of cloning what was played."""
        loss = self.policy.cloning_loss(self.network, batch.states, batch.chunks, batch.played, generator)
        return loss, {"policy_loss": loss.item()}
