"""Finetune a Robometer checkpoint on one's own datasets: a LoRA adapter, or the weights themselves.

What is taught is the recipe's: pairs by four strategies, two-hot progress, success and preference in one forward. Every
step draws its pairs and its dropout from (seed, step, process), so a run that was killed and resumed gives the weights
of one that was not. Frozen vision towers see each step's frames anew: features of whole datasets would not fit.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from clients.errors import RoboserveError
from finetune.common.run import Run, cosine_rate
from finetune.robometer.artefacts import Outcome, write_adapter, write_full, write_report
from finetune.robometer.sources import DataSource, load_clips
from finetune.robometer.train import REFERENCE, plan_losses
from finetune.robometer.trainable import (
    LoraSettings,
    Mode,
    Trainable,
    Vision,
    make_full,
    make_lora,
    recompute_activations,
    same_sizes,
)
from finetune.robometer.whole_state import gather, gather_weights, spread
from models.folders import checkpoint_folder
from models.robometer.checkpoint import load_checkpoint
from models.robometer.readout import to_dtype
from models.robometer.sampling import PairSampler, SamplerConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from finetune.robometer.sources import Clips
    from models.robometer.checkpoint import RobometerCheckpoint
    from models.robometer.losses import Losses
    from models.robometer.sampling import PairPlan
    from models.robometer.sequence import Sequencer

_PATIENCE = timedelta(hours=6)
"""How long processes wait for the one that decodes the datasets."""
_PARTS = ("preference", "progress", "success")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What is trained on what; numbers are the reference's for finetuning.

    Attributes:
        base: checkpoint folder, or "zoo:NAME"; `data`: at least one dataset.
        out: run folder, on storage that all processes share; the result is its folder `checkpoint`.
        cache: folder of decoded frames; None for `frames` in `out`.
        model_id, revision: of what comes out; no id stands for the base's with the run folder's name.
        mode: "lora" for an adapter, "full" for weights; `lora`: of an adapter.
        vision: of a full run: "frozen", "last" (three layers) or "all", at `vision_learning_rate`.
        sampler: how pairs are drawn.
        steps, batch: optimiser steps, and pairs in each on each process; `forward_pairs`: most pairs of one forward,
            more are run in turns; None for all at once.
        learning_rate: peak of a cosine; `warmup`: share of all steps; `clip`: largest norm of the gradient.
        recompute: keep no activations.
        checkpoint_every, log_every: steps.
        threads: of PyTorch on each process; None as it comes.

    Raises:
        RoboserveError: `invalid_request` naming the field.
    """

    base: str
    data: tuple[DataSource, ...]
    out: Path
    cache: Path | None = None
    model_id: str | None = None
    revision: str = "1"
    mode: Mode = "lora"
    lora: LoraSettings = field(default_factory=LoraSettings)
    vision: Vision = "frozen"
    sampler: SamplerConfig = REFERENCE
    steps: int = 1000
    batch: int = 8
    forward_pairs: int | None = None
    learning_rate: float = 2e-5
    vision_learning_rate: float = 1e-5
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 10.0
    recompute: bool = False
    checkpoint_every: int = 100
    log_every: int = 10
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.data:
            raise _invalid("data: none given, at least one dataset")
        for name in ("steps", "batch", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise _invalid(f"{name}: {getattr(self, name)}, at least 1")
        if self.forward_pairs is not None and self.forward_pairs < 1:
            raise _invalid(f"forward_pairs: {self.forward_pairs}, at least 1")
        if self.mode == "lora" and self.vision != "frozen":
            raise _invalid(f"vision: {self.vision!r} needs mode 'full'; an adapter leaves the vision tower as it is")

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the run what it is: all but where things lie and how often they are written."""
        places = ("base", "data", "out", "cache", "threads", "checkpoint_every", "log_every", "model_id", "revision")
        return {name: value for name, value in asdict(self).items() if name not in places}


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told how far it is: `decoding` (episodes done, in all), `step` (step, its losses by part)."""

    decoding: Callable[[int, int], None] = lambda _done, _total: None
    step: Callable[[int, dict[str, float]], None] = lambda _step, _losses: None


def finetune(config: FinetuneConfig, watch: Watch | None = None) -> Path:
    """Train, from the last state of the run folder if it has one, and write what came out.

    Returns:
        the folder of the adapter, or of the checkpoint; on every process.

    Raises:
        FileNotFoundError, ValueError: the base cannot be loaded or used, or the run folder holds another run.
        RoboserveError: see `sources.load_clips`.
    """
    watch = watch or Watch()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])
    base = load_checkpoint(checkpoint_folder(config.base))
    _require_fit(base, config)
    vision: Any = base.network.config.vision_config
    with accelerator.local_main_process_first():
        clips = load_clips(
            config.data,
            config.cache or config.out / "frames",
            size=base.settings.image_size,
            unit=vision.patch_size * vision.spatial_merge_size,
            progress=watch.decoding if accelerator.is_local_main_process else None,
        )
    stored = next(base.network.parameters()).dtype
    trainable = _made_ready(base, config)
    loop = _Loop(config=config, accelerator=accelerator, clips=clips, sequencer=base.sequencer, vision=vision)
    weights = loop.run(trainable, base, watch)
    folder = config.out / "checkpoint"
    if accelerator.is_main_process:
        outcome = Outcome(config=config, base=base, clips=clips, processes=accelerator.num_processes, dtype=stored)
        if config.mode == "lora":
            write_adapter(folder, outcome, trainable.lora, weights)
        else:
            write_full(folder, outcome, weights)
        write_report(folder, outcome)
    accelerator.wait_for_everyone()
    return folder


def _require_fit(base: RobometerCheckpoint, config: FinetuneConfig) -> None:
    if not base.settings.prompt.compares:
        raise ValueError(f"base: the prompt of {base.settings.id} asks for progress only, pairs need one that compares")
    if config.sampler.frames > base.settings.max_frames:
        raise _invalid(f"frames: {config.sampler.frames}, {base.settings.id} shows {base.settings.max_frames} at most")


def _made_ready(base: RobometerCheckpoint, config: FinetuneConfig) -> Trainable:
    torch.manual_seed(config.seed)
    to_dtype(base.network, torch.float32)  # mixed precision, where it is asked for, is accelerate's
    if config.recompute:
        recompute_activations(base.network)
    if config.mode == "lora":
        return make_lora(base.network, config.lora, learning_rate=config.learning_rate)
    return make_full(
        base.network,
        config.vision,
        learning_rate=config.learning_rate,
        vision_learning_rate=config.vision_learning_rate,
    )


@dataclass(frozen=True, kw_only=True)
class _Loop:
    """The steps of a run on one process."""

    config: FinetuneConfig
    accelerator: Accelerator
    clips: Clips
    sequencer: Sequencer
    vision: Any

    def run(self, trainable: Trainable, base: RobometerCheckpoint, watch: Watch) -> dict[str, Tensor]:
        """Train; returns the trained weights by name on the main process."""
        config, accelerator = self.config, self.accelerator
        optimizer = torch.optim.AdamW(trainable.groups, lr=config.learning_rate, weight_decay=config.weight_decay)
        peaks = [group["lr"] for group in optimizer.param_groups]
        sampler = PairSampler(episodes=self.clips.episodes, config=config.sampler)
        identity = config.identity | {
            "base": base.content_hash,
            "data": [asdict(part.source) | {"folder": part.digest} for part in self.clips.summaries],
            "processes": accelerator.num_processes,
        }
        model, optimizer = accelerator.prepare(trainable.reader, optimizer)
        with accelerator.main_process_first():
            run = Run(folder=config.out, identity=identity, board=True, claims=accelerator.is_main_process)
            kept = run.read()
        if kept:
            spread(model, optimizer.optimizer, kept)
        started = time.monotonic() - run.seconds
        model.train()
        while run.step < config.steps:
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = cosine_rate(peak, run.step, config.steps, warmup=config.warmup)
            random = np.random.default_rng([config.seed, run.step, accelerator.process_index])
            torch.manual_seed(int(random.integers(2**62)))
            losses = self._step(model, optimizer, [sampler.draw(random) for _ in range(config.batch)])
            run.step, run.seconds = run.step + 1, time.monotonic() - started
            self._keep(run, model, optimizer, losses)
            if accelerator.is_main_process:
                watch.step(run.step, dict(zip(_PARTS, losses.tolist(), strict=True)))
        return gather_weights(model)

    def _step(self, model: Any, optimizer: Any, plans: Sequence[PairPlan]) -> Tensor:
        """Take an optimiser step; returns this process's losses, (3,), preference, progress and success."""
        optimizer.zero_grad()
        total = torch.zeros(len(_PARTS), device=self.accelerator.device)
        parts = list(_turns(plans, self.config.forward_pairs))
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                losses, share = self._losses(model, part), len(part) / len(plans)
                self.accelerator.backward(losses.total * share)
            total += share * torch.stack([getattr(losses, name).detach() for name in _PARTS])
        if not math.isfinite(float(total.sum())):
            raise FloatingPointError(f"loss: {total.tolist()} is not finite; a lower learning rate may help")
        self.accelerator.clip_grad_norm_(model.parameters(), self.config.clip)
        optimizer.step()
        return total

    def _losses(self, model: Any, plans: Sequence[PairPlan]) -> Losses:
        frames, sequences, grids = [], [], []
        unit = self.vision.patch_size * self.vision.spatial_merge_size
        for plan in plans:
            halves = [self.clips.frames(clip) for clip in (plan.first, plan.second)]
            first, second = ([(frame.shape[0] // unit, frame.shape[1] // unit) for frame in half] for half in halves)
            sequences.append(self.sequencer.preference(plan.instruction, first, second))
            grids.append(first + second)
            frames += halves[0] + halves[1]
        device = self.accelerator.device
        batch = self.sequencer.batch(sequences, grids).to(device)
        progress, success, preference = model(batch, same_sizes(frames, self.vision, device))
        return plan_losses(plans, progress, success, preference, parity=self.config.sampler.parity)

    def _keep(self, run: Run, model: Any, optimizer: Any, losses: Tensor) -> None:
        accelerator, last = self.accelerator, run.step == self.config.steps
        if last or run.step % self.config.log_every == 0:
            mean = accelerator.reduce(losses, reduction="mean").tolist()
            if accelerator.is_main_process:
                rate = optimizer.param_groups[0]["lr"]
                run.log(loss=sum(mean), learning_rate=rate, **dict(zip(_PARTS, mean, strict=True)))
        if last or run.step % self.config.checkpoint_every == 0:
            state = gather(model, optimizer.optimizer)
            if accelerator.is_main_process:
                run.write(state)
            accelerator.wait_for_everyone()


def _turns(plans: Sequence[PairPlan], most: int | None) -> Iterator[Sequence[PairPlan]]:
    step = most or len(plans)
    for start in range(0, len(plans), step):
        yield plans[start : start + step]


def _invalid(text: str) -> RoboserveError:
    return RoboserveError("invalid_request", text)
