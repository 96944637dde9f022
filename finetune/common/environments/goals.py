"""What environments with a goal in their observation have in common: how it is named, and what is paid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Named = Literal["true", "mirrored"]
Paid = Literal["success", "time"]


@dataclass(frozen=True, kw_only=True)
class GoalRules:
    """The two settings.

    Attributes:
        named: what the observation says of the goal, which is all that a learner is told of it: where it is, or where
            it would be mirrored. A policy knows how to get to the true one, but not that it should.
        paid: "success" pays 1 for it, once, else 0; "time" costs 1 a step until then, as OGBench's and robomimic's
            rewards do: values are then further apart than a critic's first errors.
    """

    named: Named = "true"
    paid: Paid = "success"

    def __post_init__(self) -> None:
        for name, known in (("named", Named), ("paid", Paid)):
            value = getattr(self, name)
            if value not in get_args(known):
                raise ValueError(f"{name}: {value!r}, must be one of {', '.join(get_args(known))}")

    @property
    def mirrored(self) -> bool:
        """Whether the observation names another goal."""
        return self.named == "mirrored"

    def reward(self, *, success: bool) -> float:
        """Return what a step is paid."""
        return float(success) if self.paid == "success" else float(success) - 1.0
