"""The learner: a policy, its averages, and critics of chunks.

For each state of a batch G chains are drawn from the averaged policy; the target critics' values, less the group's
mean, weigh the chains' likelihood ratios. The policy steps first, then the critics, whose target is
R + gamma^E alive mean_m Q'_m(s', a') with a' drawn from the averaged policy (arXiv 2605.03065, which plays all rows
of a chunk). Where E of a chunk's H rows are played, critics read these; likelihood and cloning are of all. No return
of the environment enters the policy's loss, and no gradient runs through a critic into an action or through a chain.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from finetune.common.critics import CriticEnsemble
from finetune.common.experience import Experience, Sources
from finetune.common.macro import Chosen
from finetune.common.updates import descend, ema
from finetune.ogpo.advantage import advantages, blended, penalised, standardised
from finetune.ogpo.objective import clipped_loss

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from finetune.common.chunk_policy import ChunkPolicy
    from finetune.common.experience import Batch
    from finetune.common.learner import Mode
    from finetune.common.macro import Macro
    from finetune.ogpo.config import OgpoConfig
    from models.policies.chunk_field import ChunkField


class OgpoLearner:
    """See the module.

    Args:
        network: the policy's, as it was cloned; it is trained in place.
        seed: of the critics' weights, and of every update.
    """

    each_step = True

    def __init__(self, config: OgpoConfig, policy: ChunkPolicy, network: ChunkField, *, seed: int) -> None:
        self.config, self.policy = config, policy
        self.network = network.requires_grad_(requires_grad=True)
        self.average, self.slow = (copy.deepcopy(network).requires_grad_(requires_grad=False) for _ in range(2))
        size, self.execute = policy.sizes, policy.config.execute
        torch.manual_seed(seed)
        inputs = size.state_size + self.execute * size.action_size
        self.critics = CriticEnsemble(
            inputs, heads=config.heads, hidden=config.hidden, layers=config.layers, activation="relu"
        ).to(policy.device)
        self.target = copy.deepcopy(self.critics).requires_grad_(requires_grad=False)
        self.experience = Experience(
            config.experience,
            state_size=size.state_size,
            action_size=size.action_size,
            horizon=policy.chunk[0],
            execute=self.execute,
            normalize=policy.config.normalize,
            seed=seed,
            device=policy.device,
        )
        self.optimizers = {
            "network": torch.optim.Adam(self.network.parameters(), lr=config.learning_rate),
            "critics": torch.optim.AdamW(
                self.critics.parameters(), lr=config.critic_learning_rate, weight_decay=config.weight_decay
            ),
        }
        self.judged: Mapping[str, Mode] = {"": "draw", **({"best_": "collect"} if config.best_of > 1 else {})}
        self._ratio = torch.ones((), device=policy.device)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps."""
        return {
            "network": self.network,
            "average": self.average,
            "slow": self.slow,
            "critics": self.critics,
            "target": self.target,
        }

    @torch.no_grad()
    def act(self, states: NDArray[np.float32], generator: torch.Generator, mode: Mode) -> Chosen:
        """Draw chunks of the averaged policy; to learn from, the best of several by the smaller of two random heads."""
        seen = self.policy.seen(states)
        number = self.config.best_of if mode == "collect" else 1
        chunks = self.policy.played(self.policy.draw(self.average, seen, generator, group=number))
        if number > 1:
            heads = torch.randperm(self.config.heads, generator=generator)[:2]
            values = self.values(self.target, seen, chunks)[heads].min(dim=0).values
            chunks = chunks[torch.arange(len(seen), device=chunks.device) * number + values.argmax(dim=1)]
        return Chosen(chunks=chunks.cpu().numpy())

    def keep(self, macro: Macro) -> None:
        """Keep what a chunk led to."""
        self.experience.replay.add(macro)

    def learn(self, steps: int) -> Iterator[dict[str, float]]:
        """Make the updates that are due."""
        for sources in self.experience.due(steps):
            yield self.update(sources)

    def facts(self) -> dict[str, float]:
        """Return updates made, steps kept, and steps of episodes that succeeded."""
        replay = self.experience.replay
        return {"updates": self.experience.updates, "kept_steps": len(replay), "solved_steps": replay.solved}

    def state(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return what must be saved beside modules and optimisers."""
        return {**self.experience.state(), "ratio": {"mean": self._ratio.cpu().numpy()}}

    def load(self, state: dict[str, dict[str, NDArray[Any]]]) -> None:
        """Take what `state` gave."""
        self._ratio = torch.from_numpy(state["ratio"]["mean"].copy()).to(self.policy.device)
        self.experience.load(state)

    def update(self, sources: Sources) -> dict[str, float]:
        """Take a step of the policy, then of the critics; return what is logged."""
        batch = self.experience.sample(sources.rows)
        solved = self.experience.sample_solved(sources.rows, self.config.cloning_batch) if self._wants_solved else None
        loss, facts = self.policy_loss(batch, sources.noise)
        if solved is not None and self.config.cloning:
            cloning = self.policy.cloning_loss(self.network, solved.states, solved.chunks, solved.played, sources.noise)
            loss, facts = loss + self.config.cloning * cloning, {**facts, "cloning_loss": cloning.item()}
        descend(self.optimizers["network"], loss)
        ema(self.average, self.network, self.config.average_rate)
        if self.config.chi_squared is not None:
            ema(self.slow, self.network, self.config.chi_squared.rate)
        facts |= self._regress(batch, sources.noise)
        if solved is not None and self.config.solved_critic:
            self._regress(solved, sources.noise)
        return facts

    def policy_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of whole chains at a batch's states, and what is logged of it."""
        config, states, shape = self.config, batch.states, (len(batch.states), self.config.group)
        chain = self.policy.draw(self.average, states, generator, group=config.group)
        values = self.values(self.target, states, self.policy.played(chain))
        log_prob = self.policy.score(self.network, states, chain).reshape(shape)
        drawn = self.policy.whole(chain).reshape(shape)
        ratio, high = (log_prob - drawn).exp(), 1 + config.clip
        if config.chi_squared is None:
            advantage = advantages(self._aggregated(values), config.advantage)
        else:
            with torch.no_grad():
                slow = self.policy.score(self.slow, states, chain).reshape(shape)
                drift = (log_prob.detach() - slow).exp()
            advantage, beta = penalised(values, drift, config.chi_squared)
            high = min(high, 1 + config.chi_squared.most_return / beta)
            self._ratio = drift.mean()
        if config.standardise:
            advantage = standardised(advantage)
        loss, clipped = clipped_loss(ratio, advantage, low=1 - config.clip, high=high)
        return loss, {
            "policy_loss": loss.item(),
            "clip_fraction": clipped.item(),
            "clip_high": high,
            "ratio_mean": ratio.mean().item(),
            "ratio_least": ratio.min().item(),
            "ratio_most": ratio.max().item(),
            "advantage_std": advantage.std().item(),
            "advantage_zero": (advantage == 0).float().mean().item(),
        }

    @torch.no_grad()
    def targets(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return y (B,): the window's return and, where the episode lives on, the discounted value of what follows."""
        config, number = self.config, self.config.next_actions * self.config.target_best_of
        chunks = self.policy.played(self.policy.draw(self.average, batch.after, generator, group=number))
        values = self.values(self.target, batch.after, chunks)
        if config.target_best_of > 1:
            values = values.reshape(config.heads, -1, config.next_actions, config.target_best_of)
            best = values.mean(dim=0, keepdim=True).argmax(dim=-1, keepdim=True)
            values = values.gather(-1, best.expand(config.heads, -1, -1, -1)).squeeze(-1)
        values = values.mean(dim=-1)
        if config.chi_squared is not None:
            follows = blended(values, self._ratio, config.chi_squared)
        else:
            follows = values.mean(dim=0) if config.aggregate == "mean" else values.min(dim=0).values
        return batch.returns + config.experience.discount**self.execute * batch.alive * follows

    def values(self, critics: CriticEnsemble, states: Tensor, chunks: Tensor) -> Tensor:
        """Return values (M, B, G) of the E rows played of chunks (B * G, H, A), the G of a state (B, S) in a row."""
        group = len(chunks) // len(states)
        inputs = torch.cat([states.repeat_interleave(group, dim=0), chunks[:, : self.execute].flatten(1)], dim=-1)
        values: Tensor = critics(inputs)
        return values.reshape(critics.heads, len(states), group)

    def _aggregated(self, values: Tensor) -> Tensor:
        """Return the smallest head alone where targets take it."""
        if self.config.aggregate == "min" and self.config.advantage == "group":
            return values.min(dim=0, keepdim=True).values
        return values

    def _regress(self, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        target = self.targets(batch, generator)
        values = self.values(self.critics, batch.states, batch.chunks).squeeze(-1)
        loss = ((values - target).square() * batch.weights).mean()
        descend(self.optimizers["critics"], loss)
        ema(self.target, self.critics, self.config.target_rate)
        return {
            "critic_loss": loss.item(),
            "value": values.mean().item(),
            "value_std": values.std(dim=0).mean().item(),
            "target": target.mean().item(),
        }

    @property
    def _wants_solved(self) -> bool:
        return self.config.cloning > 0 or self.config.solved_critic
