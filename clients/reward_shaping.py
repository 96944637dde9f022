"""Rewards for reinforcement learning from what a reward model says of an episode: formulas, and nothing else.

p_t is the model's progress after frame t, 0 to 1; frame 0 is seen before the first action, so that the transition from
s_t to s_(t+1) is paid from p_t and p_(t+1). Where only every n-th frame is judged, the steps between get no reward of
the model's: a value held over would pay for what the model has not seen. Differences are then taken between judged
frames, so that their sums stay what they are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Callable, Deque, Mapping, Optional, Sequence

from clients.errors import RoboserveError


def progress_reward(after: float) -> float:
    """Return p_(t+1): dense, and so a reward for being far rather than for getting there."""
    return after


def delta_reward(before: float, after: float) -> float:
    """Return p_(t+1) - p_t; an episode's undiscounted sum is the last progress less the first."""
    return after - before


def potential_reward(before: float, after: float, *, gamma: float, kappa: float = 1.0, steps: int = 1) -> float:
    """Return kappa (gamma phi(s') - gamma^(1-n) phi(s)): potential-based shaping, phi the model's progress.

    Added to another reward it leaves the best policies as they are (Ng, Harada, Russell 1999); it is not a reward by
    itself, since without another every policy is worth the same. Over T transitions the sum discounted by gamma
    telescopes to kappa (gamma^T phi(s_T) - phi(s_0)).

    Args:
        before: phi(s), n steps ago; `after`: phi(s'), 0 where the episode ended for good.
        gamma: the learner's own discount.
        steps: n. Over more than one step the factor of `before` undoes the discount of the steps between, whose
            shaping is 0.
    """
    return kappa * (gamma * after - gamma ** (1 - steps) * before)


def succeeded(probabilities: Sequence[float], *, threshold: float, window: int) -> bool:
    """Tell whether a strict majority of the last `window` success probabilities reaches the threshold.

    Values that are not there yet count against it: a window of 2 needs two of 2, one of 1 needs the last.
    """
    return 2 * sum(value >= threshold for value in probabilities[-window:]) > window


@dataclass(frozen=True)
class RewardShape:
    """What a step is paid: `env_weight` x environment + `model_weight` x model + `success_bonus` if so - `step_cost`.

    Attributes:
        form: "progress" (`progress_reward`), "delta" (`delta_reward`) or "potential" (`potential_reward`).
        gamma: the learner's discount; `kappa`: factor. Both for "potential" only.
        model_weight: factor of the form; `env_weight`: of the environment's own reward, 0 to learn from the model only.
        success_bonus: for every judged step at which the model sees success.
        threshold: of the success probability; `window`: judged frames whose strict majority decides. Robometer's LIBERO
            wrapper uses 0.65 of 2, LeRobot 0.5 of 1.
        step_cost: of every step: a reason to end an episode soon, where success ends it and only progress is paid.
        terminate: end the episode where the model sees success.

    Raises:
        RoboserveError: `invalid_request` for an unknown form, a window below 1, or gamma or threshold out of 0 to 1.
    """

    form: str = "progress"
    gamma: float = 0.99
    kappa: float = 1.0
    model_weight: float = 1.0
    env_weight: float = 0.0
    success_bonus: float = 0.0
    step_cost: float = 0.0
    threshold: float = 0.65
    window: int = 2
    terminate: bool = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise RoboserveError("invalid_request", f"form: {self.form!r}; allowed are {', '.join(FORMS)}")
        if self.window < 1:
            raise RoboserveError("invalid_request", f"window: {self.window}, must be 1 or more")
        if not 0.0 < self.gamma <= 1.0 or not 0.0 <= self.threshold <= 1.0:
            raise RoboserveError(
                "invalid_request", f"gamma: {self.gamma:g}, over 0 to 1; threshold: {self.threshold:g}, 0 to 1"
            )

    @property
    def needs_success(self) -> bool:
        """Whether the model must give success probabilities."""
        return self.terminate or self.success_bonus != 0.0


FORMS: Mapping[str, Callable[[RewardShape, float, float, int], float]] = {
    "progress": lambda _shape, _before, after, _steps: progress_reward(after),
    "delta": lambda _shape, before, after, _steps: delta_reward(before, after),
    "potential": lambda shape, before, after, steps: potential_reward(
        before, after, gamma=shape.gamma, kappa=shape.kappa, steps=steps
    ),
}
"""A form by its name: of (shape, progress at the last judged frame, progress now, steps between)."""


@dataclass(frozen=True)
class Paid:
    """A step's reward.

    Attributes:
        reward: as the shape says; `model`: its part by the form, before its weight.
        success: whether the model sees success now.
        terminated: whether the episode ends here, by the environment's word or the model's.
    """

    reward: float
    model: float
    success: bool
    terminated: bool


class Shaper:
    """Pays one episode's steps in their order."""

    def __init__(self, shape: RewardShape, progress: float) -> None:
        """Begin with `progress` at frame 0."""
        self._shape = shape
        self._before, self._steps = progress, 0
        self._probabilities: Deque[float] = deque(maxlen=shape.window)
        self._success = False

    def unjudged(self, env_reward: float) -> Paid:
        """Pay a step whose frame the model is not shown: nothing from the model, success as it was."""
        self._steps += 1
        paid = self._shape.env_weight * env_reward - self._shape.step_cost
        return Paid(paid, 0.0, self._success, terminated=False)

    def judged(self, env_reward: float, progress: float, probability: Optional[float], *, terminated: bool) -> Paid:
        """Pay a step by the values after its frame.

        Args:
            probability: of success; None where the model gives none.
            terminated: the environment ends for good here.
        """
        shape = self._shape
        if probability is not None:
            self._probabilities.append(probability)
        self._success = succeeded(list(self._probabilities), threshold=shape.threshold, window=shape.window)
        ends = terminated or (shape.terminate and self._success)
        after = 0.0 if ends and shape.form == "potential" else progress
        model = FORMS[shape.form](shape, self._before, after, self._steps + 1)
        self._before, self._steps = progress, 0
        bonus = shape.success_bonus if self._success else 0.0
        paid = shape.env_weight * env_reward + shape.model_weight * model + bonus - shape.step_cost
        return Paid(paid, model, self._success, ends)
