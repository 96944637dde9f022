"""A run of OGPO on a task: the job, and the policy that comes of it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Literal

from finetune.common.chunk_policy import load_chunk_policy
from finetune.common.device import CPU
from finetune.common.environments.seeing import maker
from finetune.common.learning import LearningJob
from finetune.ogpo.agent import OgpoLearner
from models.policies.denoising import DiffusionSteps, FlowSteps

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from finetune.common.learning import JobConfig
    from finetune.ogpo.config import OgpoConfig


class OgpoJob(LearningJob):
    """A run of OGPO.

    Args:
        folder: the cloned policy's checkpoint. `task`: see `make_env`.
        steps: another chain than the checkpoint's. `execute`: rows to play of a chunk, if others than the checkpoint's.
        recompute, device: see `ChunkPolicy`; the numbers are the same, but for rounding.
    """

    def __init__(
        self,
        config: JobConfig,
        method: OgpoConfig,
        folder: Path,
        *,
        task: str,
        steps: FlowSteps | DiffusionSteps | None = None,
        execute: int | None = None,
        recompute: bool = False,
        device: torch.device = CPU,
    ) -> None:
        policy, network = load_chunk_policy(folder, steps, execute=execute, recompute=recompute, device=device)
        identity = {"method": "ogpo", "settings": asdict(method), "task": task, "policy": policy.content_hash}
        identity["denoising"] = asdict(policy.steps)
        self.ogpo = OgpoLearner(method, policy, network, seed=config.seed)
        super().__init__(config, self.ogpo, maker(task, policy.encoder), identity=identity)

    def export(self, folder: Path) -> None:
        """Write the averaged policy as a checkpoint that is served like the one it came from."""
        policy = self.ogpo.policy
        card = (
            f"# {policy.config.id}\n\nOGPO, {self.counts.steps} steps of the environment, "
            f"{self.ogpo.experience.updates} updates, seed {self.config.seed}, from the policy {policy.content_hash}.\n"
        )
        policy.save(folder, self.ogpo.average, card=card)


def denoising(
    folder: Path, *, noise: float | None, correction: Literal["matched", "reference"], last: int | None
) -> FlowSteps | DiffusionSteps:
    """Return a checkpoint's chain, with other noise or other scored steps."""
    steps = load_chunk_policy(folder)[0].steps
    if isinstance(steps, FlowSteps):
        return replace(steps, noise=noise or steps.noise, correction=correction, last=last)
    return replace(steps, last=last)
