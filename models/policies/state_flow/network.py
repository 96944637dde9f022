"""A small policy on states: a field over action chunks, told how noisy its chunk and its context are.

For simulators and toys, where an image would only cost time. The network is the action expert of `flow_vla` with a
state in the place of the observation, and, for context-smoothed pre-training (arXiv 2605.12236), the level of the
context's noise beside the noise time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.policies.chunk_field import ChunkField
from models.policies.context_noise import ContextSchedule, noise_slice
from models.policies.flow_vla.network import ResidualBlock
from models.policies.time_features import paired_time_features, time_features

_TIME_FEATURES = 64


@dataclass(frozen=True, kw_only=True)
class StateFlowConfig:
    """Sizes of the network, and what of the state is context.

    Attributes:
        state_size, action_size: of the state and of one action row.
        chunk_length: rows of a chunk (H).
        context: columns of the state, first and one past the last, that context noise is put on; None for a policy
            that was trained without.
        schedule: of the context noise.
        conditioning: how the level is told: "joint" embeds time and level side by side; "quarters" puts both into the
            width of one, so that weights trained on the time alone still load.
        width, blocks: of the field.
    """

    state_size: int
    action_size: int
    chunk_length: int
    context: tuple[int, int] | None = None
    schedule: ContextSchedule = field(default_factory=ContextSchedule)
    conditioning: Literal["joint", "quarters"] = "joint"
    width: int = 128
    blocks: int = 3

    def __post_init__(self) -> None:
        if self.context is not None and not 0 <= self.context[0] < self.context[1] <= self.state_size:
            raise ValueError(f"context: columns {self.context}, must lie within 0 to {self.state_size}")

    @property
    def context_size(self) -> int:
        """Numbers that context noise is put on; 0 without."""
        return 0 if self.context is None else self.context[1] - self.context[0]


class StatePrefix(NamedTuple):
    """What the field needs of an observation: the state, its context noised (B, state), and the noise's level (B,)."""

    state: Tensor
    level: Tensor

    def repeat(self, times: int) -> StatePrefix:
        """Return the prefix with each item repeated `times` times in a row."""
        return StatePrefix(self.state.repeat_interleave(times, dim=0), self.level.repeat_interleave(times, dim=0))


class StateFlowNetwork(ChunkField):
    """A field over action chunks: a flow's velocity, or the noise that a diffusion policy predicts."""

    def __init__(self, config: StateFlowConfig) -> None:
        super().__init__()
        self.config = config
        size = config.chunk_length * config.action_size
        times = 2 * _TIME_FEATURES if config.context is not None and config.conditioning == "joint" else _TIME_FEATURES
        self.state = _two_layers(config.state_size, config.width)
        self.time = _two_layers(times, config.width)
        self.enter = nn.Linear(size, config.width)
        self.blocks = nn.ModuleList(ResidualBlock(config.width, config.width) for _ in range(config.blocks))
        self.leave = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, size))

    @property
    def sizes(self) -> StateFlowConfig:
        """Its sizes."""
        return self.config

    def encode(self, state: Tensor, *, level: Tensor | None = None, context_noise: Tensor | None = None) -> StatePrefix:
        """Noise the context once, for all steps of the chain; states are normalised ones."""
        config = self.config
        if config.context is None:
            if level is not None or context_noise is not None:
                raise ValueError("context_level: this policy was trained without context noise")
            return StatePrefix(state, state.new_zeros(len(state)))
        if level is None or context_noise is None:
            raise ValueError("context_level, context_noise: both must be given to a policy trained with context noise")
        start, stop = config.context
        return StatePrefix(noise_slice(state, start, stop, level, context_noise, config.schedule), level)

    def velocity(self, prefix: StatePrefix, noisy: Tensor, time: Tensor) -> Tensor:
        """Return the velocity, or the noise that a diffusion policy predicts."""
        condition = functional.silu(self.state(prefix.state) + self.time(self._times(time, prefix.level)))
        condition = condition.reshape(len(condition), *[1] * (noisy.dim() - 3), -1)
        hidden = self.enter(noisy.flatten(-2))
        for block in self.blocks:
            hidden = block(hidden, condition)
        velocity: Tensor = self.leave(hidden).reshape(noisy.shape)
        return velocity

    def _times(self, time: Tensor, level: Tensor) -> Tensor:
        if self.config.context is None:
            return time_features(time, _TIME_FEATURES)
        if self.config.conditioning == "quarters":
            return paired_time_features(time, level, _TIME_FEATURES)
        return torch.cat([time_features(time, _TIME_FEATURES), time_features(level, _TIME_FEATURES)], dim=-1)


def _two_layers(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
