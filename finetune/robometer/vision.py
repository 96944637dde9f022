"""Stage one of the embedded model: a vision tower that sees what the simulator knows.

Robometer's recipe keeps a pre-trained vision tower frozen. There is none of this size, so one is taught to read the
simulator's state (where hand, objects and goal are, and which task's scene it is) off single frames. Features of a
frozen tower are computed once, which makes stage two cheap.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.common.run import Run, cosine_rate
from finetune.robometer.embedded import Sizes
from models.robometer.images import patchify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from finetune.rewards.data import RewardFrames
    from models.robometer.network import RobometerNetwork


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """How the vision tower is taught.

    Attributes:
        out: run folder; `steps`, `batch`: optimiser steps and frames in each; `learning_rate`: peak of a cosine.
        shift: largest random shift, pixels; `brightness`: largest relative change.
        seed, threads: of PyTorch.
    """

    out: Path
    sizes: Sizes = field(default_factory=Sizes)
    steps: int = 4000
    batch: int = 96
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup: float = 0.05
    shift: int = 3
    brightness: float = 0.15
    checkpoint_every: int = 250
    seed: int = 0
    threads: int = 1


class StateReader(nn.Module):
    """The vision tower, and a small network that reads state and scene off all that it gives.

    Args:
        network: its vision tower is what is trained.
        state: size of the state; `scenes`: number of tasks.
    """

    def __init__(self, network: RobometerNetwork, sizes: Sizes, state: int, scenes: int) -> None:
        super().__init__()
        self.visual = network.model.visual
        tokens = (sizes.image // sizes.patch // 2) ** 2
        inputs = tokens * sizes.width * (1 + len(sizes.deepstack))
        self.read = nn.Sequential(
            nn.LayerNorm(inputs), nn.Linear(inputs, 256), nn.GELU(), nn.Linear(256, state + scenes)
        )
        self._grid, self._state = sizes.image // sizes.patch, state

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return (state (B, state), scene logits (B, scenes)) of patches (B x patches of a frame, ...)."""
        count = len(patches) // self._grid**2
        seen = self.visual(patches, grid_thw=torch.tensor([[1, self._grid, self._grid]] * count))
        layers = [layer.reshape(count, -1) for layer in (seen.pooler_output, *seen.deepstack_features)]
        read = self.read(torch.cat(layers, dim=1))
        return read[:, : self._state], read[:, self._state :]


def train_vision(
    config: VisionConfig, network: RobometerNetwork, data: RewardFrames, *, report: Callable[[int, float], None]
) -> None:
    """Train the network's vision tower in place, from the last state of the run folder if it has one.

    Args:
        report: told (step, smoothed loss).
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    rows, states, scenes = _frames_of(data)
    reader = StateReader(network, config.sizes, states.shape[1], int(scenes.max()) + 1)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    identity = {name: value for name, value in asdict(config).items() if name not in ("out", "threads")}
    run = Run(folder=config.out, identity=identity)
    run.restore(reader, optimizer)
    started, smooth = time.monotonic() - run.seconds, float("nan")
    while run.step < config.steps:
        random = np.random.default_rng([config.seed, run.step])
        chosen = random.integers(0, len(rows), config.batch)
        images = _augmented(data.frames.images[rows[chosen], 0], random, config)
        patches = patchify(list(images), patch=config.sizes.patch, merge=2, temporal=2)
        state, scene = reader(patches)
        loss = functional.smooth_l1_loss(state, torch.from_numpy(states[chosen]), beta=0.1)
        loss = loss + 0.05 * functional.cross_entropy(scene, torch.from_numpy(scenes[chosen]))
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(config.learning_rate, run.step, config.steps, warmup=config.warmup)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        run.step, run.seconds = run.step + 1, time.monotonic() - started
        smooth = loss.item() if smooth != smooth else 0.98 * smooth + 0.02 * loss.item()  # noqa: PLR0124  NaN at first
        report(run.step, smooth)
        if run.step % 20 == 0:
            run.log(loss=smooth)
        if run.step % config.checkpoint_every == 0 or run.step == config.steps:
            run.save(reader, optimizer)


def _frames_of(data: RewardFrames) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Return (rows, standardised states, scene numbers) of all frames of the episodes."""
    tasks = sorted({episode.task for episode in data.episodes})
    rows = [np.arange(start, start + info.length) for start, info in zip(data.starts, data.episodes, strict=True)]
    scenes = [np.full(info.length, tasks.index(info.task)) for info in data.episodes]
    chosen = np.concatenate(rows)
    states = data.frames.state[chosen]
    states = (states - states.mean(axis=0)) / (states.std(axis=0) + 1e-3)
    return chosen, states.astype(np.float32), np.concatenate(scenes).astype(np.int64)


def _augmented(images: NDArray[np.uint8], random: np.random.Generator, config: VisionConfig) -> NDArray[np.uint8]:
    """Shift frames by whole pixels (edges repeat) and change their brightness; uint8 (B, S, S, 3)."""
    side, shift = images.shape[1], config.shift
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    places = random.integers(0, 2 * shift + 1, (len(images), 2))
    moved = np.stack(
        [padded[row, top : top + side, left : left + side] for row, (top, left) in enumerate(places.tolist())]
    )
    gain = random.uniform(1 - config.brightness, 1 + config.brightness, (len(images), 1, 1, 1))
    return np.clip(moved * gain, 0, 255).astype(np.uint8)


@torch.inference_mode()
def all_features(network: RobometerNetwork, data: RewardFrames, sizes: Sizes, path: Path, *, batch: int = 64) -> Tensor:
    """Return the frozen tower's features of every frame, kept at `path`.

    Returns:
        float16 (frames, 1 + deepstack layers, tokens, width), memory-mapped.
    """
    images = data.frames.images
    tokens = (sizes.image // sizes.patch // 2) ** 2
    shape = (len(images), 1 + len(sizes.deepstack), tokens, sizes.width)
    if not path.is_file():
        part = path.with_suffix(".new")
        kept = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)  # type: ignore[no-untyped-call]
        grid = (sizes.image // sizes.patch,) * 2
        network.eval()
        for start in range(0, len(images), batch):
            frames = list(images[start : start + batch, 0])
            patches = patchify(frames, patch=sizes.patch, merge=2, temporal=2)
            for offset, seen in enumerate(network.see(patches, (grid[0], grid[1]), len(frames))):
                kept[start + offset] = seen.layers.numpy()
        kept.flush()
        part.replace(path)
    return torch.from_numpy(np.load(path, mmap_mode="r+", allow_pickle=False))
