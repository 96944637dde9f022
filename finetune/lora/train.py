"""Finetune a policy on demonstrations that may count differently: an adapter, its heads alone, or all weights.

Every step draws its batch, augmentation, noise and dropout from (seed, step, process), so that a run that was killed
and resumed gives the weights of one that was not.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from accelerate import Accelerator

from finetune.common.run import Run, cosine_rate
from finetune.lora.artefacts import base_of, write_adapter
from finetune.lora.bases import load_base, named
from finetune.lora.trainable import LoraSettings, Method, make_trainable
from finetune.lora.weights import frame_weights
from finetune.robometer.whole_state import gather, spread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from finetune.bc.frames import Frames
    from finetune.lora.bases import Lessons, PolicyBase, PolicyConfig
    from finetune.lora.trainable import Trainable
    from finetune.lora.weights import WeightSettings


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What is trained on what.

    Attributes:
        base: checkpoint folder of a VLA or a policy on states, or "zoo:NAME"; `data`: folders of LeRobot v3 datasets.
        out: run folder; `cache`: folder of decoded frames, `out`/frames by default.
        model_id, revision: of what comes out; no id stands for the base's with the run folder's name.
        method: "lora", "qlora" (a base in four bits), "heads" (these alone), or "full"; `lora`: of an adapter.
        weights: how much each frame counts; None for all alike.
        statistics: "base" normalises as the base does, "data" as these datasets are spread. Either way they are in what
            comes out.
        steps, batch: optimiser steps, and observations in each on each process; `flow_samples`: see `flow_loss`.
        learning_rate: peak of a cosine; `warmup`: share of all steps.
        shift, brightness: of images, see `finetune.bc.train.TrainConfig`.
        state_noise: on normalised states; None is what the base's kind is trained with, 0.02 for a VLA and none for a
            policy on states.
    """

    base: str
    data: tuple[Path, ...]
    out: Path
    cache: Path | None = None
    model_id: str | None = None
    revision: str = "1"
    method: Method = "lora"
    lora: LoraSettings = field(default_factory=LoraSettings)
    weights: WeightSettings | None = None
    statistics: Literal["base", "data"] = "base"
    steps: int = 1000
    batch: int = 64
    flow_samples: int = 4
    learning_rate: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 1e-3
    shift: int = 3
    brightness: float = 0.15
    state_noise: float | None = None
    checkpoint_every: int = 200
    log_every: int = 20
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data: none given, at least one dataset")
        for name in ("steps", "batch", "flow_samples", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, at least 1")


def finetune(config: FinetuneConfig, *, report: Callable[[int, float], None] | None = None) -> Path:
    """Train to the end, from the last state of the run folder if it has one.

    Args:
        report: told (step, loss) after every step.

    Returns:
        folder of the adapter, or of the checkpoint for the methods that make none.

    Raises:
        FileNotFoundError, ValueError: base, data or weights cannot be used, nothing matches the targets, or the run
            folder holds another run.
    """
    torch.set_num_threads(config.threads)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    base = load_base(config.base)
    cache = config.cache or config.out / "frames"
    with accelerator.local_main_process_first():
        frames = base.frames(config.data, cache)
    target = _target(config, base, frames)
    torch.manual_seed(config.seed)
    trainable = make_trainable(base.network, config.method, config.lora)
    identity = _identity(config) | {
        "base": base.content_hash,
        "data": json.loads((cache / "key.json").read_text("utf-8")),
    }
    lessons = base.lessons(config, target, frames)
    length = target.network.chunk_length
    loop = _Loop(config=config, accelerator=accelerator, frames=frames, lessons=lessons, chunk_length=length)
    run = loop.run(identity, report)
    if accelerator.is_main_process:
        _write(config, trainable, target, base, run)
    accelerator.wait_for_everyone()
    return config.out / ("checkpoint" if trainable.peft is None else "adapter")


def _target(config: FinetuneConfig, base: PolicyBase, frames: Frames) -> PolicyConfig:
    """Return the configuration of what comes out."""
    scaled = base.config if config.statistics == "base" else base.spread_as(frames)
    return named(scaled, name=config.model_id or f"{base.config.id}-{config.out.name}", revision=config.revision)


@dataclass(frozen=True, kw_only=True)
class _Loop:
    """The steps of a run on one process."""

    config: FinetuneConfig
    accelerator: Accelerator
    frames: Frames
    lessons: Lessons
    chunk_length: int

    def run(self, identity: dict[str, Any], report: Callable[[int, float], None] | None) -> Run:
        """Train, and return the run at its end."""
        config, accelerator, lesson = self.config, self.accelerator, self.lessons.module
        trained = [value for value in lesson.parameters() if value.requires_grad]
        optimizer: Any = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        model, optimizer = accelerator.prepare(lesson, optimizer)
        weights = self._weights()
        with accelerator.main_process_first():
            whole = {**identity, "processes": accelerator.num_processes}
            run = Run(folder=config.out, identity=whole, claims=accelerator.is_main_process)
            kept = run.read()
        if kept:
            spread(model, optimizer.optimizer, kept)
        started = time.monotonic() - run.seconds
        model.train()
        while run.step < config.steps:
            rate = cosine_rate(config.learning_rate, run.step, config.steps, warmup=config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = self._step(model, optimizer, run.step, weights)
            run.step, run.seconds = run.step + 1, time.monotonic() - started
            self._keep(run, model, optimizer, loss, rate)
            if report is not None and accelerator.is_main_process:
                report(run.step, loss)
        return run

    def _weights(self) -> NDArray[np.float32]:
        config = self.config
        if config.weights is None:
            return np.ones(len(self.frames.state), np.float32)
        return frame_weights(config.weights, config.data, self.frames, chunk_length=self.chunk_length)

    def _step(self, model: Any, optimizer: Any, step: int, weights: NDArray[np.float32]) -> float:
        config, device = self.config, self.accelerator.device
        random = np.random.default_rng([config.seed, step, self.accelerator.process_index])
        noise = torch.Generator().manual_seed(int(random.integers(2**62)))
        torch.manual_seed(int(random.integers(2**62)))  # dropout
        chosen = random.integers(0, len(self.frames.state), config.batch)
        told = self.lessons.batch(chosen, torch.from_numpy(weights[chosen]), random, noise)
        loss = model(*(part.to(device) for part in told), noise)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss: {loss.item()} is not finite; a lower learning rate may help")
        optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.item())

    def _keep(self, run: Run, model: Any, optimizer: Any, loss: float, rate: float) -> None:
        config, last = self.config, run.step == self.config.steps
        if self.accelerator.is_main_process and (last or run.step % config.log_every == 0):
            run.log(loss=loss, learning_rate=rate)
        if last or run.step % config.checkpoint_every == 0:
            state = gather(model, optimizer.optimizer)
            if self.accelerator.is_main_process:
                run.write(state)


def _write(config: FinetuneConfig, trainable: Trainable, target: PolicyConfig, base: PolicyBase, run: Run) -> None:
    of = base_of(base.config, base.content_hash)
    card = (
        f"# {target.id}\n\nMade of {of.id} revision {of.revision} ({of.content_hash[:12]}) by `{config.method}`: "
        f"{trainable.trained:,} weights, {100 * trainable.share:.2f} % of the base's {trainable.total:,}, trained for "
        f"{run.step} steps of {config.batch} in {run.seconds / 60:.1f} minutes. Not evaluated yet.\n"
    )
    facts = {"trained": trainable.trained, "base": trainable.total, "share": trainable.share, "steps": run.step}
    (config.out / "report.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    if trainable.peft is None:
        base.save(config.out / "checkpoint", target, card=card)
        return
    write_adapter(trainable.peft, config.out / "adapter", config=target, base=of, revision=config.revision, card=card)


def _identity(config: FinetuneConfig) -> dict[str, Any]:
    """Return what must be equal for a run to be resumed."""
    places = ("base", "data", "out", "cache", "model_id", "revision", "threads", "checkpoint_every", "log_every")
    plain = json.loads(json.dumps(asdict(config), default=str))
    return {name: value for name, value in plain.items() if name not in places}
