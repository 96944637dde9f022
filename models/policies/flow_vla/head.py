"""An embedded VLA in two: what it sees, which stays as it is, and the action head, which is trained or steered.

Methods that improve a policy by acting look at the same observation hundreds of times. Images and words are therefore
encoded once, when they are seen, and what is known of them then takes the place of a state: to a method the head is a
policy on states.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from models.policies.chunk_field import ChunkField
from models.policies.denoising import FlowSteps
from models.policies.flow_vla.checkpoint import CONFIG, FORMAT, load_checkpoint, save_checkpoint
from models.policies.flow_vla.network import prefix_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from models.policies.contract import CameraSpec, PolicySpec
    from models.policies.flow_vla.checkpoint import CheckpointConfig
    from models.policies.flow_vla.network import FlowVLANetwork, Prefix


@dataclass(frozen=True, kw_only=True)
class HeadSizes:
    """What a head reads and gives: features of an observation (S), rows of a chunk (H) and of an action (A)."""

    state_size: int
    action_size: int
    chunk_length: int
    context_size: int


class ActionHead(ChunkField):
    """Summary and action expert of a network, on features that were encoded before.

    Args:
        network: its modules are shared, not copied; a deep copy of the head is a head of its own.
    """

    def __init__(self, network: FlowVLANetwork) -> None:
        super().__init__()
        sizes = network.config
        self._own = HeadSizes(
            state_size=sizes.features,
            action_size=sizes.action_size,
            chunk_length=sizes.chunk_length,
            context_size=network.context_size,
        )
        self._whole = sizes
        self.summary, self.expert = network.summary, network.expert

    @property
    def sizes(self) -> HeadSizes:
        """Its sizes."""
        return self._own

    def encode(self, state: Tensor, *, level: Tensor | None = None, context_noise: Tensor | None = None) -> Prefix:
        """Return what the expert needs of features (B, S); noise is as in `FlowVLANetwork.encode`."""
        return prefix_of(self._whole, self.summary, state, level=level, context_noise=context_noise)

    def told(self, features: Tensor) -> Tensor:
        """Return what an agent that steers it is told: the summary without context noise, and the state, (B, L)."""
        start = self._whole.cameras * self._whole.image_features
        return torch.cat([self.clean(features).summary, features[:, start : start + self._whole.state_size]], dim=1)

    def velocity(self, prefix: Prefix, noisy: Tensor, time: Tensor) -> Tensor:
        """Return the velocity; see `FlowVLANetwork.velocity`."""
        velocity: Tensor = self.expert(prefix, noisy, time)
        return velocity


@dataclass(frozen=True, kw_only=True)
class HeadPolicyConfig:
    """A checkpoint's head as a policy on states, with the interface of `StatePolicyConfig`.

    Attributes:
        checkpoint: the VLA's configuration. `network`: sizes of its head.
        execute: rows of a chunk that are played before the next.
        denoising: the chain.
    """

    checkpoint: CheckpointConfig
    network: HeadSizes
    execute: int
    denoising: FlowSteps = field(default_factory=FlowSteps)

    @property
    def id(self) -> str:
        """Name of the VLA."""
        return self.checkpoint.id

    def normalize(self, state: Tensor) -> Tensor:
        """Return features as they are: the encoder has normalised the robot's state."""
        return state

    def restore(self, chunks: Tensor) -> Tensor:
        """Return chunks of the network (..., H, A) in the scale of the robot's actions."""
        scale = self.checkpoint.action_normalizer
        return chunks * chunks.new_tensor(scale.std) + chunks.new_tensor(scale.mean)

    def spec(self, content_hash: str, *, control_hz: float, integration_steps: int) -> PolicySpec:  # noqa: ARG002
        """Return the VLA's contract with its own rate, which its checkpoint knows, and these Euler steps and rows."""
        spec = self.checkpoint.spec(content_hash, context_size=self.network.context_size)
        return replace(spec, execute=self.execute, integration_steps=integration_steps)

    def fit(self, chunks: Tensor) -> Tensor:
        """Return what `restore` would make these actions (..., H, A) of."""
        scale = self.checkpoint.action_normalizer
        return (chunks - chunks.new_tensor(scale.mean)) / chunks.new_tensor(scale.std)


class ViewEncoder:
    """What a VLA knows of an observation before it acts: features of its images, its state, its instruction.

    Args:
        network: is copied, so that training a head leaves the encoder as it is.
    """

    def __init__(self, config: CheckpointConfig, network: FlowVLANetwork) -> None:
        self.config = config
        self.network = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
        self._words: dict[str, Tensor] = {}

    @property
    def cameras(self) -> tuple[CameraSpec, ...]:
        """What it needs."""
        return self.config.cameras

    @property
    def size(self) -> int:
        """Numbers of what is known."""
        return self.network.config.features

    def to(self, device: torch.device | None) -> ViewEncoder:
        """Return the encoder, which computes there from now on; None leaves it where it is."""
        self.network.to(device)
        self._words.clear()
        return self

    @torch.inference_mode()
    def encode(
        self, images: Mapping[str, NDArray[np.uint8]], state: NDArray[np.float32], instruction: str
    ) -> NDArray[np.float32]:
        """Return the features of one observation, float32 (S,).

        Args:
            images: by camera, uint8 (height, width, 3) as the checkpoint has them. `state`: (state size,), in the
                robot's units.

        Raises:
            ValueError: a camera of the VLA is missing, or an image or the state has another size.
        """
        given = {name: image.shape[:2] for name, image in images.items()}
        wanted = {camera.name: (camera.height, camera.width) for camera in self.cameras}
        if not wanted.items() <= given.items() or state.shape != (self.config.state.size,):
            raise ValueError(
                f"observation: images {given} and a state of {state.shape}; the policy needs {wanted} and a state of "
                f"{(self.config.state.size,)}"
            )
        there = next(self.network.parameters()).device
        taken = torch.from_numpy(np.stack([images[name] for name in wanted])).to(there)
        pixels = taken.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        known = torch.from_numpy(self.config.state_normalizer.normalize(state[None])).to(there)
        seen = self.network.features(pixels[None], known.float(), self._ids(instruction).to(there))
        features: NDArray[np.float32] = seen[0].cpu().numpy()
        return features

    def _ids(self, instruction: str) -> Tensor:
        if instruction not in self._words:
            self._words[instruction] = torch.from_numpy(self.config.tokenizer([instruction]))
        return self._words[instruction]


def is_vla(folder: Path) -> bool:
    """Return whether a checkpoint folder is one of `flow_vla`."""
    try:
        found: object = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def load_head(folder: Path, *, execute: int | None = None) -> tuple[HeadPolicyConfig, ActionHead, ViewEncoder, str]:
    """Return a checkpoint's head as a policy on states, what encodes them, and the checkpoint's content hash.

    Args:
        execute: rows to play of a chunk; None takes the checkpoint's.

    Raises:
        FileNotFoundError, ValueError: see `load_checkpoint`; ValueError also for rows that a chunk does not have.
    """
    config, network, content_hash = load_checkpoint(folder)
    head = ActionHead(network)
    rows = config.inference.execute if execute is None else execute
    if not 1 <= rows <= head.sizes.chunk_length:
        raise ValueError(f"execute: {rows}, must be from 1 to {head.sizes.chunk_length}, the rows of a chunk")
    chain = FlowSteps(steps=config.inference.integration_steps)
    policy = HeadPolicyConfig(checkpoint=config, network=head.sizes, execute=rows, denoising=chain)
    return policy, head, ViewEncoder(config, network), content_hash


def save_head(folder: Path, config: HeadPolicyConfig, head: ActionHead, encoder: ViewEncoder, *, card: str) -> None:
    """Write a checkpoint folder of the VLA whose encoder this is, with this head in the place of its own."""
    network = copy.deepcopy(encoder.network)
    network.summary.load_state_dict(head.summary.state_dict())
    network.expert.load_state_dict(head.expert.state_dict())
    inference = replace(config.checkpoint.inference, execute=config.execute, integration_steps=config.denoising.steps)
    save_checkpoint(folder, replace(config.checkpoint, inference=inference), network, card=card)
