"""RLPD: soft actor-critic from scratch, half of every batch from demonstrations (arXiv 2302.02948).

It plays single actions and knows no generative policy. Its demonstrations are transitions of the task's own expert in
the task itself, paid as the task pays: the one method here that is given offline data while it learns.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune.baselines.gaussian import GaussianActor, improve, regress
from finetune.common.critics import CriticEnsemble
from finetune.common.device import CPU, tensor
from finetune.common.experience import Batch, Experience, ExperienceConfig, Sources
from finetune.common.macro import Chosen, MacroEnv

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import gymnasium
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from finetune.common.demonstrations import Demonstrator
    from finetune.common.learner import Mode
    from finetune.common.macro import Macro
    from models.policies.flow_vla.head import HeadPolicyConfig
    from models.policies.state_flow.checkpoint import StatePolicyConfig


@dataclass(frozen=True, kw_only=True)
class RlpdConfig:
    """The method.

    Attributes:
        demonstrations: episodes of the expert.
        heads: of the critics; the smaller of two random ones is the target's value.
        temperature: of the entropy, at the start.
    """

    experience: ExperienceConfig = field(default_factory=ExperienceConfig)
    demonstrations: int = 30
    heads: int = 10
    hidden: int = 256
    layers: int = 2
    temperature: float = 0.1
    learning_rate: float = 3e-4
    target_rate: float = 0.005


class RlpdLearner:
    """See the module.

    Args:
        config: of a policy of the task, for its sizes and how its states are normalised.
        env: in which the expert plays. `seed`: of all. `device`: where networks compute.
    """

    each_step = True

    def __init__(
        self,
        config: RlpdConfig,
        policy: StatePolicyConfig | HeadPolicyConfig,
        env: gymnasium.Env[Any, Any],
        *,
        seed: int,
        device: torch.device = CPU,
    ) -> None:
        self.config, self.policy, self.device = config, policy, device
        torch.manual_seed(seed)
        states, actions = policy.network.state_size, policy.network.action_size
        self.actor = GaussianActor(states, actions, hidden=config.hidden, temperature=config.temperature).to(device)
        self.critics = CriticEnsemble(
            states + actions, heads=config.heads, hidden=config.hidden, layers=config.layers, activation="relu"
        ).to(device)
        self.target = copy.deepcopy(self.critics).requires_grad_(requires_grad=False)
        self.experience, self.offline = (
            Experience(
                config.experience,
                state_size=states,
                action_size=actions,
                horizon=1,
                normalize=policy.normalize,
                seed=seed,
                device=device,
            )
            for _ in range(2)
        )
        play_expert(env, self.offline, episodes=config.demonstrations, seed=seed)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "actor": torch.optim.Adam(self.actor.optimized, lr=config.learning_rate),
            "temperature": torch.optim.Adam([self.actor.log_temperature], lr=config.learning_rate),
            "critics": torch.optim.Adam(self.critics.parameters(), lr=config.learning_rate),
        }
        self.execute = 1
        self.judged: Mapping[str, Mode] = {"": "draw"}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps."""
        return {"actor": self.actor, "critics": self.critics, "target": self.target}

    @torch.no_grad()
    def act(self, states: NDArray[np.float32], generator: torch.Generator, mode: Mode) -> Chosen:
        """Return single actions (N, 1, A): drawn to learn from, and else the middle ones."""
        seen = self.policy.normalize(tensor(states, self.device))
        actions, _ = self.actor(seen, generator if mode == "collect" else None)
        return Chosen(chunks=actions[:, None].cpu().numpy())

    def keep(self, macro: Macro) -> None:
        """Keep what an action led to."""
        self.experience.replay.add(macro)

    def learn(self, steps: int) -> Iterator[dict[str, float]]:
        """Make the updates that are due."""
        for sources in self.experience.due(steps):
            yield self.update(sources)

    def facts(self) -> dict[str, float]:
        """Return updates made, and steps kept, online and offline."""
        kept = {"kept_steps": len(self.experience.replay), "offline_steps": len(self.offline.replay)}
        return {"updates": self.experience.updates, **kept}

    def state(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return what must be saved beside modules and optimisers; the demonstrations are played again."""
        return self.experience.state()

    def load(self, state: dict[str, dict[str, NDArray[Any]]]) -> None:
        """Take what `state` gave."""
        self.experience.load(state)

    def update(self, sources: Sources) -> dict[str, float]:
        """Take a step of the critics, then of the actor; return what is logged."""
        half = self.config.experience.batch // 2
        parts = zip(self.experience.sample(sources.rows, half), self.offline.sample(sources.rows, half), strict=True)
        batch = Batch(*(torch.cat(pair) for pair in parts))
        inputs = torch.cat([batch.states, batch.chunks.flatten(1)], dim=-1)
        wanted, rate = self.targets(batch, sources.noise), self.config.target_rate
        facts = regress(self.critics, self.target, self.optimizers["critics"], inputs, wanted, batch.weights, rate=rate)

        def value(actions: Tensor) -> Tensor:
            values: Tensor = self.critics(torch.cat([batch.states, actions], dim=-1)).mean(dim=0)
            return values

        return facts | improve(self.actor, self.optimizers, value, batch.states, sources.noise)

    @torch.no_grad()
    def targets(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return y (B,), with the smaller value of two random heads, less the entropy's price."""
        actions, score = self.actor(batch.after, generator)
        heads = torch.randperm(self.config.heads, generator=generator)[:2]
        follows = self.target(torch.cat([batch.after, actions], dim=-1))[heads].min(dim=0).values
        follows = follows - self.actor.log_temperature.exp() * score
        wanted: Tensor = batch.returns + self.config.experience.discount * batch.alive * follows
        return wanted


def play_expert(env: gymnasium.Env[Any, Any], experience: Experience, *, episodes: int, seed: int) -> None:
    """Fill a replay with an expert's episodes, paid as the environment pays.

    Args:
        env: also a `Demonstrator`.

    Raises:
        TypeError: it is none.
    """
    if not hasattr(env.unwrapped, "expert"):
        raise TypeError(f"task: {type(env.unwrapped).__name__} has no expert, which RLPD learns from")
    expert: Demonstrator = env.unwrapped
    random, played = np.random.default_rng(seed), MacroEnv(env, execute=1)
    for episode in range(episodes):
        played.reset(seed=seed * 100_003 + episode)
        over = False
        while not over:
            macro = played.step(expert.expert(random)[None])
            experience.replay.add(macro)
            over = macro.over
