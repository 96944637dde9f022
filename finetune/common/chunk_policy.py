"""A generative policy that is trained further: what several networks of one checkpoint have in common.

A checkpoint is a policy on states, or an embedded VLA, whose action head is then one on what its encoder knows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from finetune.common.device import CPU, tensor
from models.policies.denoising import chain_log_prob, sample_chain, step_log_probs, whole_score
from models.policies.flow_vla.flow import integrate
from models.policies.flow_vla.head import ActionHead, HeadPolicyConfig, is_vla, load_head, save_head
from models.policies.state_flow.checkpoint import StatePolicyConfig, load_state_policy, save_state_policy
from models.policies.state_flow.network import StateFlowNetwork

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from models.policies.chunk_field import ChunkField, FieldSizes
    from models.policies.denoising import Chain, DiffusionSteps, FlowSteps
    from models.policies.flow_vla.flow import Field
    from models.policies.flow_vla.head import ViewEncoder


@dataclass(frozen=True, kw_only=True)
class ChunkPolicy:
    """How a network of a checkpoint acts. States (N, S) are always normalised ones.

    Attributes:
        config: the checkpoint's.
        steps: the chain that is drawn and scored; the checkpoint's own, or one with other noise.
        content_hash: of the checkpoint.
        encoder: of a VLA: what makes states of what a robot sees; None for a policy on states.
        recompute: when chains are scored, keep nothing of a step's inside and compute it again for the gradient: memory
            for one step in the place of a chain's, for a second forward of each (activation checkpointing).
        device: where its networks compute.
    """

    config: StatePolicyConfig | HeadPolicyConfig
    steps: FlowSteps | DiffusionSteps
    content_hash: str
    encoder: ViewEncoder | None = None
    recompute: bool = False
    device: torch.device = CPU

    @property
    def sizes(self) -> FieldSizes:
        """Of the network."""
        return self.config.network

    @property
    def chunk(self) -> tuple[int, int]:
        """Rows and columns of a chunk (H, A)."""
        return self.config.network.chunk_length, self.config.network.action_size

    @property
    def size(self) -> int:
        """Numbers of a chunk."""
        return self.config.network.chunk_length * self.config.network.action_size

    def seen(self, states: NDArray[np.float32]) -> Tensor:
        """Return states (N, S), as the environment gives them, as the policy reads them."""
        return self.config.normalize(tensor(states, self.device))

    def field(self, network: ChunkField, states: Tensor) -> Field:
        """Bind a network to states (N, S); the field then takes N * G chunks, the G of each state in a row.

        A policy with context noise sees its context clean.
        """
        prefix = network.clean(states)

        def field(moving: Tensor, time: Tensor) -> Tensor:
            grouped = moving.reshape(len(states), -1, *moving.shape[1:])
            return network.velocity(prefix, grouped, time.reshape(len(states), -1)[:, 0]).reshape(moving.shape)

        return field

    def draw(self, network: ChunkField, states: Tensor, generator: torch.Generator, *, group: int = 1) -> Chain:
        """Draw `group` chains for each of N states, those of a state in a row."""
        noise = torch.randn(len(states) * group, *self.chunk, generator=generator).to(states)
        with torch.no_grad():
            return sample_chain(self.steps, self.field(network, states), noise, generator=generator)

    def played(self, chain: Chain) -> Tensor:
        """Return the chunks of chains (N, H, A) as they are played, in [-1, 1]."""
        return self.config.restore(chain.actions).clamp(-1.0, 1.0)

    def score(self, network: ChunkField, states: Tensor, chain: Chain, *, normalised: bool = True) -> Tensor:
        """Return the log-likelihood of chains as `draw` gives them, (N * group,), differentiable."""
        return chain_log_prob(self.steps, self._scored(network, states), chain, normalised=normalised)

    def step_scores(self, network: ChunkField, states: Tensor, chain: Chain) -> Tensor:
        """Return the log-likelihood of each scored step, (scored steps, N * group), differentiable."""
        return step_log_probs(self.steps, self._scored(network, states), chain)

    def _scored(self, network: ChunkField, states: Tensor) -> Field:
        field = self.field(network, states)
        if not self.recompute:
            return field

        def again(moving: Tensor, time: Tensor) -> Tensor:
            said: Tensor = checkpoint(field, moving, time, use_reentrant=False)
            return said

        return again

    def whole(self, chain: Chain, *, normalised: bool = True) -> Tensor:
        """Return the log-likelihood of chains under the network that drew them, (N * group,)."""
        return whole_score(chain.scores, chain, normalised=normalised)

    def decode(self, network: ChunkField, states: Tensor, noise: Tensor) -> Tensor:
        """Return what the flow ends in, as it is played, (N, H, A), without noise on the way; differentiable in both.

        Raises:
            ValueError: the policy is a diffusion's.
        """
        if not hasattr(self.steps, "correction"):
            raise ValueError("denoising: only a flow can be followed without noise")
        ends = integrate(self.field(network, states), noise, steps=self.steps.steps)
        return self.config.restore(ends).clamp(-1.0, 1.0)

    def cloning_loss(
        self, network: ChunkField, states: Tensor, chunks: Tensor, played: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the mean squared error of what the network says of noised chunks, a scalar.

        Args:
            chunks: (N, H, A), as they were played; `played`: (N, H), 1 for the rows that count.
        """
        lesson = self.steps.lesson(self.config.fit(chunks), generator=generator)
        said = self.field(network, states)(lesson.noisy, lesson.time)
        error = (said - lesson.target).square().mean(dim=-1)
        return (error * played).sum() / played.sum()

    def save(self, folder: Path, network: ChunkField, *, card: str) -> None:
        """Write a checkpoint that is served like the one it came from."""
        if isinstance(self.config, HeadPolicyConfig) and isinstance(network, ActionHead) and self.encoder is not None:
            save_head(folder, self.config, network, self.encoder, card=card)
        elif isinstance(self.config, StatePolicyConfig) and isinstance(network, StateFlowNetwork):
            save_state_policy(folder, replace(self.config, denoising=self.steps), network, card=card)
        else:
            raise TypeError(f"network: {type(network).__name__}, is not of this policy")


def load_chunk_policy(
    folder: Path,
    steps: FlowSteps | DiffusionSteps | None = None,
    *,
    execute: int | None = None,
    recompute: bool = False,
    device: torch.device = CPU,
) -> tuple[ChunkPolicy, ChunkField]:
    """Return policy and network of a checkpoint folder.

    Args:
        steps: another chain than the checkpoint's; of its kind. `execute`: rows to play of a chunk, if others than the
            checkpoint's. `recompute`, `device`: see `ChunkPolicy`.

    Raises:
        ValueError: a chain of the other kind, rows that a chunk does not have, or as the checkpoint's loader.
    """
    config: StatePolicyConfig | HeadPolicyConfig
    network: ChunkField
    encoder: ViewEncoder | None = None
    if is_vla(folder):
        config, network, encoder, content_hash = load_head(folder, execute=execute)
        encoder = encoder.to(device)
    else:
        config, network, content_hash = load_state_policy(folder)
        config = config if execute is None else replace(config, execute=execute)
    if steps is not None and type(steps) is not type(config.denoising):
        kinds = type(steps).__name__, type(config.denoising).__name__
        raise ValueError(f"denoising: {kinds[0]}, but the policy was trained for {kinds[1]}")
    policy = ChunkPolicy(
        config=config,
        steps=steps or config.denoising,
        content_hash=content_hash,
        encoder=encoder,
        recompute=recompute,
        device=device,
    )
    return policy, network.to(device)
