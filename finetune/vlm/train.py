"""Supervised finetuning of a vision-language model: the answer's tokens are foretold, whatever is asked.

One loop for the embedded model, for adapters (LoRA, QLoRA) and for any other folder. Every step draws from (seed,
step), so a run that was killed and resumed gives the weights of one that was not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from finetune.common.run import Run, cosine_rate
from finetune.vlm.conversations import batch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from finetune.vlm.conversations import Learning, Source
    from models.vlm.inputs import Composer

SLOW = 0.3
_HINTED = -2
_NO_IDENTITY = ("out", "threads", "checkpoint_every")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        out: run folder; `steps`, `batch`: optimiser steps and conversations in each.
        micro: conversations in one forward; the gradients of a step's are summed. None: all at once.
        learning_rate: peak of a cosine; `warmup`: share of all steps.
        smoothing: standard deviation, in hundredths, of what is taught in the place of a number token, where the run
            knows number tokens; 0 teaches the number alone.
        seed, threads: of PyTorch. The number of threads is no part of what makes a run what it is.
    """

    out: Path
    steps: int
    batch: int = 48
    micro: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    smoothing: float = 0.0
    checkpoint_every: int = 100
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.micro or 1, self.checkpoint_every) < 1:
            raise ValueError(
                f"steps {self.steps}, batch {self.batch}, micro {self.micro} and checkpoint_every "
                f"{self.checkpoint_every} must be 1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A kind of conversation and the share of every batch that it takes, over that of the others."""

    name: str
    source: Source
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on what.

    Attributes:
        network: called with a batch's tensors; its parameters that require gradients are trained.
        composer: renders conversations as the network's checkpoint reads them.
        lessons: at least one.
        numbers: ids of the tokens of 00 to 99, in order, where they are one token each; empty otherwise.
        hints: reads what is true of pictures and answers off the hidden states, and is trained beside the network.
        slow: beginnings of names of parameters that learn at `SLOW` times the rate: they were trained before.
        identity: what else makes the run what it is.
    """

    network: nn.Module
    composer: Composer
    lessons: tuple[Lesson, ...]
    numbers: tuple[int, ...] = ()
    hints: Hints | None = None
    slow: tuple[str, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)


def train(config: TrainConfig, task: Task, *, report: Callable[[int, dict[str, float]], None] | None = None) -> None:
    """Train in place, from the last state of the run folder if it has one.

    Args:
        report: told (step, the step's loss in each lesson).

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    torch.set_num_threads(config.threads)
    part = _Trained(task.network, task.hints)
    optimizer = torch.optim.AdamW(
        part.groups(config.weight_decay, task.slow), lr=config.learning_rate, betas=(0.9, 0.98)
    )
    identity = {name: value for name, value in vars(config).items() if name not in _NO_IDENTITY}
    shares = {lesson.name: lesson.share for lesson in task.lessons}
    run = Run(folder=config.out, identity={**identity, "lessons": shares, **task.identity})
    run.restore(part, optimizer)
    soft = soft_numbers(config.smoothing) if task.numbers and config.smoothing else None
    started = time.monotonic() - run.seconds
    task.network.train()
    while run.step < config.steps:
        random = np.random.default_rng([config.seed, run.step])
        torch.manual_seed(config.seed * 1_000_003 + run.step)
        for group in optimizer.param_groups:
            rate = config.learning_rate * group["factor"]
            group["lr"] = cosine_rate(rate, run.step, config.steps, warmup=config.warmup)
        optimizer.zero_grad()
        losses = _step(config, task, random, soft)
        nn.utils.clip_grad_norm_(part.parameters_of(), config.clip)
        optimizer.step()
        run.step, run.seconds = run.step + 1, time.monotonic() - started
        if report is not None:
            report(run.step, losses)
        if run.step % 10 == 0:
            run.log(**losses)
        if run.step % config.checkpoint_every == 0 or run.step == config.steps:
            run.save(part, optimizer)
    task.network.eval()


def _step(config: TrainConfig, task: Task, random: np.random.Generator, soft: Tensor | None) -> dict[str, float]:
    """Gather the gradients of one step; returns the mean loss in each lesson."""
    counts = _counts(config.batch, task.lessons)
    losses = {}
    for lesson, count in zip(task.lessons, counts, strict=True):
        losses[lesson.name] = 0.0
        for first in range(0, count, config.micro or count):
            size = min(config.micro or count, count - first)
            learning = batch(task.composer, lesson.source.draw(random, size))
            loss, hint = answer_loss(task.network, learning, task.numbers, soft, hints=task.hints)
            if hint is not None:
                losses[f"{lesson.name}_hint"] = losses.get(f"{lesson.name}_hint", 0.0) + hint.item() * size / count
                loss = loss + hint
            (loss * (size / config.batch)).backward()  # type: ignore[no-untyped-call]
            losses[lesson.name] += loss.item() * size / count
    return losses


def _counts(total: int, lessons: Sequence[Lesson]) -> list[int]:
    """Share a batch out; every lesson gets one conversation at least, the last one what is left."""
    shares = np.array([lesson.share for lesson in lessons])
    counts = np.maximum(1, np.floor(total * shares / shares.sum())).astype(int)
    counts[-1] = max(1, total - counts[:-1].sum())
    return [int(count) for count in counts]


def answer_loss(
    network: nn.Module,
    learning: Learning,
    numbers: Sequence[int] = (),
    soft: Tensor | None = None,
    *,
    hints: Hints | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the negative log-likelihood of the answers: the mean over conversations of each answer's mean.

    Returns:
        the loss, and that of the hints.

    Args:
        numbers: ids of the number tokens; `soft`: float (100, 100), for each number what is taught in its place.
    """
    device = next(network.parameters()).device
    tensors = {name: value.to(device) for name, value in learning.tensors.items()}
    out = network(**tensors, use_cache=False, output_hidden_states=hints is not None)
    asked = learning.answers[:, 1:].to(device)
    chosen = out.logits[:, :-1][asked].float().log_softmax(-1)
    wanted = tensors["input_ids"][:, 1:][asked]
    losses = -chosen.gather(1, wanted[:, None]).squeeze(1)
    if soft is not None:
        place = torch.full((chosen.shape[1],), -1, device=device)
        place[list(numbers)] = torch.arange(len(numbers), device=device)
        number = place[wanted]
        spread = -(soft.to(device)[number.clamp(min=0)] * chosen[:, list(numbers)]).sum(-1)
        losses = torch.where(number >= 0, spread, losses)
    rows = asked.nonzero()[:, 0]
    weights = 1.0 / asked.sum(1).clamp(min=1)[rows]
    mean: Tensor = (losses * weights).sum() / len(asked)
    return mean, None if hints is None else hints(out.hidden_states[_HINTED], learning)


def soft_numbers(deviation: float) -> Tensor:
    """Return what is taught in the place of each number token: a normal distribution about it, float32 (100, 100)."""
    steps = torch.arange(100.0)
    return torch.softmax(-((steps[None] - steps[:, None]) ** 2) / (2 * deviation**2), dim=1)


class Hints(nn.Module):
    """Reads what is true of a picture off its last token, and of an answer off the token at which it is asked.

    Answers teach a small network slowly: which of two pictures is nearer a goal is one bit. With numbers to foretell
    for each picture and each way, what these are read from comes to be in the hidden states, one layer before the last,
    so that the last one can compare; this module is then dropped.

    Args:
        width: of the hidden states; `answer`: numbers that are true of an answer.
    """

    def __init__(self, width: int, *, answer: int) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.answer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, answer))

    def forward(self, hidden: Tensor, learning: Learning) -> Tensor:
        """Return the loss of what is hinted at, 0 where nothing is known; hidden states are (B, L, width)."""
        loss = hidden.new_zeros(())
        if learning.of_images is not None:
            read = self.image(hidden.flatten(0, 1)[learning.image_ends.to(hidden.device)]).squeeze(1)
            loss = loss + functional.smooth_l1_loss(read, learning.of_images.to(hidden.device), beta=0.1)
        if learning.of_answer is not None:
            asked = learning.answers.int().argmax(dim=1).to(hidden.device) - 1
            read = self.answer(hidden[torch.arange(len(hidden)), asked])
            loss = loss + 3 * functional.smooth_l1_loss(read, learning.of_answer.to(hidden.device), beta=0.05)
        return loss


class _Trained(nn.Module):
    """The part of a network that is trained, as a run keeps it: a frozen base does not belong to every checkpoint."""

    def __init__(self, network: nn.Module, hints: Hints | None) -> None:
        super().__init__()
        self._parts = {name: value for name, value in network.named_parameters() if value.requires_grad}
        if not self._parts:
            raise ValueError("network: no parameter requires a gradient")
        if hints is not None:
            self._parts |= {f"hints.{name}": value for name, value in hints.named_parameters()}

    def groups(self, decay: float, slow: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return the optimiser's groups: matrices are decayed, gains and biases are not; what is slow learns slowly."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, value in self._parts.items():
            groups.setdefault((value.ndim > 1, name.startswith(slow) if slow else False), []).append(value)
        return [
            {"params": values, "weight_decay": decay if matrices else 0.0, "factor": SLOW if slowly else 1.0}
            for (matrices, slowly), values in groups.items()
        ]

    def parameters_of(self) -> list[nn.Parameter]:
        """Return the parameters, in order."""
        return list(self._parts.values())

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Return the parameters by name."""
        return {name: value.detach() for name, value in self._parts.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        """Put parameters back in place.

        Raises:
            ValueError: names or shapes differ from what is trained.
        """
        if {name: value.shape for name, value in state_dict.items()} != {
            name: value.shape for name, value in self._parts.items()
        }:
            raise ValueError("state: holds other parameters than are trained")
        with torch.no_grad():
            for name, value in self._parts.items():
                value.copy_(state_dict[name])
