"""An embedded VLA whose noise, context level and context noise come from outside, on observations encoded before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from models.policies.state_flow.policy import SteerableFlow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.policies.contract import Observation
    from models.policies.flow_vla.head import ActionHead, HeadPolicyConfig, ViewEncoder


class SteerableVla(SteerableFlow):
    """See the module; its states are features as its encoder gives them.

    Args:
        steps: Euler steps of the flow.
    """

    def __init__(
        self, config: HeadPolicyConfig, head: ActionHead, encoder: ViewEncoder, content_hash: str, *, steps: int
    ) -> None:
        super().__init__(config, head, content_hash, steps=steps)
        self.encoder = encoder
        self._head = head

    def know(self, observation: Observation) -> NDArray[np.float32]:
        """Return the features of an observation."""
        return self.encoder.encode(observation.images, observation.state, observation.instruction)

    @torch.no_grad()
    def look(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the summary that the expert is told without context noise, and the robot's state, (N, L)."""
        told: NDArray[np.float32] = self._head.told(self._there(states)).cpu().numpy()
        return told
