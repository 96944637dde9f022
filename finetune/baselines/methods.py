"""The baselines by name, each with settings for toys and two cores."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from finetune.baselines.bptt import BpttLearner, bptt
from finetune.baselines.distillation import DistillationLearner, distillation
from finetune.baselines.dppo import DppoConfig, DppoLearner
from finetune.baselines.residual import ResidualConfig, ResidualLearner
from finetune.baselines.rlpd import RlpdConfig, RlpdLearner
from finetune.common.chunk_policy import load_chunk_policy
from finetune.common.device import CPU
from finetune.common.environments.seeing import maker
from finetune.common.learning import LearningJob
from finetune.ogpo.config import small

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from finetune.common.chunk_policy import ChunkPolicy
    from finetune.common.experience import ExperienceConfig
    from finetune.common.learner import Learner
    from finetune.common.learning import JobConfig
    from models.policies.chunk_field import ChunkField

Name = Literal["dppo", "bptt", "residual", "distillation", "rlpd"]


def baseline_job(
    config: JobConfig,
    name: Name,
    folder: Path,
    *,
    task: str,
    updates: float | None = None,
    execute: int | None = None,
    device: torch.device = CPU,
) -> LearningJob:
    """Return the job of a baseline.

    Args:
        folder: the cloned policy's checkpoint. `task`: see `make_env`.
        updates: for each step (UTD), in the place of the settings'; DPPO has none.
        execute: rows to play of a chunk, if others than the checkpoint's. `device`: where networks compute.

    Raises:
        ValueError: the folder of the run belongs to another.
    """
    policy, network = load_chunk_policy(folder, execute=execute, device=device)
    learner, settings = _learner(name, policy, network, task, config.seed, updates)
    identity = {"method": name, "settings": asdict(settings), "task": task, "policy": policy.content_hash}
    return LearningJob(config, learner, maker(task, policy.encoder), identity=identity)


def _learner(
    name: Name, policy: ChunkPolicy, network: ChunkField, task: str, seed: int, updates: float | None
) -> tuple[Learner, Any]:
    ogpo = small()
    ogpo = replace(ogpo, experience=_paced(ogpo.experience, updates))
    if name == "bptt":
        settings = bptt(ogpo)
        return BpttLearner(settings, policy, network, seed=seed), settings
    if name == "distillation":
        settings = distillation(ogpo)
        return DistillationLearner(settings, policy, network, seed=seed), settings
    if name == "residual":
        residual = ResidualConfig(experience=replace(ogpo.experience, batch=128))
        return ResidualLearner(residual, policy, network, seed=seed), residual
    if name == "rlpd":
        rlpd = RlpdConfig(experience=replace(ogpo.experience, batch=128, updates=updates or 1.0))
        env = maker(task, policy.encoder)()
        return RlpdLearner(rlpd, policy.config, env, seed=seed, device=policy.device), rlpd
    dppo = DppoConfig()
    return DppoLearner(dppo, policy, network, seed=seed), dppo


def _paced(experience: ExperienceConfig, updates: float | None) -> ExperienceConfig:
    return experience if updates is None else replace(experience, updates=updates)
