"""Denoising as a chain of Gaussian steps: one transition interface for flow and diffusion policies.

Step k of K leads from x_k to x_(k+1) ~ N(mean_k, std_k^2); x_0 is standard normal noise and x_K the action chunk. A
chain's likelihood is the product of its steps' (OGPO, arXiv 2605.03065; DPPO, arXiv 2409.00588). Signs of time are
those of `flow_vla.flow`: noise time 1 - k / K, velocity noise - action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from models.policies.flow_vla.flow import Field

_CUT = 3.0


class Lesson(NamedTuple):
    """A noised chunk (N, H, A), its noise time (N,), and what the network should say of them (N, H, A)."""

    noisy: Tensor
    time: Tensor
    target: Tensor


class Transitions(Protocol):
    """A policy's denoising steps."""

    @property
    def steps(self) -> int:
        """Steps of a chain (K)."""
        ...

    @property
    def scored(self) -> range:
        """Steps that are random and whose likelihood counts."""
        ...

    def lesson(self, actions: Tensor, *, generator: torch.Generator | None = None) -> Lesson:
        """Draw what the network is trained on, for actions (N, H, A)."""
        ...

    def transition(self, field: Field, moving: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return mean (N, H, A) and standard deviation, a scalar tensor, of the next x.

        Args:
            field: the network, bound to N observations: (x, noise time (N,)) to what it predicts.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FlowSteps:
    """Euler steps of a flow with noise between them and the drift that keeps each time's distribution as it was.

    With per-step noise s and K steps, the drift's correction is (s^2 K / 2) times the score over a step of 1 / K: the
    Euler-Maruyama form, "matched". The released form takes s^2 / 2 and so corrects K times too little: "reference".

    Attributes:
        steps: K. `noise`: s, at the start of a tapered chain.
        correction: see above; "none" adds the noise alone.
        taper: s falls with the square root of the time that is left, as does the score's singularity; otherwise it is
            constant, and the last step, where the score is singular, is without noise and without likelihood.
        last: steps from the end that are random and scored; None is all of them.
        clip: bound of the means, in units of the actions; None is no bound.
    """

    steps: int = 5
    noise: float = 0.05
    correction: Literal["matched", "reference", "none"] = "matched"
    taper: bool = True
    last: int | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.noise <= 0:
            raise ValueError(f"steps, noise: {self.steps}, {self.noise}, must be 1 or more, and above 0")
        if self.last is not None and not 1 <= self.last <= self.steps:
            raise ValueError(f"last: {self.last}, must be from 1 to {self.steps}, the steps of a chain")

    @property
    def scored(self) -> range:
        """Steps that are random."""
        first = 0 if self.last is None else self.steps - self.last
        return range(first, self.steps if self.taper else self.steps - 1)

    def lesson(self, actions: Tensor, *, generator: torch.Generator | None = None) -> Lesson:
        """Draw times uniformly; the target is the velocity."""
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        time = torch.rand(len(actions), generator=generator).to(actions)
        part = time[:, None, None]
        return Lesson(part * noise + (1 - part) * actions, time, noise - actions)

    def transition(self, field: Field, moving: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the next x's mean and deviation."""
        left = 1.0 - step / self.steps
        velocity = field(moving, torch.full((len(moving),), left, dtype=moving.dtype, device=moving.device))
        mean = moving - velocity / self.steps
        if step in self.scored:
            # tau v - x with the action-ward velocity -v is (1 - tau) times the score of the straight-path flow
            score = -(1.0 - left) * velocity - moving
            scale = 1.0 if self.taper else 1.0 / left
            squared = self.noise**2 * {"matched": float(self.steps), "reference": 1.0, "none": 0.0}[self.correction]
            mean = mean + scale * squared / 2 / self.steps * score
        if self.clip is not None:
            mean = mean.clamp(-self.clip, self.clip)
        deviation = self.noise * math.sqrt(left) if self.taper else self.noise
        return mean, moving.new_tensor(deviation if step in self.scored else 0.0)


@dataclass(frozen=True, kw_only=True)
class DiffusionSteps:
    """The steps of a diffusion policy (DDPM, Ho et al. 2020) whose network predicts the noise.

    Attributes:
        steps: K; the cosine schedule (Nichol and Dhariwal 2021) is cut into as many.
        least: smallest standard deviation of a random step, so that the likelihood stays bounded (DPPO).
        last: steps from the end that are random and scored with at least `least`; earlier ones keep their own noise
            and do not count. None is all of them.
        clip: bound of the predicted actions; None is no bound.
    """

    steps: int = 20
    least: float = 0.1
    last: int | None = None
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.least <= 0:
            raise ValueError(f"steps, least: {self.steps}, {self.least}, must be 1 or more, and above 0")
        if self.last is not None and not 1 <= self.last <= self.steps:
            raise ValueError(f"last: {self.last}, must be from 1 to {self.steps}, the steps of a chain")

    @property
    def scored(self) -> range:
        """Steps whose likelihood counts."""
        return range(0 if self.last is None else self.steps - self.last, self.steps)

    def kept(self, step: int) -> float:
        """Return the share of the action's variance in x_k, near 0 at k = 0 and 1 at k = K."""
        return _cosine_kept(self.steps)[self.steps - step]

    def lesson(self, actions: Tensor, *, generator: torch.Generator | None = None) -> Lesson:
        """Draw steps uniformly; the target is the noise."""
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        step = torch.randint(0, self.steps, (len(actions),), generator=generator)
        kept = torch.tensor([self.kept(k) for k in range(self.steps)])[step].to(actions)[:, None, None]
        time = (1.0 - step / self.steps).to(actions)
        return Lesson(kept.sqrt() * actions + (1 - kept).sqrt() * noise, time, noise)

    def transition(self, field: Field, moving: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the posterior of the next x, given the actions that are predicted."""
        here, there = self.kept(step), self.kept(step + 1)
        beta = 1 - here / there
        left = 1.0 - step / self.steps
        noise = field(moving, torch.full((len(moving),), left, dtype=moving.dtype, device=moving.device))
        actions = (moving - math.sqrt(1 - here) * noise) / math.sqrt(here)
        if self.clip is not None:
            actions = actions.clamp(-self.clip, self.clip)
        toward = math.sqrt(there) * beta / (1 - here)
        mean = toward * actions + math.sqrt(1 - beta) * (1 - there) / (1 - here) * moving
        own = math.sqrt(beta * (1 - there) / (1 - here))
        return mean, moving.new_tensor(max(own, self.least) if step in self.scored else own)


@lru_cache
def _cosine_kept(steps: int) -> tuple[float, ...]:
    """Variance left after 0, 1, ... `steps` noisings; no single one takes more than 0.999 of it."""

    def shape(part: float) -> float:
        return math.cos((part + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = [1.0]
    for noising in range(steps):
        kept.append(kept[-1] * max(shape((noising + 1) / steps) / shape(noising / steps), 0.001))
    return tuple(kept)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Chains of denoising.

    Attributes:
        points: (K + 1, N, H, A), from noise to the actions, which no bound has cut.
        scores: (scored steps, N), `step_log_probs` of the network that drew them.
    """

    points: Tensor
    scores: Tensor

    @property
    def actions(self) -> Tensor:
        """The chunks, (N, H, A)."""
        return self.points[-1]


@torch.no_grad()
def sample_chain(
    transitions: Transitions, field: Field, noise: Tensor, *, generator: torch.Generator | None = None
) -> Chain:
    """Draw chains from `noise` (N, H, A); no step's noise is beyond three standard deviations."""
    points, scores = [noise], []
    for step in range(transitions.steps):
        mean, deviation = transitions.transition(field, points[-1], step)
        drawn = torch.randn(mean.shape, generator=generator).to(mean).clamp(-_CUT, _CUT)
        points.append(mean + deviation * drawn)
        if step in transitions.scored:
            scores.append(_log_density(points[-1], mean, deviation))
    return Chain(points=torch.stack(points), scores=torch.stack(scores))


def chain_log_prob(transitions: Transitions, field: Field, chain: Chain, *, normalised: bool) -> Tensor:
    """Return the log-likelihood of each chain's scored steps, (N,), differentiable in the network.

    Args:
        normalised: see `whole_score`.
    """
    return whole_score(step_log_probs(transitions, field, chain), chain, normalised=normalised)


def whole_score(scores: Tensor, chain: Chain, *, normalised: bool) -> Tensor:
    """Return the sum of a chain's step scores (scored steps, N), (N,).

    Args:
        normalised: divide by (K + 1) * H * A, the numbers that a chain consists of, so that a trust region on the
            ratio of two likelihoods does not shrink with their count (OGPO's algorithm settings).
    """
    whole = scores.sum(dim=0)
    return whole / chain.points[:, 0].numel() if normalised else whole


def step_log_probs(transitions: Transitions, field: Field, chain: Chain) -> Tensor:
    """Return the log-likelihood of each scored step, summed over the chunk's numbers: (scored steps, N)."""
    scores = []
    for step in transitions.scored:
        mean, deviation = transitions.transition(field, chain.points[step], step)
        scores.append(_log_density(chain.points[step + 1], mean, deviation))
    return torch.stack(scores)


def _log_density(value: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    each = -0.5 * ((value - mean) / deviation).square() - deviation.log() - 0.5 * math.log(2 * math.pi)
    return each.flatten(1).sum(dim=1)
