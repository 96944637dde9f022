"""DPPO: proximal policy optimisation over the denoising steps as well as over the environment's (arXiv 2409.00588).

On-policy: chunks are played, their advantages come from V(s) and generalised advantage estimation over chunks, each
denoising step has its own ratio and its own clip, and what was played is thrown away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from finetune.common.critics import CriticEnsemble
from finetune.common.experience import sources
from finetune.common.macro import Chosen
from models.policies.denoising import Chain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from finetune.common.chunk_policy import ChunkPolicy
    from finetune.common.experience import Sources
    from finetune.common.learner import Mode
    from finetune.common.macro import Macro
    from models.policies.chunk_field import ChunkField


@dataclass(frozen=True, kw_only=True)
class DppoConfig:
    """The method.

    Attributes:
        chunks: played for an iteration; `epochs` passes over them, in batches of `batch` whole chains.
        discount: gamma, a step; `smoothing`: lambda of the advantages, a chunk.
        denoising_discount: gamma of the denoising steps: a step that is k from the end has A times its k-th power.
        clip: of the ratio at the first and at the last scored denoising step; it grows exponentially from one to the
            other, `growth` times.
        most_divergence: an iteration ends when the policy went further, nats a number of the chunk.
        learning_rate, value_learning_rate: 1e-5 and 1e-3 in the published runs, which make hundreds of iterations
            of 20 000 chunks; one of a few hundred chunks must step further.
    """

    chunks: int = 250
    epochs: int = 10
    batch: int = 125
    discount: float = 0.99
    smoothing: float = 0.95
    denoising_discount: float = 0.99
    clip: tuple[float, float] = (0.001, 0.01)
    growth: float = 3.0
    most_divergence: float = 1.0
    hidden: int = 256
    layers: int = 3
    learning_rate: float = 3e-5
    value_learning_rate: float = 1e-3


class Played(NamedTuple):
    """A chunk: normalised state (S,), chain (K + 1, H, A), step scores (scored steps,), and what it led to.

    `after` (S,) is the state then; `reward` the discounted sum; `alive` 0 after a termination; `over` 1 at the end of
    an episode, whatever ended it.
    """

    state: Tensor
    points: Tensor
    scores: Tensor
    after: Tensor
    reward: Tensor
    alive: Tensor
    over: Tensor


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What is noted of a chunk until it is known what it led to; as in `Played`."""

    state: Tensor
    points: Tensor
    scores: Tensor


class DppoLearner:
    """See the module.

    Args:
        network: the policy's; trained in place. `seed`: of the value's weights, and of every iteration.
    """

    each_step = False

    def __init__(self, config: DppoConfig, policy: ChunkPolicy, network: ChunkField, *, seed: int) -> None:
        self.config, self.policy, self.seed, self._iterations = config, policy, seed, 0
        self.network = network.requires_grad_(requires_grad=True)
        torch.manual_seed(seed)
        self.value = CriticEnsemble(
            policy.sizes.state_size, heads=1, hidden=config.hidden, layers=config.layers, activation="relu"
        ).to(policy.device)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "network": torch.optim.Adam(self.network.parameters(), lr=config.learning_rate),
            "value": torch.optim.Adam(self.value.parameters(), lr=config.value_learning_rate),
        }
        self.execute = policy.config.execute
        self.judged: Mapping[str, Mode] = {"": "draw"}
        self._rollout: list[Played] = []

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps."""
        return {"network": self.network, "value": self.value}

    def act(self, states: NDArray[np.float32], generator: torch.Generator, mode: Mode) -> Chosen:
        """Draw chunks of the policy, and note their chains."""
        seen = self.policy.seen(states)
        chain = self.policy.draw(self.network, seen, generator)
        notes = [
            _Drawn(state=seen[row].cpu(), points=chain.points[:, row].cpu(), scores=chain.scores[:, row].cpu())
            for row in range(len(seen) if mode == "collect" else 0)
        ]
        return Chosen(chunks=self.policy.played(chain).cpu().numpy(), notes=notes)

    def keep(self, macro: Macro) -> None:
        """Keep what a chain led to.

        Raises:
            TypeError: the chunk was not chosen here.
        """
        drawn = macro.note
        if not isinstance(drawn, _Drawn):
            raise TypeError("keep: the chunk's chain was not noted")
        powers = self.config.discount ** np.arange(len(macro.rewards))
        played = Played(
            state=drawn.state,
            points=drawn.points,
            scores=drawn.scores,
            after=self.policy.seen(macro.observations[-1:])[0].cpu(),
            reward=torch.tensor(float((macro.rewards * powers).sum())),
            alive=torch.tensor(float(not macro.terminated)),
            over=torch.tensor(float(macro.over)),
        )
        self._rollout.append(played)

    def learn(self, steps: int) -> Iterator[dict[str, float]]:
        """Make an iteration when there are chunks enough."""
        del steps  # what counts here is what was played since the last iteration
        if len(self._rollout) >= self.config.chunks:
            parts = (torch.stack(part).to(self.policy.device) for part in zip(*self._rollout, strict=True))
            rollout = Played(*parts)
            self._rollout = []
            yield from self._iteration(rollout, sources(self.seed, self._iterations))
            self._iterations += 1

    def facts(self) -> dict[str, float]:
        """Return iterations made."""
        return {"updates": self._iterations}

    def state(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return what must be saved beside modules and optimisers."""
        kept = {"iterations": np.array(self._iterations, np.int64)}
        if self._rollout:
            stacked = zip(Played._fields, zip(*self._rollout, strict=True), strict=True)
            kept |= {name: torch.stack(parts).numpy() for name, parts in stacked}
        return {"dppo": kept}

    def load(self, state: dict[str, dict[str, NDArray[Any]]]) -> None:
        """Take what `state` gave."""
        kept = {name: torch.from_numpy(value.copy()) for name, value in state["dppo"].items()}
        self._iterations = int(kept.pop("iterations"))
        columns = [kept[name] for name in Played._fields] if kept else []
        self._rollout = [Played(*row) for row in zip(*columns, strict=True)]

    def advantages(self, rollout: Played) -> tuple[Tensor, Tensor]:
        """Return advantages and what V should have been, (N,) each, of chunks in the order they were played."""
        config, discount = self.config, self.config.discount**self.execute
        with torch.no_grad():
            value, follows = self.value(rollout.state)[0], self.value(rollout.after)[0]
        surprise = rollout.reward + discount * rollout.alive * follows - value
        advantages, ahead = torch.zeros_like(value), value.new_zeros(())
        for index in reversed(range(len(value))):
            ahead = surprise[index] + discount * config.smoothing * (1 - rollout.over[index]) * ahead
            advantages[index] = ahead
        return advantages, advantages + value

    def clips(self) -> Tensor:
        """Return the clip of each scored denoising step, (scored steps,)."""
        low, high = self.config.clip
        places = torch.linspace(0.0, 1.0, len(self.policy.steps.scored), device=self.policy.device)
        return low + (high - low) * (torch.exp(self.config.growth * places) - 1) / (math.exp(self.config.growth) - 1)

    def _iteration(self, rollout: Played, draws: Sources) -> Iterator[dict[str, float]]:
        advantages, returns = self.advantages(rollout)
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(self.config.epochs):
            order = torch.from_numpy(draws.rows.permutation(len(advantages)))
            for rows in torch.split(order, self.config.batch):
                facts = self._step(Played(*(part[rows] for part in rollout)), advantages[rows], returns[rows])
                yield facts
                if facts["divergence"] > self.config.most_divergence:
                    return

    def _step(self, batch: Played, advantage: Tensor, returns: Tensor) -> dict[str, float]:
        steps, size = self.policy.steps, self.policy.size
        old = batch.scores.T
        chain = Chain(points=batch.points.transpose(0, 1), scores=old)
        # published code also bounds a number's log-density to [-5, 2]; with steps as quiet as these it is above 2
        difference = (self.policy.step_scores(self.network, batch.state, chain) - old) / size
        ratio = difference.exp()
        left = advantage.new_tensor([float(steps.steps - 1 - step) for step in steps.scored])
        weighed = advantage * self.config.denoising_discount ** left[:, None]
        clip = self.clips()[:, None]
        bound = ratio.clamp(1 - clip, 1 + clip)
        loss = -torch.minimum(ratio * weighed, bound * weighed).mean()
        regression = (self.value(batch.state)[0] - returns).square().mean()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        (loss + regression).backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
        return {
            "policy_loss": loss.item(),
            "value_loss": regression.item(),
            "clip_fraction": ((ratio - 1).abs() > clip).float().mean().item(),
            "divergence": ((ratio - 1) - difference).mean().item(),
        }
