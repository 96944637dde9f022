"""What of a network is trained, and the one module whose forward reads a step's pairs: what DDP and FSDP wrap."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from models.robometer.adapter import HEADS
from models.robometer.images import patchify

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from models.robometer.network import RobometerNetwork
    from models.robometer.readout import VisionFeatures
    from models.robometer.sequence import Grid, TokenBatch

Mode = Literal["lora", "full"]
Vision = Literal["frozen", "last", "all"]
LAST_VISION_LAYERS = 3
"""Layers of the vision tower that the reference trains where it trains any."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TARGETS = rf"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(PROJECTIONS)})"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Of the seven projections of every layer of the language model; the defaults are the reference's."""

    rank: int = 32
    alpha: int = 64
    dropout: float = 0.05


@dataclass(frozen=True, kw_only=True)
class SameSize:
    """Frames of one size.

    Attributes:
        places: of each in the order of the step; `patches`: see `images.patchify`; `grid`: (rows, columns) of patches.
    """

    places: tuple[int, ...]
    patches: Tensor
    grid: Grid


class PairReader(nn.Module):
    """See frames and read sequences in one forward; returns plain tensors, which is what FSDP can hook.

    Args:
        network: with its adapter, if it has one.
        sees: whether the vision tower is trained, so that gradients must reach it.
    """

    def __init__(self, network: RobometerNetwork, *, sees: bool) -> None:
        super().__init__()
        self.network = network
        self._sees = sees

    def forward(self, batch: TokenBatch, frames: Sequence[SameSize]) -> tuple[Tensor, Tensor, Tensor]:
        """Return progress logits (n, bins), success logits (n,) and preference logits (B,), as `Readout` has them."""
        seen: dict[int, VisionFeatures] = {}
        with nullcontext() if self._sees else torch.no_grad():
            for same in frames:
                seen |= zip(same.places, self.network.see(same.patches, same.grid, len(same.places)), strict=True)
        readout = self.network(batch, [seen[place] for place in range(len(seen))])
        # Copies of what are views: FSDP hooks outputs, and a view that is changed in place would lose its hook.
        return readout.progress, readout.success.clone(), readout.preference.clone()


def same_sizes(frames: Sequence[NDArray[np.uint8]], vision: Any, device: torch.device) -> list[SameSize]:
    """Group a step's frames by size and cut them into patches.

    Args:
        frames: uint8 (h, w, 3), in the order of the step.
        vision: the vision tower's configuration.
    """
    groups: list[SameSize] = []
    for height, width in dict.fromkeys(frame.shape[:2] for frame in frames):
        places = tuple(place for place, frame in enumerate(frames) if frame.shape[:2] == (height, width))
        patches = patchify(
            [frames[place] for place in places],
            patch=vision.patch_size,
            merge=vision.spatial_merge_size,
            temporal=vision.temporal_patch_size,
        )
        grid = (height // vision.patch_size, width // vision.patch_size)
        groups.append(SameSize(places=places, patches=patches.to(device), grid=grid))
    return groups


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """A network made ready.

    Attributes:
        groups: parameter groups of an optimiser, each with its peak rate as `lr`.
        lora: PEFT's configuration, where there is an adapter.
    """

    reader: PairReader
    groups: tuple[dict[str, Any], ...]
    lora: Any = None


def make_lora(network: RobometerNetwork, settings: LoraSettings, *, learning_rate: float) -> Trainable:
    """Put an adapter into a network, in place, and copies of its heads beside them; all else is frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_TARGETS,
        modules_to_save=list(HEADS),
    )
    get_peft_model(network, config)
    return Trainable(
        reader=PairReader(network, sees=False),
        groups=({"params": _trained(network), "lr": learning_rate},),
        lora=config,
    )


def make_full(
    network: RobometerNetwork, vision: Vision, *, learning_rate: float, vision_learning_rate: float
) -> Trainable:
    """Train the weights themselves: language model and heads, and as much of the vision tower as `vision` says."""
    network.requires_grad_(requires_grad=True)
    network.frame_pool_attn.requires_grad_(requires_grad=False)  # no forward reads it, so it never has a gradient
    tower = network.model.visual
    tower.requires_grad_(requires_grad=vision == "all")
    if vision == "last":
        for block in list(tower.blocks)[-LAST_VISION_LAYERS:]:
            block.requires_grad_(requires_grad=True)
    seeing = _trained(tower)
    known = set(map(id, seeing))
    groups: list[dict[str, Any]] = [
        {"params": [part for part in _trained(network) if id(part) not in known], "lr": learning_rate}
    ]
    if seeing:
        groups.append({"params": seeing, "lr": vision_learning_rate})
    return Trainable(reader=PairReader(network, sees=vision != "frozen"), groups=tuple(groups))


def recompute_activations(network: RobometerNetwork) -> None:
    """Keep no activations of layers but compute them again on the way back: less memory, a third more time."""
    network.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
