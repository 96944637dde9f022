"""What a method is to the job that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from finetune.common.macro import Chosen, Macro

Mode = Literal["collect", "draw"]


class Learner(Protocol):
    """A policy of chunks that learns from what it plays."""

    @property
    def execute(self) -> int:
        """Rows of a chunk that are played before the next."""
        ...

    @property
    def each_step(self) -> bool:
        """Whether it learns from what is seen after each step, or only from what is seen where a chunk is chosen."""
        ...

    @property
    def judged(self) -> Mapping[str, Mode]:
        """How it is evaluated, by what goes before the figures' names; one that picks is judged with and without."""
        ...

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint keeps."""
        ...

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Their optimisers."""
        ...

    def act(self, states: NDArray[np.float32], generator: torch.Generator, mode: Mode) -> Chosen:
        """Return chunks for states (N, S): as it collects, or one plain draw of its policy."""
        ...

    def keep(self, macro: Macro) -> None:
        """Keep what a chunk led to; those of an episode come one after the other."""
        ...

    def learn(self, steps: int) -> Iterable[dict[str, float]]:
        """Make the updates that `steps` in all have earned, and give what each says of itself."""
        ...

    def facts(self) -> dict[str, float]:
        """Return what is logged of its state."""
        ...

    def state(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return what must be saved beside modules and optimisers."""
        ...

    def load(self, state: dict[str, dict[str, NDArray[Any]]]) -> None:
        """Take what `state` gave."""
        ...
