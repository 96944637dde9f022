"""When how many pairs are asked about: the schedules of RL-VLM-F's environments, and the settings of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path  # noqa: TC003  a run's settings are read by pydantic in tests and tools
from typing import Any, Literal

Learn = Literal["preferences", "true", "none"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One environment's row of the method's table, and what its optimisers are set to.

    Attributes:
        query_batch: pairs of one session; `interval`: decisions from one session to the next.
        max_labels: pairs in all, those that come to nothing included.
        reward_epochs: most passes over all labels after a session.
        seed_steps: uniformly random decisions first; `unsup`: then decisions of state-entropy pre-training.
        env_steps: decisions in all.
        reward_batch, reward_rate: of the ensemble's optimiser.
        sac_rate, sac_batch, hidden: of SAC.
    """

    query_batch: int
    interval: int
    max_labels: int
    reward_epochs: int
    unsup: int
    env_steps: int
    seed_steps: int = 1000
    reward_batch: int = 64
    reward_rate: float = 3e-4
    sac_rate: float = 3e-4
    sac_batch: int = 512
    hidden: tuple[int, ...] = (256, 256, 256)


_METAWORLD = Schedule(
    query_batch=40, interval=4000, max_labels=20_000, reward_epochs=10, unsup=9000, env_steps=1_000_000
)
_SOFT = Schedule(
    query_batch=100,
    interval=5000,
    max_labels=20_000,
    reward_epochs=30,
    unsup=9000,
    env_steps=600_000,
    reward_batch=32,
    reward_rate=1e-4,
)
SCHEDULES: dict[str, Schedule] = {
    "drawer": _METAWORLD,
    "sweep": _METAWORLD,
    "soccer": replace(_METAWORLD, reward_epochs=5, reward_rate=1e-4),
    "rope": _SOFT,
    "water": _SOFT,
    "cartpole": Schedule(
        query_batch=50,
        interval=5000,
        max_labels=10_000,
        reward_epochs=50,
        unsup=1000,
        env_steps=500_000,
        sac_rate=5e-4,
    ),
    "cloth": Schedule(
        query_batch=50,
        interval=1000,
        max_labels=500,
        reward_epochs=25,
        unsup=250,
        env_steps=15_000,
        seed_steps=250,
        reward_batch=32,
        sac_rate=5e-4,
    ),
}
"""As published (the fact sheet's table; where the paper is silent, the values of its code). Of these, CartPole and
MetaWorld's tasks can be run here; the soft-body simulators of the others are not part of this package, and their reward
model was a ResNet-18, in whose place stands the convolutional network of the others."""


@dataclass(frozen=True, kw_only=True)
class RlVlmfConfig:
    """A run.

    Attributes:
        out: run folder.
        task: "cartpole", or a name of `robot_client.robots.metaworld_tasks`.
        goal: what the labeller is asked; "" takes the task's own wording.
        schedule: see `SCHEDULES`.
        learn: "preferences"; "true" learns from the environment's own reward, "none" from the entropy of states alone.
        protocol, order_swap, votes, tie_threshold: how the labeller is asked; all but the protocol are extensions of
            the method, and off. `audit` keeps the model's raw answers beside the labels.
        seed: of weights, exploration, scenes and pairs.
        image_size: side of the square pictures that the labeller and the reward model see, pixels, at least 48.
        stop_accuracy: mean training accuracy of the members at which a session's training ends.
        ensemble: members of the reward model.
        catch_up: updates of the policy after the critic was reset.
        neighbours: k of the entropy estimate; `entropy_states`: states that it looks among.
        horizon, repeat: decisions of an episode, and control steps of each, on MetaWorld.
        evaluate_every, episodes: decisions between evaluations, and episodes of each.
    """

    out: Path
    task: str
    schedule: Schedule
    goal: str = ""
    learn: Learn = "preferences"
    protocol: str | None = None
    order_swap: bool = False
    votes: int = 1
    tie_threshold: float = 0.0
    audit: bool = False
    seed: int = 0
    image_size: int = 64
    stop_accuracy: float = 0.97
    ensemble: int = 3
    catch_up: int = 100
    neighbours: int = 5
    entropy_states: int = 2000
    gamma: float = 0.99
    train_every: int = 1
    horizon: int = 100
    repeat: int = 2
    evaluate_every: int = 5000
    episodes: int = 10
    threads: int = 1
    aside: tuple[str, ...] = field(default=("out", "threads", "aside"), repr=False)

    def __post_init__(self) -> None:
        if self.image_size < 48:
            raise ValueError(f"image_size: {self.image_size}, must be at least 48, which the network shrinks to 1")
        if self.schedule.query_batch < 1 or self.schedule.interval < 1 or self.ensemble < 1:
            raise ValueError("query_batch, interval, ensemble: must be positive")

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the run what it is, as JSON has it."""
        facts = {name: value for name, value in asdict(self).items() if name not in self.aside}
        facts["schedule"] = {**facts["schedule"], "hidden": list(self.schedule.hidden)}
        return facts
