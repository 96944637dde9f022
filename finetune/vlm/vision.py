"""Stage one of the embedded model: its vision tower learns to see where things are.

There is no trained tower of this size, and words teach one slowly. So it learns by regression first: with a small
network on top that is told the task, to foretell where the gripper is and will go, when it opens, and how near the goal
is. The small network is then dropped.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.common.run import Run, cosine_rate, run_weights
from finetune.vlm.augment import Jitter
from finetune.vlm.embedded import Sizes
from finetune.vlm.lessons import changed
from finetune.vlm.material import NOWHERE
from models.robometer.images import patchify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from finetune.vlm.material import Frames

_POINTS = 6
"""Of the way, at equal shares of its length."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """How the vision tower is taught.

    Attributes:
        out: run folder; `steps`, `batch`: optimiser steps and frames in each; `learning_rate`: peak of a cosine.
        jitter: how frames are changed.
        read: what the small network on top reads: the tokens at their places ("places"), which a tower learns by
            quickest; or their mean ("mean"), for which every token must come to hold what is true of the whole picture,
            as a young language model, whose attention is nearly even, needs it.
        start: run folder whose tower it starts from; None for a fresh one.
        seed, threads: of PyTorch.
    """

    out: Path
    sizes: Sizes = field(default_factory=Sizes)
    jitter: Jitter = field(default_factory=Jitter)
    read: Literal["places", "mean"] = "places"
    start: Path | None = None
    steps: int = 600
    batch: int = 64
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warmup: float = 0.05
    checkpoint_every: int = 100
    seed: int = 0
    threads: int = 1


class SceneReader(nn.Module):
    """The vision tower, and a small network that reads the way ahead off all that it gives.

    Args:
        visual: the tower that is trained, with its deepstack outputs; `sizes`: its sizes; `tasks`: number of tasks.
        read: see `VisionConfig`.
    """

    def __init__(
        self, visual: nn.Module, sizes: Sizes, tasks: int, *, read: Literal["places", "mean"] = "places"
    ) -> None:
        super().__init__()
        self.visual: Any = visual
        self._mean = read == "mean"
        tokens = 1 if self._mean else (sizes.image // sizes.patch // 2) ** 2
        inputs = tokens * sizes.width * (1 + len(sizes.deepstack))
        self.squeeze = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, 192))
        self.task = nn.Embedding(tasks, 192)
        self.read = nn.Sequential(nn.GELU(), nn.Linear(192, 192), nn.GELU(), nn.Linear(192, 3 * _POINTS + 1))
        self.name = nn.Linear(192, tasks)
        self._grid = sizes.image // sizes.patch

    def forward(self, patches: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Read frames.

        Returns:
            (B, 3 x points + 1): x, y and logit of an open gripper at each point of the way, then progress; and task
            logits (B, tasks), from the image alone.
        """
        count = len(tasks)
        seen = self.visual(patches, grid_thw=torch.tensor([[1, self._grid, self._grid]] * count))
        layers = [layer.reshape(count, -1, layer.shape[-1]) for layer in (seen.pooler_output, *seen.deepstack_features)]
        layers = [layer.mean(1) if self._mean else layer.flatten(1) for layer in layers]
        hidden = self.squeeze(torch.cat(layers, dim=1))
        return self.read(hidden + self.task(tasks)), self.name(functional.gelu(hidden))


def tower_of(run: Path) -> dict[str, Tensor]:
    """Return the weights of the tower that a run trained.

    Raises:
        FileNotFoundError: it saved none.
    """
    weights = run_weights(run)
    return {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}


def train_vision(
    config: VisionConfig, visual: nn.Module, frames: Frames, *, report: Callable[[int, float], None] | None = None
) -> None:
    """Train a tower in place, from the last state of the run folder if it has one.

    Args:
        report: told (step, smoothed mean distance of a foretold point from the true one).
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    tasks = frames.tasks
    if config.start is not None:
        visual.load_state_dict(tower_of(config.start))
    reader = SceneReader(visual, config.sizes, len(tasks), read=config.read)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    identity = {name: value for name, value in asdict(config).items() if name not in ("out", "threads")}
    run = Run(folder=config.out, identity=identity | {"frames": len(frames)})
    run.restore(reader, optimizer)
    started, smooth = time.monotonic() - run.seconds, 0.5
    while run.step < config.steps:
        random = np.random.default_rng([config.seed, run.step])
        seen = _drawn(frames, config, random)
        loss, error = _losses(reader, seen)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(config.learning_rate, run.step, config.steps, warmup=config.warmup)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        run.step, run.seconds = run.step + 1, time.monotonic() - started
        smooth = 0.95 * smooth + 0.05 * error
        if report is not None:
            report(run.step, smooth)
        if run.step % 20 == 0:
            run.log(error=smooth, loss=loss.item())
        if run.step % config.checkpoint_every == 0 or run.step == config.steps:
            run.save(reader, optimizer)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A batch: patches, tasks (B,), points (B, points, 2), opens (B, points), progress (B,), whether there is a way."""

    patches: Tensor
    tasks: Tensor
    points: Tensor
    opens: Tensor
    progress: Tensor
    ahead: Tensor


def _drawn(frames: Frames, config: VisionConfig, random: np.random.Generator) -> _Seen:
    places = {task: number for number, task in enumerate(frames.tasks)}
    images, points, opens = [], np.zeros((config.batch, _POINTS, 2)), np.zeros((config.batch, _POINTS))
    rows = random.integers(len(frames), size=config.batch)
    chosen = [frames.infos[int(row)] for row in rows]
    for place, (row, info) in enumerate(zip(rows, chosen, strict=True)):
        way = info.path or NOWHERE
        image, way = changed(frames.image(int(row)), way, random, config.jitter)
        images.append(image)
        sampled = way.resampled(_POINTS)
        points[place], opens[place] = sampled.points, sampled.gripper_open
    return _Seen(
        patches=patchify(images, patch=config.sizes.patch, merge=2, temporal=2),
        tasks=torch.tensor([places[info.task] for info in chosen]),
        points=torch.from_numpy(points).float(),
        opens=torch.from_numpy(opens).float(),
        progress=torch.tensor([info.progress for info in chosen]).float(),
        ahead=torch.tensor([info.path is not None for info in chosen]),
    )


def _losses(reader: SceneReader, seen: _Seen) -> tuple[Tensor, float]:
    """Return the loss, and the mean distance of foretold points in shares of the image's side."""
    read, named = reader(seen.patches, seen.tasks)
    ways = read[:, :-1].reshape(len(read), _POINTS, 3)[seen.ahead]
    points, opens = ways[..., :2] * 0.25 + 0.5, ways[..., 2]
    wanted = seen.points[seen.ahead]
    loss = 4 * functional.smooth_l1_loss(points * 4, wanted * 4, beta=0.1)
    loss = loss + 0.2 * functional.binary_cross_entropy_with_logits(opens, seen.opens[seen.ahead])
    loss = loss + 2 * functional.smooth_l1_loss(read[:, -1], seen.progress, beta=0.1)
    loss = loss + 0.05 * functional.cross_entropy(named, seen.tasks)
    return loss, float((points - wanted).norm(dim=-1).mean().detach())
