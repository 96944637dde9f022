"""Settings of OGPO (arXiv 2605.03065).

The released base settings and the released scripts disagree; the scripts, which the paper's runs come from, are
followed, and each departure from them is said.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from finetune.common.experience import ExperienceConfig

Variant = Literal["ogpo", "ogpo+", "ogpo+ca", "ogpo+chi2"]


@dataclass(frozen=True, kw_only=True)
class ChiSquaredConfig:
    """How far the policy may drift from a very slow average of itself; off in the scripts.

    Attributes:
        rate: of the slow average.
        coefficient: of the penalty, times the critics' mean disagreement.
        sharpness: how fast a ratio above 1 moves the value from the critics' mean to their smallest.
        most_return: R_max of the upper clip, about 1 / (1 - discount).
    """

    rate: float = 5e-4
    coefficient: float = 0.1
    sharpness: float = 5.0
    most_return: float = 100.0


@dataclass(frozen=True, kw_only=True)
class OgpoConfig:
    """The method.

    Attributes:
        experience: replay and updates per step; the scripts' for robomimic's Square.
        group: chains drawn for each state (G).
        clip: of the ratio of whole chains, whose log-likelihoods are divided by the numbers of a chain (algorithm
            settings).
        advantage: "group" is the value above the group's mean; "conservative" takes the heads' agreement, the
            scripts' default; "penultimate" lets one head disagree.
        standardise: divide the advantage by the group's deviation; off in the method, and hurts there.
        chi_squared: see there; None leaves it out.
        cloning: weight (lambda) of the loss that clones steps of successful episodes, 1 in the scripts (0.1 in the
            base settings); `cloning_batch`: windows of it. The method clones any step until there are successes; here
            the term is left out until then, for those are mostly failures.
        heads, hidden, layers: of the critics. `aggregate`: of the heads in targets; "min" is an ablation.
        next_actions: draws at the next state (G'), over whose values each head's mean is taken; above 1 it is
            Q-variance reduction. `target_best_of`: each is the best of as many.
        solved_critic: a second step of the critics on successes, on in the scripts for Square and Transport.
        best_of: chains from which the collected chunk is chosen by the smaller of two random heads; 8 in the scripts,
            1 here: the authors report little gain, and it multiplies the cost of acting.
        learning_rate: of the policy; the scripts' peak, without their warm-up and repeating cosine.
        critic_learning_rate, weight_decay: of the critics.
        average_rate: of the averaged policy, which collects and which is judged (0.05 for Adroit).
        target_rate: of the target critics.
    """

    experience: ExperienceConfig = field(default_factory=ExperienceConfig)
    group: int = 32
    clip: float = 0.01
    advantage: Literal["group", "conservative", "penultimate"] = "conservative"
    standardise: bool = False
    chi_squared: ChiSquaredConfig | None = None
    cloning: float = 1.0
    cloning_batch: int = 256
    heads: int = 10
    hidden: int = 512
    layers: int = 4
    aggregate: Literal["mean", "min"] = "mean"
    next_actions: int = 1
    target_best_of: int = 1
    solved_critic: bool = False
    best_of: int = 1
    learning_rate: float = 4.5e-5
    critic_learning_rate: float = 3e-4
    weight_decay: float = 1e-5
    average_rate: float = 0.005
    target_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.group < 2 or not 0 < self.clip < 1 or self.cloning < 0:
            raise ValueError(
                f"group, clip, cloning: {self.group}, {self.clip}, {self.cloning}, must be >= 2, in (0, 1), >= 0"
            )
        if min(self.next_actions, self.target_best_of, self.best_of, self.cloning_batch) < 1:
            raise ValueError("next_actions, target_best_of, best_of, cloning_batch: must be 1 or more")
        if self.heads < 2 and (self.best_of > 1 or self.chi_squared is not None):
            raise ValueError(f"heads: {self.heads}, must be 2 or more for best_of and chi_squared")
        if self.chi_squared is not None and self.advantage != "group":
            raise ValueError(
                f'advantage: {self.advantage!r}, must be "group" with chi_squared, which has its own value'
            )


def small() -> OgpoConfig:
    """Return settings for toys and two cores: fewer and smaller chains and critics, and a faster policy.

    Half an update per step is two for each chunk of four.
    """
    return OgpoConfig(
        experience=ExperienceConfig(batch=64, capacity=100_000, start=500, updates=0.5),
        group=8,
        cloning_batch=64,
        heads=5,
        hidden=256,
        layers=3,
        learning_rate=3e-4,
    )


def variant(config: OgpoConfig, name: Variant) -> OgpoConfig:
    """Return the method's variant: plain, with the success buffer, and that with conservative or chi-squared value."""
    if name == "ogpo":
        return replace(config, advantage="group", cloning=0.0, chi_squared=None)
    advantage: Literal["group", "conservative"] = "conservative" if name == "ogpo+ca" else "group"
    chi_squared = ChiSquaredConfig() if name == "ogpo+chi2" else None
    return replace(config, advantage=advantage, cloning=config.cloning or 1.0, chi_squared=chi_squared)
