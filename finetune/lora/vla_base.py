"""The embedded VLA as a base: images, states and words, on flow matching."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finetune.bc.frames import load_frames
from finetune.bc.train import augment
from models.policies.flow_vla.checkpoint import CheckpointConfig, save_checkpoint
from models.policies.flow_vla.flow import flow_loss
from models.policies.normalizer import Normalizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from finetune.bc.frames import Frames
    from finetune.lora.train import FinetuneConfig
    from models.policies.adapters import AdapterFacts
    from models.policies.flow_vla.network import FlowVLANetwork

_STATE_NOISE = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class VlaBase:
    """See `PolicyBase`."""

    config: CheckpointConfig
    network: FlowVLANetwork
    content_hash: str

    def frames(self, data: Sequence[Path], cache: Path) -> Frames:
        """Return frames with images in the network's size.

        Raises:
            ValueError: the policy follows drawn paths, or the datasets' cameras or sizes are not its own.
        """
        base = self.config
        if base.path:
            raise ValueError(f"base: {base.id} follows drawn paths, and these demonstrations have none")
        frames = load_frames(data, base.network.image_size, cache)
        wanted = (tuple(camera.name for camera in base.cameras), base.state.size, base.action.size)
        given = (frames.cameras, frames.state.shape[1], frames.action.shape[1])
        if wanted != given:
            raise ValueError(f"data: cameras, state and action are {given}, {base.id} needs {wanted}")
        return frames

    def spread_as(self, frames: Frames) -> CheckpointConfig:
        """Return the configuration with these frames' statistics of states and actions."""
        return replace(
            self.config, state_normalizer=Normalizer.of(frames.state), action_normalizer=Normalizer.of(frames.action)
        )

    def lessons(self, config: FinetuneConfig, target: Any, frames: Frames) -> VlaLessons:
        """Return the frames as lessons."""
        return VlaLessons(
            module=_Lesson(self.network, config.flow_samples),
            config=config,
            target=target,
            frames=frames,
            words=torch.from_numpy(target.tokenizer(frames.instructions)),
        )

    def renamed(self, facts: AdapterFacts) -> CheckpointConfig:
        """Return the configuration of what an adapter makes of it."""
        return replace(
            self.config,
            id=facts.id,
            revision=facts.revision,
            state_normalizer=facts.state,
            action_normalizer=facts.action,
        )

    def save(self, folder: Path, config: Any, *, card: str) -> None:
        """Write a checkpoint folder of its network."""
        save_checkpoint(folder, config, self.network.cpu(), card=card)


@dataclass(frozen=True, kw_only=True, eq=False)
class VlaLessons:
    """See `Lessons`; `words` are the tokens of the frames' instructions."""

    module: nn.Module
    config: FinetuneConfig
    target: CheckpointConfig
    frames: Frames
    words: Tensor

    def batch(
        self, chosen: NDArray[np.int64], weights: Tensor, random: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Return images, states, words, chunks and weights; images shifted and dimmed, states with a little noise."""
        config, target, frames = self.config, self.target, self.frames
        seen = torch.from_numpy(frames.images[chosen])
        images = augment(seen, random, shift=config.shift, brightness=config.brightness)
        state = torch.from_numpy(target.state_normalizer.normalize(frames.state[chosen]))
        scale = _STATE_NOISE if config.state_noise is None else config.state_noise
        state = state + scale * torch.randn(state.shape, generator=noise)
        rows = frames.chunks(chosen, target.network.chunk_length)
        chunk = torch.from_numpy(target.action_normalizer.normalize(rows))
        return images, state, self.words[frames.instruction[chosen]], chunk, weights


class _Lesson(nn.Module):
    """The network with its loss, as accelerate wants it: one module that is called."""

    def __init__(self, network: FlowVLANetwork, samples: int) -> None:
        super().__init__()
        self.network, self._samples = network, samples

    def forward(
        self, images: Tensor, state: Tensor, words: Tensor, chunk: Tensor, weights: Tensor, noise: torch.Generator
    ) -> Tensor:
        context: dict[str, Tensor] = {}
        size = self.network.context_size
        if size:  # levels uniform and independent of the noise time (arXiv 2605.12236), as the base was trained
            context = {
                "level": torch.rand(len(state), generator=noise).to(state),
                "context_noise": torch.randn(len(state), size, generator=noise).to(state),
            }
        prefix = self.network.encode(images, state, words, **context)
        mask = weights[:, None].expand(chunk.shape[:2])
        return flow_loss(self.network, prefix, chunk, mask, samples=self._samples, generator=noise)
