"""The job: a frozen policy plays what the agent chooses, and the agent learns from what came of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.common.device import CPU
from finetune.common.environments.seeing import maker
from finetune.common.learning import LearningJob
from finetune.tmrl.agent import TmrlAgent
from finetune.tmrl.base import LocalPolicy
from finetune.tmrl.learner import SteeringLearner
from models.policies.steered.checkpoint import SteeredConfig, save_steered

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import gymnasium
    import torch

    from finetune.common.learning import JobConfig
    from finetune.tmrl.base import SteeredPolicy
    from finetune.tmrl.config import TmrlConfig
    from finetune.tmrl.learner import MakeAgent


class TmrlJob(LearningJob):
    """A run.

    Args:
        config: steps, evaluations, seed, rewards. `method`: the agent and its updates.
        policy: the frozen one. `task`: as `make_env` reads it.
        make: makes the environment, if it is not one of `make_env`'s.
        agent: `TmrlAgent`, or another that chooses in its place. `device`: where it computes; the policy has its own.

    Raises:
        ValueError: the folder belongs to another run.
    """

    learner: SteeringLearner

    def __init__(
        self,
        config: JobConfig,
        method: TmrlConfig,
        policy: SteeredPolicy,
        *,
        task: str,
        make: Callable[[], gymnasium.Env[Any, Any]] | None = None,
        agent: MakeAgent = TmrlAgent,
        device: torch.device = CPU,
    ) -> None:
        made = make or maker(task, policy.encoder)
        states = policy.look(np.zeros((1, *(made().observation_space.shape or ())), np.float32)).shape[1]
        learner = SteeringLearner(method, policy, states=states, seed=config.seed, agent=agent, device=device)
        facts = {"task": task, "policy": policy.content_hash, "agent": type(learner.agent).__name__}
        super().__init__(config, learner, made, identity={**facts, "tmrl": asdict(method)})

    def export(self, folder: Path, *, name: str, revision: str) -> None:
        """Write what was learned as a policy that can be served: the frozen policy and the actor that steers it.

        Raises:
            TypeError: the frozen policy is behind a service, or the agent has another actor.
        """
        learner, policy, agent = self.learner, self.learner.policy, self.learner.agent
        if not isinstance(policy, LocalPolicy) or not isinstance(agent, TmrlAgent):
            raise TypeError("export: needs a frozen policy that is here, and an agent of TMRL")
        success = [row["success"] for row in self.run.metrics()]
        card = (
            f"# {name}\n\nA high-level actor over {policy.folder.name}, after {learner.decisions} decisions and "
            f"{self.counts.steps} steps; success at the last evaluation {success[-1] if success else 0.0:.2f}, at the "
            f"best {max(success, default=0.0):.2f}.\n"
        )
        config = SteeredConfig(
            id=name,
            revision=revision,
            base_hash=policy.content_hash,
            space=learner.space,
            states=agent.states,
            hidden=agent.config.hidden,
            integration_steps=policy.steps,
            playing=learner.config.playing,
        )
        save_steered(folder, config, agent.actor, base=policy.folder, card=card)
