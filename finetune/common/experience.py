"""What an off-policy learner of action chunks learns from: its replay, and how many updates its steps have earned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from finetune.common.device import CPU, tensor
from finetune.common.replay import StepReplay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from finetune.common.replay import Windows

_UPDATING = 1


@dataclass(frozen=True, kw_only=True)
class ExperienceConfig:
    """How experience is kept and used.

    Attributes:
        batch: windows of an update. `capacity`: steps that are kept.
        discount: gamma, a step.
        start: steps before the first update. `updates`: for each step after that (UTD).
    """

    batch: int = 256
    capacity: int = 2_000_000
    discount: float = 0.99
    start: int = 10_000
    updates: float = 1.0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.start < 0 or self.updates <= 0 or not 0 < self.discount <= 1:
            raise ValueError(
                f"batch, start, updates, discount: {self.batch}, {self.start}, {self.updates}, {self.discount}, "
                "must be >= 1, >= 0, > 0, and in (0, 1]"
            )


class Batch(NamedTuple):
    """Windows as tensors: states as the policy reads them, (B, S), chunks (B, H, A), the rest as in `Windows`."""

    states: Tensor
    after: Tensor
    chunks: Tensor
    returns: Tensor
    alive: Tensor
    weights: Tensor
    played: Tensor


class Sources(NamedTuple):
    """Where one update draws from: numpy's rows, torch's noise."""

    rows: np.random.Generator
    noise: torch.Generator


class Experience:
    """Replay of single steps, empty at first, and the updates that were made from it.

    Args:
        horizon: steps of a chunk (H), the first `execute` of which are played (all when None).
        normalize: brings states to what the policy reads. `device`: where batches are wanted.
        seed: update n draws from (seed, n).
    """

    def __init__(
        self,
        config: ExperienceConfig,
        *,
        state_size: int,
        action_size: int,
        horizon: int,
        normalize: Callable[[Tensor], Tensor],
        seed: int,
        execute: int | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.config, self.normalize, self.seed, self.updates = config, normalize, seed, 0
        self.device = device
        self.replay = StepReplay(
            capacity=config.capacity,
            state_size=state_size,
            action_size=action_size,
            horizon=horizon,
            discount=config.discount,
            execute=execute,
        )

    def due(self, steps: int) -> Iterator[Sources]:
        """Yield sources for each update that `steps` have earned and that was not made yet."""
        earned = int((steps - self.config.start) * self.config.updates)
        while self.updates < earned and len(self.replay) >= self.replay.horizon:
            yield sources(self.seed, self.updates)
            self.updates += 1

    def sample(self, random: np.random.Generator, batch: int | None = None) -> Batch:
        """Draw windows; `batch` in the place of the settings'."""
        return self._tensors(self.replay.sample(batch or self.config.batch, random))

    def sample_solved(self, random: np.random.Generator, batch: int) -> Batch | None:
        """Draw windows of episodes that succeeded; None while there is none."""
        return self._tensors(self.replay.sample_solved(batch, random)) if self.replay.solved else None

    def state(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return everything, to be saved."""
        return {"replay": self.replay.state(), "updates": {"made": np.array(self.updates, np.int64)}}

    def load(self, state: dict[str, dict[str, NDArray[Any]]]) -> None:
        """Take what `state` gave."""
        self.replay.load(state["replay"])
        self.updates = int(state["updates"]["made"])

    def _tensors(self, windows: Windows) -> Batch:
        def there(values: NDArray[np.float32]) -> Tensor:
            return tensor(values, self.device)

        return Batch(
            states=self.normalize(there(windows.states)),
            after=self.normalize(there(windows.after)),
            chunks=there(windows.chunks),
            returns=there(windows.returns),
            alive=there(windows.alive),
            weights=there(windows.weights),
            played=there(windows.played),
        )


def sources(seed: int, number: int) -> Sources:
    """Return what update `number` draws from."""
    return Sources(
        np.random.default_rng([seed, _UPDATING, number]), torch.Generator().manual_seed(seed * 1_000_003 + number)
    )
