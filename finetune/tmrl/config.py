"""Settings of a run of TMRL; each default is the method's unless said otherwise (arXiv 2605.12236 and its code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.policies.steered.choice import Playing


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The high-level agent.

    Attributes:
        noise_bound: largest initial action noise (z), each number of it; above 0.
        level_bound: largest context level (t), 0 to 1. 0 keeps the context as it is: with `context_bound` 0 that is
            DSRL (arXiv 2506.15799). `level_least`: the smallest; as large as the bound, the level is fixed.
        context_bound: largest context noise (eps), each number of it; 0 leaves it out of the choice, and a draw from
            the standard normal takes its place. `context_rank`: 0 chooses each number; k chooses k of them, from which
            a fixed random matrix makes all, for contexts of hundreds (`models.policies.steered.choice.context_basis`).
        whole_chunk: choose a noise for every row of the chunk; otherwise one is repeated over it.
        critics, hidden, layers: of the ensemble of critics; the smallest counts. `hidden` is also the actor's.
        learning_rate, target_rate: of all optimisers, and of the target critics' average.
        discount: once a decision, however many steps that plays.
        temperature: at the start, of all three parts of the choice. The method starts at 1; short runs need 0.01 to
            0.1, for at 1 the entropy of the choice outweighs the reward until it has fallen.
        learn_temperature: whether it follows the entropy's target: minus the size of each part.
        entropy_backup: whether the target counts the entropy of the next choice.
    """

    noise_bound: float = 1.0
    level_bound: float = 1.0
    level_least: float = 0.0
    context_bound: float = 1.0
    context_rank: int = 0
    whole_chunk: bool = False
    critics: int = 5
    hidden: int = 256
    layers: int = 3
    learning_rate: float = 3e-4
    target_rate: float = 0.005
    discount: float = 0.995
    temperature: float = 1.0
    learn_temperature: bool = True
    entropy_backup: bool = False

    def __post_init__(self) -> None:
        if self.noise_bound <= 0 or not 0 <= self.level_bound <= 1 or self.context_bound < 0:
            raise ValueError("noise_bound, level_bound, context_bound: must be above 0, from 0 to 1, and 0 or more")
        if self.temperature <= 0 or not 0 < self.discount <= 1:
            raise ValueError(
                f"temperature, discount: {self.temperature}, {self.discount}, must be above 0, the latter <= 1"
            )

    @property
    def bounds(self) -> dict[str, Any]:
        """What `ChoiceSpace.of` is told of them."""
        names = ("noise_bound", "level_bound", "context_bound", "level_least", "context_rank", "whole_chunk")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class TmrlConfig:
    """The method.

    Attributes:
        agent: see there.
        warmup: decisions, the first, that are drawn uniformly within the bounds.
        updates: of critics and actor after each decision (UTD for each macro step).
        actor_every: critic updates to one of the actor; 20 on the real robots.
        batch: decisions of an update, half of them from episodes that succeeded where `half_solved`.
        capacity: decisions that are kept.
        playing: what the agent is judged by, and what its policy plays once it is served: the actor's likeliest choice,
            or one drawn as when it explores.
    """

    agent: AgentConfig
    warmup: int = 100
    updates: int = 4
    actor_every: int = 1
    batch: int = 256
    capacity: int = 100_000
    half_solved: bool = False
    playing: Playing = "likeliest"

    def __post_init__(self) -> None:
        if min(self.updates, self.actor_every, self.batch, self.capacity) < 1 or self.warmup < 0:
            raise ValueError("updates, actor_every, batch, capacity: must be 1 or more; warmup: 0 or more")
