"""What a MetaWorld v3 task is called, by the simulator and by people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class MetaWorldTask:
    """One task.

    Attributes:
        name: our name, without the simulator's version suffix.
        instruction: the canonical wording.
        wordings: further wordings that demonstrations are labelled with.
        held_out: a wording that no demonstration carries, to measure how far the words generalise.
    """

    name: str
    instruction: str
    wordings: Tuple[str, ...]
    held_out: str

    @property
    def environment(self) -> str:
        """The simulator's name of the task."""
        return f"{self.name}-v3"

    @property
    def training_instructions(self) -> Tuple[str, ...]:
        """The canonical wording and the others that demonstrations are labelled with."""
        return (self.instruction, *self.wordings)
