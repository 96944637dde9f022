"""An embedded VLA whose noise, context level and context noise come from outside, on observations encoded before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from models.policies.state_flow.policy import SteerableFlow

if TYPE_CHECKING:
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
        self._checkpoint, self._head = config.checkpoint, head

    def know(self, observation: Observation) -> NDArray[np.float32]:
        """Return the features of an observation."""
        return self.encoder.encode(observation.images, observation.state, observation.instruction)

    @torch.no_grad()
    def look(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the summary that the expert is told without context noise, and the robot's state, (N, L)."""
        seen, network = torch.from_numpy(states), self._checkpoint.network
        summary: NDArray[np.float32] = self._head.clean(seen).summary.numpy()
        start = network.cameras * network.image_features
        return np.concatenate([summary, states[:, start : start + network.state_size]], axis=1)
