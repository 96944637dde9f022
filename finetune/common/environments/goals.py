"""What environments with a goal in their observation have in common: how it is named, and what is paid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Named = Literal["true", "mirrored"]
Paid = Literal["success", "time"]


@dataclass(frozen=True, kw_only=True)
class GoalRules:
    """The settings.

    Attributes:
        named: what the observation says of the goal, which is all that a learner is told of it: where it is, or where
            it would be mirrored. A policy knows how to get to the true one, but not that it should.
        shift: the same, by so many metres beside the goal along the axis on which it is mirrored, as a camera would
            that was moved and not calibrated again.
        paid: "success" pays `worth` for it, once, else 0; "time" costs 1 a step until then, as OGBench and robomimic
            have it.
        worth: of success. Values should lie further apart than a critic's first errors, and where they begin, at 0,
            should not be far from the truth: a worth of 30 does that sooner than time does.
    """

    named: Named = "true"
    shift: float = 0.0
    paid: Paid = "success"
    worth: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("named", Named), ("paid", Paid)):
            value = getattr(self, name)
            if value not in get_args(known):
                raise ValueError(f"{name}: {value!r}, must be one of {', '.join(get_args(known))}")
        if self.worth <= 0:
            raise ValueError(f"worth: {self.worth}, must be above 0")
        if self.paid == "time" and self.worth != 1:
            raise ValueError(f"worth: {self.worth}, is of success, and paid is time")

    def told(self, place: float, *, middle: float = 0.0) -> float:
        """Return where the observation says that a goal at `place` is, m, on the axis from left to right."""
        return (2 * middle - place if self.named == "mirrored" else place) - self.shift

    def reward(self, *, success: bool) -> float:
        """Return what a step is paid."""
        return self.worth * success if self.paid == "success" else float(success) - 1.0
