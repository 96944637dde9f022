"""What a network of action chunks looks like to those who train or steer it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class FieldSizes(Protocol):
    """Sizes of a network: numbers of a state (S), an action (A) and context noise (C), rows of a chunk (H)."""

    @property
    def state_size(self) -> int:
        """S."""
        ...

    @property
    def action_size(self) -> int:
        """A."""
        ...

    @property
    def chunk_length(self) -> int:
        """H."""
        ...

    @property
    def context_size(self) -> int:
        """C; 0 without."""
        ...


class ChunkField(nn.Module, ABC):
    """A field over action chunks, given what is known of an observation."""

    @property
    @abstractmethod
    def sizes(self) -> FieldSizes:
        """Its sizes."""

    @abstractmethod
    def encode(self, state: Tensor, *, level: Tensor | None = None, context_noise: Tensor | None = None) -> Any:
        """Return what `velocity` needs of states (B, S), computed once for all steps of a chain.

        Args:
            level: (B,) in [0, 1]; `context_noise`: (B, C), standard normal. Both, or neither for a policy that was
                trained without context noise.

        Raises:
            ValueError: the one without the other, or noise that this policy knows nothing of.
        """

    def clean(self, state: Tensor) -> Any:
        """Return what `velocity` needs of states (B, S) whose context is seen as it is."""
        size = self.sizes.context_size
        if not size:
            return self.encode(state)
        return self.encode(state, level=state.new_zeros(len(state)), context_noise=state.new_zeros(len(state), size))

    @abstractmethod
    def velocity(self, prefix: Any, noisy: Tensor, time: Tensor) -> Tensor:
        """Return the velocity noise - action (or the noise, for a diffusion policy), of `noisy`'s shape.

        Args:
            noisy: (B, H, A), time * noise + (1 - time) * action; or (B, G, H, A), G chunks of each observation at the
                same time, for which what depends on the observation alone is computed once.
            time: (B,) in [0, 1]; 1 is pure noise.
        """
