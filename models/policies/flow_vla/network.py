"""The network: an observation encoder (images, state, words) and an action expert that it conditions.

The observation is encoded once; each integration step runs the expert alone. Sized for CPU cores without matrix units:
the expert sees the chunk as one vector, which costs about a tenth of a transformer over its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.policies.context_noise import ContextSchedule, noise_feature
from models.policies.time_features import paired_time_features, time_features

_TIME_FEATURES = 64


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of the network.

    Attributes:
        cameras: number of camera images of an observation.
        image_size: side of the square images, a multiple of 16.
        state_size, action_size: dimensions of the state and of one action row.
        chunk_length: rows of a chunk (H).
        word_buckets, words: ids of the tokenizer and words of an instruction.
        channels: of the three convolution stages.
        keypoints: soft keypoints of each of the first two stages; they localise things to a fraction of a pixel.
        text_width: of the instruction's vector.
        summary: of the observation's vector, which is all that the expert sees.
        width, blocks: of the expert.
        context: schedule of the noise on what was seen and read (context-smoothed pre-training, arXiv 2605.12236); the
            expert is told its level beside the noise time. None for a network that was trained without. The state is
            never noised.
    """

    cameras: int
    image_size: int = 64
    state_size: int
    action_size: int
    chunk_length: int = 16
    word_buckets: int = 1024
    words: int = 16
    channels: tuple[int, int, int] = (32, 64, 64)
    keypoints: int = 32
    text_width: int = 128
    summary: int = 256
    width: int = 384
    blocks: int = 3
    context: ContextSchedule | None = None

    @property
    def image_features(self) -> int:
        """Numbers that describe one image."""
        return 4 * self.keypoints + self.channels[-1] * (self.image_size // 16) ** 2

    @property
    def features(self) -> int:
        """Numbers of all that is known of an observation."""
        return self.cameras * self.image_features + self.state_size + self.text_width

    def __post_init__(self) -> None:
        if self.image_size < 16 or self.image_size % 16:
            raise ValueError(f"image_size: {self.image_size}, must be a multiple of 16")
        if any(channels % 8 for channels in self.channels):
            raise ValueError(f"channels: {self.channels}, must be multiples of 8")


class Prefix(NamedTuple):
    """What the expert needs of an observation: its summary (B, summary), and the level of the context's noise (B,)."""

    summary: Tensor
    level: Tensor | None = None

    def repeat(self, times: int) -> Prefix:
        """Return the prefix with each item repeated `times` times in a row."""
        level = None if self.level is None else self.level.repeat_interleave(times, dim=0)
        return Prefix(self.summary.repeat_interleave(times, dim=0), level)


def prefix_of(
    config: NetworkConfig,
    summary: nn.Module,
    features: Tensor,
    *,
    level: Tensor | None = None,
    context_noise: Tensor | None = None,
) -> Prefix:
    """Return what the expert needs of features (B, features) as `FlowVLANetwork.features` gives them.

    Args:
        summary: the network's. `level`, `context_noise`: as in `FlowVLANetwork.encode`.

    Raises:
        ValueError: the one without the other, or noise that this network knows nothing of.
    """
    if config.context is None:
        if level is not None or context_noise is not None:
            raise ValueError("context_level: this policy was trained without context noise")
        return Prefix(summary(features))
    if level is None or context_noise is None:
        raise ValueError("context_level, context_noise: both must be given to a policy trained with context noise")
    *cameras, words = _context_parts(config)
    *seen, state, instruction = torch.split(features, [*cameras, config.state_size, words], dim=-1)
    noises = torch.split(context_noise, [*cameras, words], dim=-1)
    noised = [
        noise_feature(feature, level, noise, config.context)
        for feature, noise in zip([*seen, instruction], noises, strict=True)
    ]
    return Prefix(summary(torch.cat([*noised[:-1], state, noised[-1]], dim=-1)), level)


def _context_parts(config: NetworkConfig) -> list[int]:
    """Return the numbers of each feature that is noised on its own: one for each camera, one for the words."""
    return [config.image_features] * config.cameras + [config.text_width]


class FlowVLANetwork(nn.Module):
    """Velocity field over action chunks, conditioned on an observation."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.words = WordEncoder(config)
        self.vision = VisionEncoder(config)
        self.summary = nn.Sequential(
            nn.Linear(config.features, 2 * config.summary),
            nn.LayerNorm(2 * config.summary),
            nn.SiLU(),
            nn.Linear(2 * config.summary, config.summary),
        )
        self.expert = ActionExpert(config)

    @property
    def context_size(self) -> int:
        """Numbers of context noise: those of all cameras' features and of the instruction's vector; 0 without."""
        return 0 if self.config.context is None else sum(_context_parts(self.config))

    def encode(
        self,
        images: Tensor,
        state: Tensor,
        words: Tensor,
        *,
        level: Tensor | None = None,
        context_noise: Tensor | None = None,
    ) -> Prefix:
        """Encode observations.

        Args:
            images: (B, cameras, 3, S, S) in [-1, 1].
            state: (B, state_size), normalised.
            words: int64 (B, words).
            level: (B,) in [0, 1]; `context_noise`: (B, context size), standard normal. Both, or neither for a network
                that was trained without.

        Raises:
            ValueError: the one without the other, or noise that this network knows nothing of.
        """
        features = self.features(images, state, words)
        return prefix_of(self.config, self.summary, features, level=level, context_noise=context_noise)

    def features(self, images: Tensor, state: Tensor, words: Tensor) -> Tensor:
        """Return all that is known of observations, (B, features): of each camera, the state, the instruction."""
        batch, cameras = images.shape[:2]
        instruction = self.words(words)
        seen = self.vision(images.flatten(0, 1), instruction.repeat_interleave(cameras, dim=0)).reshape(batch, -1)
        return torch.cat([seen, state, instruction], dim=-1)

    def velocity(self, prefix: Prefix, noisy: Tensor, time: Tensor) -> Tensor:
        """Return the velocity noise - action at noise time `time`, (B, H, action_size).

        Args:
            noisy: (B, H, action_size), time * noise + (1 - time) * action; or (B, G, H, action_size), G chunks of each
                observation at the same time.
            time: (B,) in [0, 1]; 1 is pure noise.
        """
        velocity: Tensor = self.expert(prefix, noisy, time)
        return velocity


class WordEncoder(nn.Module):
    """Words to one vector for the instruction: the mean of their embeddings, through a small network."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.word_buckets + 1, config.text_width // 2, padding_idx=0)
        self.mix = _two_layers(config.text_width // 2, config.text_width, config.text_width)

    def forward(self, words: Tensor) -> Tensor:
        """Return (B, text_width)."""
        kept = (words != 0)[..., None].to(self.embedding.weight.dtype)
        vector: Tensor = self.mix((self.embedding(words) * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1))
        return vector


class VisionEncoder(nn.Module):
    """Convolutions that the instruction modulates (FiLM, Perez et al. 2018) to keypoints and coarse features.

    Keypoints are spatial soft arg-max coordinates (Finn et al. 2016) in [-1, 1], at strides 4 and 8.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        fine, coarse, last = config.channels
        self.stem = _convolution(3, fine, kernel=8, stride=4)
        self.fine = FiLMBlock(fine, config.text_width)
        self.down = _convolution(fine, coarse, kernel=3, stride=2)
        self.coarse = FiLMBlock(coarse, config.text_width)
        self.last = _convolution(coarse, last, kernel=3, stride=2)
        self.fine_keypoints = SoftKeypoints(fine, config.keypoints, config.image_size // 4)
        self.coarse_keypoints = SoftKeypoints(coarse, config.keypoints, config.image_size // 8)

    def forward(self, images: Tensor, instruction: Tensor) -> Tensor:
        """Return (B, features) for images (B, 3, S, S)."""
        fine = self.fine(self.stem(images), instruction)
        coarse = self.coarse(self.down(fine), instruction)
        points = [self.fine_keypoints(fine), self.coarse_keypoints(coarse)]
        return torch.cat([*points, self.last(coarse).flatten(1)], dim=-1)


class SoftKeypoints(nn.Module):
    """Where each learned map is brightest on average: (B, channels, side, side) to (B, 2 * keypoints)."""

    grid: Tensor

    def __init__(self, channels: int, keypoints: int, side: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, keypoints, 1)
        axis = torch.linspace(-1.0, 1.0, side)
        rows, columns = torch.meshgrid(axis, axis, indexing="ij")
        self.register_buffer("grid", torch.stack([columns.flatten(), rows.flatten()], dim=-1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return coordinates in [-1, 1]."""
        attention = self.maps(features).flatten(2).float().softmax(dim=-1).to(self.grid.dtype)
        points: Tensor = (attention @ self.grid).flatten(1)
        return points


class FiLMBlock(nn.Module):
    """A residual convolution whose channels are scaled and shifted by a condition."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, channels)
        self.film = nn.Linear(condition, 2 * channels)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Return features (B, channels, side, side) for a condition (B, condition)."""
        scale, shift = self.film(condition)[..., None, None].chunk(2, dim=1)
        return features + functional.silu(self.norm(self.conv(features)) * (1 + scale) + shift)


class ActionExpert(nn.Module):
    """A noisy chunk, as one vector, to its velocity; residual blocks modulated by observation and time."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        size = config.chunk_length * config.action_size
        self.time = _two_layers(_TIME_FEATURES, config.text_width, config.summary)
        self.enter = nn.Linear(size, config.width)
        self.blocks = nn.ModuleList(ResidualBlock(config.width, config.summary) for _ in range(config.blocks))
        self.leave = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, size))

    def forward(self, prefix: Prefix, noisy: Tensor, time: Tensor) -> Tensor:
        """Return the velocity, of `noisy`'s shape."""
        if prefix.level is None:
            told = time_features(time, _TIME_FEATURES)
        else:
            told = paired_time_features(time, prefix.level, _TIME_FEATURES)
        condition = functional.silu(prefix.summary + self.time(told.to(noisy.dtype)))
        condition = condition.reshape(len(condition), *[1] * (noisy.dim() - 3), -1)
        hidden = self.enter(noisy.flatten(-2))
        for block in self.blocks:
            hidden = block(hidden, condition)
        velocity: Tensor = self.leave(hidden).reshape(noisy.shape)
        return velocity


class ResidualBlock(nn.Module):
    """Two layers whose normalised input is scaled and shifted by a condition."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.film = nn.Linear(condition, 2 * width)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """Return (B, width)."""
        scale, shift = self.film(condition).chunk(2, dim=-1)
        moved: Tensor = hidden + self.second(functional.silu(self.first(self.norm(hidden) * (1 + scale) + shift)))
        return moved


def _convolution(inputs: int, outputs: int, *, kernel: int, stride: int) -> nn.Sequential:
    padding = (kernel - stride) // 2 if kernel % 2 == 0 else kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(8, outputs), nn.SiLU())


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))
