"""Stage two: the language model and the heads learn from pairs, the vision tower stays as it is.

Every step draws its pairs from (seed, step), so a run that was killed and resumed gives the weights of one that was
not.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator

from finetune.common.run import Run, cosine_rate, run_weights
from finetune.robometer.embedded import Sizes
from models.robometer.losses import Losses, PairTargets, pair_losses
from models.robometer.readout import VisionFeatures
from models.robometer.sampling import PairPlan, PairSampler, SamplerConfig
from models.robometer.targets import two_hot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from finetune.rewards.data import RewardFrames
    from models.robometer.network import RobometerNetwork
    from models.robometer.sequence import Sequencer

REFERENCE = SamplerConfig(from_start=0.5)
"""The reference's four strategies, equally likely, for episodes as they are found; half of the clips from the start."""
SIMULATED = SamplerConfig(
    strategies=("rewind", "suboptimal", "different_task", "different_task", "reverse"), successes=0.7, from_start=0.5
)
"""How pairs of simulated rollouts are drawn. A simulated scene gives its task away, so words are learned from clips of
other tasks alone, and these must be common."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained, and how; the defaults are the embedded model's.

    Attributes:
        out: run folder; `steps`, `batch`: optimiser steps and pairs in each, on each process.
        sampler: how pairs are drawn.
        start: run folder whose weights it starts from; None for fresh ones.
        preference: teach preference; without it, progress and success alone (the paper's comparison).
        learning_rate: peak of a cosine; `warmup`: share of all steps.
        seed, threads: of PyTorch.
    """

    out: Path
    sizes: Sizes = field(default_factory=Sizes)
    sampler: SamplerConfig = SIMULATED
    start: Path | None = None
    preference: bool = True
    steps: int = 2000
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 10.0
    checkpoint_every: int = 100
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a run learns from.

    Attributes:
        data: episodes; `features`: the frozen tower's features of every frame, (frames, layers, tokens, width).
        sequencer: renders what is asked.
    """

    data: RewardFrames
    features: Tensor
    sequencer: Sequencer


def train(
    config: TrainConfig,
    network: RobometerNetwork,
    material: Material,
    *,
    report: Callable[[int, Losses], None] | None = None,
) -> None:
    """Train all but the vision tower in place, from the last state of the run folder if it has one.

    Args:
        report: told (step, the step's losses).
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    accelerator = Accelerator()
    network.model.visual.requires_grad_(requires_grad=False)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    identity = {name: value for name, value in asdict(config).items() if name not in ("out", "threads")}
    run = Run(folder=config.out, identity=identity, claims=accelerator.is_main_process)
    if config.start is not None:
        network.load_state_dict(run_weights(config.start))
    run.restore(network, optimizer)
    model, optimizer = accelerator.prepare(network, optimizer)
    sampler = PairSampler(episodes=material.data.episodes, config=config.sampler)
    started = time.monotonic() - run.seconds
    model.train()
    while run.step < config.steps:
        random = np.random.default_rng([config.seed, run.step, accelerator.process_index])
        torch.manual_seed(config.seed * 1_000_003 + run.step)
        plans = [sampler.draw(random) for _ in range(config.batch)]
        losses = step_losses(model, material, plans, parity=config.sampler.parity)
        total = losses.total if config.preference else losses.progress + losses.success
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(config.learning_rate, run.step, config.steps, warmup=config.warmup)
        optimizer.zero_grad()
        accelerator.backward(total)
        accelerator.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        run.step, run.seconds = run.step + 1, time.monotonic() - started
        if report is not None:
            report(run.step, losses)
        if accelerator.is_main_process:
            _keep(run, config, losses, accelerator.unwrap_model(model), optimizer)
    network.eval()


def _keep(
    run: Run, config: TrainConfig, losses: Losses, network: RobometerNetwork, optimizer: torch.optim.Optimizer
) -> None:
    if run.step % 10 == 0:
        parts = {name: float(getattr(losses, name).detach()) for name in ("preference", "progress", "success")}
        run.log(**parts)
    if run.step % config.checkpoint_every == 0 or run.step == config.steps:
        run.save(network, optimizer)


def step_losses(model: RobometerNetwork, material: Material, plans: Sequence[PairPlan], *, parity: bool) -> Losses:
    """Return the losses of a batch of pairs: one forward teaches preference, progress and success."""
    grid = _grid(material.features.shape[2])
    frames: list[VisionFeatures] = []
    sequences = []
    for plan in plans:
        rows = np.concatenate([material.data.rows(clip.episode, clip.frames) for clip in (plan.first, plan.second)])
        frames += [VisionFeatures(layers=layers, grid=grid) for layers in material.features[rows].float()]
        half = [grid] * len(plan.first.frames)
        sequences.append(material.sequencer.preference(plan.instruction, half, half))
    count = 2 * len(plans[0].first.frames)
    readout = model(material.sequencer.batch(sequences, [[grid] * count] * len(plans)), frames)
    return plan_losses(plans, readout.progress, readout.success, readout.preference, parity=parity)


def plan_losses(
    plans: Sequence[PairPlan], progress: Tensor, success: Tensor, preference: Tensor, *, parity: bool
) -> Losses:
    """Return the losses of pairs whose tokens were read: progress and success count on the first clips alone.

    Args:
        progress: bin logits (2 T B, bins) at the frames of both clips of every pair; `success`: logits (2 T B,).
        preference: logits (B,).
    """
    pairs, count = len(plans), len(plans[0].first.frames)
    first = progress.reshape(pairs, 2 * count, -1)[:, :count]
    done = success.reshape(pairs, 2 * count)[:, :count]
    targets = _targets(plans, progress.shape[-1], progress.device)
    return pair_losses(first, done, preference, targets, parity=parity)


def _targets(plans: Sequence[PairPlan], bins: int, device: torch.device) -> PairTargets:
    clips = [plan.first for plan in plans]
    return PairTargets(
        first_is_better=torch.tensor([float(plan.first_is_better) for plan in plans], device=device),
        progress=torch.from_numpy(two_hot(np.stack([clip.progress for clip in clips]), bins)).to(device),
        progress_mask=torch.from_numpy(np.stack([clip.progress_mask for clip in clips])).to(device),
        success=torch.from_numpy(np.stack([clip.success for clip in clips])).to(device),
        success_mask=torch.from_numpy(np.stack([clip.success_mask for clip in clips])).to(device),
    )


def _grid(tokens: int) -> tuple[int, int]:
    side = round(tokens**0.5)
    return side, side
