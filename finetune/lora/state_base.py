"""A policy on states as a base, a flow's or a diffusion's: no images, no words, and actions as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from finetune.bc.frames import load_frames
from finetune.csp.train import smoothed_loss
from models.policies.normalizer import Normalizer
from models.policies.state_flow.checkpoint import (
    StatePolicyConfig,
    require_plain_actions,
    save_state_policy,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from finetune.bc.frames import Frames
    from finetune.lora.train import FinetuneConfig
    from models.policies.adapters import AdapterFacts
    from models.policies.denoising import DiffusionSteps, FlowSteps
    from models.policies.state_flow.network import StateFlowNetwork


@dataclass(frozen=True, kw_only=True, eq=False)
class StateBase:
    """See `PolicyBase`."""

    config: StatePolicyConfig
    network: StateFlowNetwork
    content_hash: str

    def frames(self, data: Sequence[Path], cache: Path) -> Frames:
        """Return frames without images; cameras that a dataset has are left alone.

        Raises:
            ValueError: sizes are not the policy's, or an action is outside [-1, 1].
        """
        frames, sizes = load_frames(data, None, cache), self.config.network
        wanted, given = (sizes.state_size, sizes.action_size), (frames.state.shape[1], frames.action.shape[1])
        if wanted != given:
            raise ValueError(f"data: state and action are {given}, {self.config.id} needs {wanted}")
        most = float(np.abs(frames.action).max())
        if not most <= 1:
            raise ValueError(f"data: an action of {most:g}, those of {self.config.id} are from -1 to 1")
        return frames

    def spread_as(self, frames: Frames) -> StatePolicyConfig:
        """Return the configuration with these frames' statistics of states."""
        return replace(self.config, state_normalizer=Normalizer.of(frames.state))

    def lessons(self, config: FinetuneConfig, target: Any, frames: Frames) -> StateLessons:
        """Return the frames as lessons."""
        module = _Lesson(self.network, target.denoising, config.flow_samples)
        return StateLessons(module=module, config=config, target=target, frames=frames)

    def renamed(self, facts: AdapterFacts) -> StatePolicyConfig:
        """Return the configuration of what an adapter makes of it.

        Raises:
            ValueError: the adapter scales actions.
        """
        require_plain_actions(facts)
        return replace(self.config, id=facts.id, revision=facts.revision, state_normalizer=facts.state)

    def save(self, folder: Path, config: Any, *, card: str) -> None:
        """Write a checkpoint folder of its network."""
        save_state_policy(folder, config, self.network.cpu(), card=card)


@dataclass(frozen=True, kw_only=True, eq=False)
class StateLessons:
    """See `Lessons`."""

    module: nn.Module
    config: FinetuneConfig
    target: StatePolicyConfig
    frames: Frames

    def batch(
        self,
        chosen: NDArray[np.int64],
        weights: Tensor,
        random: np.random.Generator,  # noqa: ARG002  images are augmented with it
        noise: torch.Generator,
    ) -> tuple[Tensor, ...]:
        """Return states, chunks and weights; states without noise, as such policies are pretrained."""
        state = torch.from_numpy(self.target.state_normalizer.normalize(self.frames.state[chosen]))
        if self.config.state_noise:
            state = state + self.config.state_noise * torch.randn(state.shape, generator=noise)
        return state, torch.from_numpy(self.frames.chunks(chosen, self.target.network.chunk_length)), weights


class _Lesson(nn.Module):
    """The network with its loss, as accelerate wants it: one module that is called."""

    def __init__(self, network: StateFlowNetwork, denoising: FlowSteps | DiffusionSteps, samples: int) -> None:
        super().__init__()
        self.network, self._denoising, self._samples = network, denoising, samples

    def forward(self, state: Tensor, chunk: Tensor, weights: Tensor, noise: torch.Generator) -> Tensor:
        state, chunk, weights = (part.repeat_interleave(self._samples, dim=0) for part in (state, chunk, weights))
        return smoothed_loss(self.network, self._denoising, state, chunk, noise, weights=weights)
