"""Train the embedded VLA on demonstrations: flow matching, checkpointed, resumable to the bit.

Every step draws its batch, augmentation and noise from (seed, step), so that a run that was killed and resumed gives
the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from finetune.bc.frames import Frames, load_frames
from finetune.bc.paths import DemonstratedPaths, PathNoise, draw_paths, usual_camera
from finetune.bc.run_folder import RunFolder, TrainState
from finetune.common.device import CPU
from models.policies.context_noise import ContextSchedule  # noqa: TC001  a run's settings are read by tools
from models.policies.contract import CameraSpec, VectorSpec
from models.policies.flow_vla.checkpoint import CheckpointConfig, InferenceDefaults, save_checkpoint
from models.policies.flow_vla.flow import flow_loss
from models.policies.flow_vla.network import FlowVLANetwork, NetworkConfig
from models.policies.flow_vla.tokenizer import HashTokenizer
from models.policies.normalizer import Normalizer
from robot_client.robots.metaworld import INTERFACE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from clients.contract import Vector


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train, and how.

    Attributes:
        data: folders of LeRobot v3 datasets; `out`: run folder; `cache`: folder of decoded frames, `out`/frames by
            default.
        steps, batch: optimiser steps and observations in each.
        flow_samples: pairs of noise and time for each observation; the images are encoded once for all of them.
        learning_rate: peak of a cosine with warm-up; `weight_decay`: AdamW's.
        ema: decay of the averaged weights, which are the ones that are kept.
        shift: largest random shift of the images, pixels; `brightness`: largest relative change; `state_noise`:
            standard deviation of the noise on the normalised state.
        context: schedule of the noise on what is seen and read, its level drawn for each observation (context-smoothed
            pre-training, arXiv 2605.12236); None trains without.
        path: how inexact the demonstrated paths are that are drawn on the images; None trains a policy without paths.
        checkpoint_every: steps between checkpoints.
        seed, threads: of PyTorch.
    """

    data: tuple[Path, ...]
    out: Path
    cache: Path | None = None
    model_id: str = "metaworld-flow"
    revision: str = "1"
    image_size: int = 64
    chunk_length: int = 16
    execute: int = 8
    integration_steps: int = 5
    steps: int = 6000
    batch: int = 64
    flow_samples: int = 4
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 1e-3
    ema: float = 0.999
    shift: int = 3
    brightness: float = 0.15
    state_noise: float = 0.02
    context: ContextSchedule | None = None
    path: PathNoise | None = None
    checkpoint_every: int = 500
    seed: int = 0
    threads: int = 1
    network: dict[str, Any] = field(default_factory=dict)


def train(
    config: TrainConfig, *, report: Callable[[int, float], None] | None = None, device: torch.device = CPU
) -> Path:
    """Train to the end, from the last checkpoint of the run folder if it has one.

    Args:
        report: told (step, smoothed loss) after every step. `device`: where the network computes.

    Returns:
        the checkpoint folder.

    Raises:
        ValueError: the run folder belongs to a run with another configuration.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    folder = RunFolder(config.out, _identity(config))
    frames = load_frames(config.data, config.image_size, config.cache or config.out / "frames")
    paths = None if config.path is None else DemonstratedPaths(frames, usual_camera())
    checkpoint = checkpoint_config(config, frames)
    network = FlowVLANetwork(checkpoint.network).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    state = TrainState.fresh(network, optimizer)
    folder.restore(state)
    words = torch.from_numpy(checkpoint.tokenizer(frames.instructions)).to(device)
    started = time.monotonic() - state.seconds
    while state.step < config.steps:
        loss = _step(config, frames, paths, checkpoint, words, state)
        state.advance(loss, ema=config.ema)
        state.seconds = time.monotonic() - started
        folder.log(state, learning_rate(config, state.step - 1))
        if report is not None:
            report(state.step, state.smooth_loss)
        if state.step % config.checkpoint_every == 0 or state.step == config.steps:
            folder.save(state)
    averaged = FlowVLANetwork(checkpoint.network)
    averaged.load_state_dict(state.average)
    save_checkpoint(config.out / "checkpoint", checkpoint, averaged, card=_short_card(config, state))
    folder.plot()
    return config.out / "checkpoint"


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to a fiftieth of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.learning_rate * min(1.0, step / max(1, config.warmup)) * (0.98 * cosine + 0.02)


def checkpoint_config(config: TrainConfig, frames: Frames) -> CheckpointConfig:
    """Return the checkpoint's configuration, with the statistics of these frames."""
    tokenizer = HashTokenizer()
    sizes = {"cameras": len(frames.cameras), "state_size": frames.state.shape[1], "action_size": frames.action.shape[1]}
    network = NetworkConfig(
        **sizes,
        image_size=config.image_size,
        chunk_length=config.chunk_length,
        word_buckets=tokenizer.buckets,
        words=tokenizer.length,
        context=config.context,
        **config.network,
    )
    side = config.image_size
    return CheckpointConfig(
        id=config.model_id,
        revision=config.revision,
        network=network,
        tokenizer=tokenizer,
        cameras=tuple(CameraSpec(name=name, height=side, width=side) for name in frames.cameras),
        state=_spec(INTERFACE.state),
        action=_spec(INTERFACE.action),
        state_normalizer=Normalizer.of(frames.state),
        action_normalizer=Normalizer.of(frames.action),
        control_hz=INTERFACE.control_hz,
        inference=InferenceDefaults(execute=config.execute, integration_steps=config.integration_steps),
        path=config.path is not None,
    )


def _spec(vector: Vector) -> VectorSpec:
    return VectorSpec(**asdict(vector))


def _step(
    config: TrainConfig,
    frames: Frames,
    paths: DemonstratedPaths | None,
    checkpoint: CheckpointConfig,
    words: torch.Tensor,
    state: TrainState,
) -> float:
    random = np.random.default_rng([config.seed, state.step])
    noise = torch.Generator().manual_seed(config.seed * 1_000_003 + state.step)
    chosen = random.integers(0, len(frames.state), config.batch)
    seen = torch.from_numpy(_seen(config, frames, paths, chosen, state.step)).to(words.device)
    images = augment(seen, random, shift=config.shift, brightness=config.brightness)
    body = torch.from_numpy(checkpoint.state_normalizer.normalize(frames.state[chosen])).to(words.device)
    body = body + config.state_noise * torch.randn(body.shape, generator=noise).to(body)
    chunk = checkpoint.action_normalizer.normalize(frames.chunks(chosen, config.chunk_length))
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step)
    told = words[frames.instruction[chosen]]
    if config.context is None:
        prefix = state.network.encode(images, body, told)
    else:
        level = torch.rand(config.batch, generator=noise).to(body)
        smoothing = torch.randn(config.batch, state.network.context_size, generator=noise).to(body)
        prefix = state.network.encode(images, body, told, level=level, context_noise=smoothing)
    wanted = torch.from_numpy(chunk).to(body)
    mask = wanted.new_ones(chunk.shape[:2])
    loss = flow_loss(state.network, prefix, wanted, mask, samples=config.flow_samples, generator=noise)
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    state.optimizer.step()
    return loss.item()


def _seen(
    config: TrainConfig, frames: Frames, paths: DemonstratedPaths | None, chosen: NDArray[np.int64], step: int
) -> NDArray[np.uint8]:
    images = frames.images[chosen]
    if paths is None or config.path is None:
        return images
    random = np.random.default_rng([config.seed, step, 1])
    return draw_paths(images, [config.path.applied(path, random) for path in paths.of(chosen)])


def augment(images: torch.Tensor, random: np.random.Generator, *, shift: int, brightness: float) -> torch.Tensor:
    """Shift each observation by whole pixels (edges repeat) and change its brightness.

    Args:
        images: uint8 (B, cameras, S, S, 3).

    Returns:
        float32 (B, cameras, 3, S, S) in [-1, 1].
    """
    batch, cameras, side = images.shape[:3]
    pixels = images.permute(0, 1, 4, 2, 3).flatten(1, 2).float()
    padded = functional.pad(pixels, (shift, shift, shift, shift), mode="replicate")
    tops, lefts = random.integers(0, 2 * shift + 1, (2, batch))
    moved = torch.stack(
        [
            padded[index, :, top : top + side, left : left + side]
            for index, (top, left) in enumerate(zip(tops, lefts, strict=True))
        ]
    )
    gain = torch.from_numpy(random.uniform(1 - brightness, 1 + brightness, (batch, 1, 1, 1))).to(moved)
    return ((moved * gain).clamp(0, 255) / 127.5 - 1.0).reshape(batch, cameras, 3, side, side)


def _identity(config: TrainConfig) -> dict[str, Any]:
    """Return what must be equal for a run to be resumed."""
    plain = json.loads(json.dumps(asdict(config), default=str))
    own = ("out", "cache", "threads", "checkpoint_every")
    return {name: value for name, value in plain.items() if name not in own}


def _short_card(config: TrainConfig, state: TrainState) -> str:
    return (
        f"# {config.model_id}\n\nTrained for {state.step} steps in {state.seconds / 60:.1f} minutes. "
        "Not evaluated yet: `python -m finetune.bc evaluate`, then `python -m finetune.bc card`.\n"
    )
