"""ReWiND's network learns from successes, played forwards, rewound, and shown under the wrong words.

Every step draws its clips from (seed, step), so a run that was killed and resumed gives the weights of one that was
not.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator

from finetune.common.run import Run, cosine_rate
from models.rewind.losses import rewind_loss
from models.rewind.sampling import ClipSampler, SamplerConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from finetune.rewards.data import RewardFrames
    from finetune.rewind.features import SeenFrames
    from models.rewind.encoders import TextEncoder
    from models.rewind.network import RewindNetwork
    from models.rewind.sampling import ClipPlan


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained, and how; the defaults are the embedded model's.

    The reference trains its 512-wide network at 1e-4 for 300 000 steps of 1024 clips; a small one on few episodes is
    done far sooner at a higher rate. The rest is the reference's: Adam, weight decay, a cosine to a tenth, clipping.

    Attributes:
        out: run folder; `steps`, `batch`: optimiser steps and clips in each, on each process; each is shown twice.
        sampler: how clips are drawn.
        learning_rate: peak of a cosine; `warmup`: share of all steps; `floor`: last rate as a share of the peak.
        seed, threads: of PyTorch.
    """

    out: Path
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(from_start=0.5))
    steps: int = 600
    batch: int = 64
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    warmup: float = 0.05
    floor: float = 0.1
    clip: float = 1.0
    checkpoint_every: int = 100
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a run learns from.

    Attributes:
        data: episodes, of which the successful ones are used; `seen`: their frames.
        text: reads instructions; `wordings`: task to the words that ask for it.
    """

    data: RewardFrames
    seen: SeenFrames
    text: TextEncoder
    wordings: Mapping[str, Sequence[str]] = field(default_factory=dict)


def train(
    config: TrainConfig,
    network: RewindNetwork,
    material: Material,
    *,
    report: Callable[[int, float], None] | None = None,
) -> None:
    """Train the network in place, from the last state of the run folder if it has one.

    Args:
        report: told (step, the step's loss).

    Raises:
        ValueError: the run folder holds a run with other settings, or the episodes do not do (see `ClipSampler`).
    """
    torch.set_num_threads(config.threads)
    accelerator = Accelerator()
    sampler = ClipSampler(episodes=material.data.episodes, config=config.sampler, wordings=material.wordings)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    identity = {name: value for name, value in asdict(config).items() if name not in ("out", "threads")}
    identity |= {"sizes": asdict(network.sizes)}
    run = Run(folder=config.out, identity=identity, claims=accelerator.is_main_process)
    run.restore(network, optimizer)
    model, optimizer = accelerator.prepare(network, optimizer)
    started = time.monotonic() - run.seconds
    model.train()
    while run.step < config.steps:
        random = np.random.default_rng([config.seed, run.step, accelerator.process_index])
        torch.manual_seed(config.seed * 1_000_003 + run.step)
        plans = sampler.draw(config.batch, random)
        text, frames = _batch(material, plans)
        loss = rewind_loss(model, text.to(accelerator.device), frames.to(accelerator.device), plans)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(
                config.learning_rate, run.step, config.steps, warmup=config.warmup, floor=config.floor
            )
        optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        run.step, run.seconds = run.step + 1, time.monotonic() - started
        if report is not None:
            report(run.step, float(loss.detach()))
        if accelerator.is_main_process:
            if run.step % 10 == 0:
                run.log(loss=float(loss.detach()))
            if run.step % config.checkpoint_every == 0 or run.step == config.steps:
                run.save(accelerator.unwrap_model(model), optimizer)
    network.eval()


def _batch(material: Material, plans: Sequence[ClipPlan]) -> tuple[Tensor, Tensor]:
    """Return (text vectors (B, text width), frame vectors (B, T, image width))."""
    rows = np.concatenate([material.data.rows(plan.episode, plan.frames) for plan in plans])
    frames = material.seen.vectors(rows).reshape(len(plans), -1, material.seen.width)
    return material.text.encode([plan.instruction for plan in plans]), frames
