"""Behaviour cloning of a state policy, with its context smoothed or not.

Every step draws its batch, noise, times and levels from (seed, step).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from finetune.common.device import CPU
from finetune.common.run import Run, cosine_rate, pack, unpack
from finetune.common.updates import ema
from models.policies.context_noise import ContextSchedule
from models.policies.denoising import DiffusionSteps, FlowSteps
from models.policies.state_flow.checkpoint import StatePolicyConfig, normalizer, save_state_policy
from models.policies.state_flow.network import StateFlowConfig, StateFlowNetwork

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from finetune.common.demonstrations import Demonstrations
    from models.policies.denoising import Transitions


_LOG_EVERY, _WARM_UP = 50, 100


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What to train, and how.

    Attributes:
        out: run folder; the policy comes to be in its `checkpoint`.
        policy: id of the policy.
        context: columns of the state that are smoothed; None is plain behaviour cloning.
        schedule, conditioning: of the context's noise; see `StateFlowConfig`.
        denoising: the chain that the network is trained for; a flow's or a diffusion's.
        execute: rows to play of a chunk.
        steps, batch: optimiser steps, and windows in each.
        ema: decay of the averaged weights, which are kept.
    """

    out: Path
    policy: str = "state-policy"
    context: tuple[int, int] | None = None
    schedule: ContextSchedule = field(default_factory=ContextSchedule)
    conditioning: Literal["joint", "quarters"] = "joint"
    denoising: FlowSteps | DiffusionSteps = field(default_factory=FlowSteps)
    execute: int = 8
    steps: int = 8000
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    ema: float = 0.995
    width: int = 128
    blocks: int = 3
    checkpoint_every: int = 1000
    seed: int = 0


def smoothed_loss(
    network: StateFlowNetwork,
    transitions: Transitions,
    states: Tensor,
    chunks: Tensor,
    generator: torch.Generator,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean squared error of what the network says of noised chunks, a scalar.

    With a context, its level is uniform in [0, 1] and independent of the noise time (arXiv 2605.12236).

    Args:
        states: (B, S), normalised; `chunks`: (B, H, A).
        weights: (B,), of mean 1 over the data; None counts all alike.
    """
    lesson = transitions.lesson(chunks, generator=generator)
    size = network.config.context_size
    level = torch.rand(len(states), generator=generator).to(states) if size else None
    noise = torch.randn(len(states), size, generator=generator).to(states) if size else None
    said = network.velocity(network.encode(states, level=level, context_noise=noise), lesson.noisy, lesson.time)
    errors = (said - lesson.target).square()
    return errors.mean() if weights is None else (errors.mean(dim=(1, 2)) * weights).mean()


def pretrain(
    config: PretrainConfig,
    demonstrations: Demonstrations,
    report: Callable[[int, float], None] | None = None,
    *,
    device: torch.device = CPU,
) -> Path:
    """Train to the end, from where the run folder stands, and return the checkpoint folder.

    Args:
        report: told (step, loss) of every 50th step. `device`: where the network computes.

    Raises:
        ValueError: the run folder belongs to another run.
    """
    torch.manual_seed(config.seed)
    states, chunks = torch.from_numpy(demonstrations.states), torch.from_numpy(demonstrations.chunks)
    policy = _policy_config(config, states, chunks)
    normal, chunks = policy.normalize(states).to(device), chunks.to(device)
    network, average = StateFlowNetwork(policy.network).to(device), StateFlowNetwork(policy.network).to(device)
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    parts: dict[str, Any] = {
        "modules": {"network": network, "average": average},
        "optimizers": {"network": optimizer},
    }
    run = Run(folder=config.out, identity=_identity(config, len(states)), board=True)
    kept = run.read()
    if kept:
        unpack(kept, **parts)
    started = time.monotonic() - run.seconds
    for step in range(run.step, config.steps):
        rows = torch.from_numpy(np.random.default_rng([config.seed, step]).integers(0, len(states), config.batch))
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        rate = cosine_rate(config.learning_rate, step, config.steps, warmup=_WARM_UP / config.steps)
        optimizer.param_groups[0]["lr"] = rate
        loss = smoothed_loss(network, policy.denoising, normal[rows], chunks[rows], generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        ema(average, network, 1 - min(config.ema, (1 + step) / (10 + step)))
        run.step, run.seconds = step + 1, time.monotonic() - started
        if step % _LOG_EVERY == 0:
            run.log(loss=loss.item(), learning_rate=rate)
            if report is not None:
                report(step, loss.item())
        if (step + 1) % config.checkpoint_every == 0:
            run.write(pack(**parts, arrays={}))
    save_state_policy(config.out / "checkpoint", policy, average, card=_card(config, demonstrations))
    return config.out / "checkpoint"


def _policy_config(config: PretrainConfig, states: Tensor, chunks: Tensor) -> StatePolicyConfig:
    network = StateFlowConfig(
        state_size=states.shape[1],
        action_size=chunks.shape[2],
        chunk_length=chunks.shape[1],
        context=config.context,
        schedule=config.schedule,
        conditioning=config.conditioning,
        width=config.width,
        blocks=config.blocks,
    )
    return StatePolicyConfig(
        id=config.policy,
        network=network,
        state_normalizer=normalizer(states),
        execute=config.execute,
        denoising=config.denoising,
    )


def _identity(config: PretrainConfig, windows: int) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    kept = {name: value for name, value in facts.items() if name not in ("out", "checkpoint_every")}
    return {**kept, "windows": windows}


def _card(config: PretrainConfig, demonstrations: Demonstrations) -> str:
    smoothed = "not smoothed" if config.context is None else f"columns {config.context} of the state are smoothed"
    return (
        f"# {config.policy}\n\nBehaviour cloning of {len(demonstrations.states)} windows, {config.steps} steps, "
        f"seed {config.seed}; context: {smoothed}.\n"
    )
