"""Robometer's network: Qwen3-VL without its language-model head, and three small heads on the tokens that ask.

The parameter names are those of the published checkpoints (github.com/robometer/robometer), so that a folder in their
layout loads with no missing and no unexpected key. Sizes come from the configuration: the embedded model differs from
the 4B one in numbers only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, Qwen3VLConfig, Qwen3VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from models.robometer.readout import BINS, Readout, VisionFeatures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.robometer.alike import Tree
    from models.robometer.sequence import TokenBatch

DROPOUT = 0.1


class RobometerNetwork(nn.Module):
    """The backbone and its heads.

    Args:
        config: a Qwen3-VL configuration.
        bins: progress bins over [0, 1].
    """

    def __init__(self, config: Qwen3VLConfig, *, bins: int = BINS) -> None:
        super().__init__()
        self.config = config
        text: Any = config.text_config
        hidden: int = text.hidden_size
        self.model: Any = Qwen3VLModel(config)  # type: ignore[no-untyped-call]
        fast_patches(self.model.visual)
        self.progress_head = _head(hidden, bins)
        self.preference_head = _head(hidden, 1)
        self.success_head = _head(hidden, 1)
        # Part of every published checkpoint, whether its configuration pools frames or reads tokens, as ours does.
        self.frame_pool_attn = nn.Linear(hidden, 1, bias=False)

    def see(self, patches: Tensor, grid: tuple[int, int], frames: int) -> list[VisionFeatures]:
        """Run the vision tower on frames of one size.

        Args:
            patches: (frames x rows x columns, channels x temporal patch x patch x patch), see `images.patchify`.
            grid: (rows, columns) of patches of one frame.
            frames: how many there are.
        """
        sizes = torch.tensor([[1, *grid]] * frames, device=patches.device)
        seen = self.model.visual(patches.to(self.model.visual.dtype), grid_thw=sizes)
        merge = self.model.visual.spatial_merge_size
        merged = (grid[0] // merge, grid[1] // merge)
        layers = torch.stack([seen.pooler_output, *seen.deepstack_features])
        return [VisionFeatures(layers=part, grid=merged) for part in torch.split(layers, merged[0] * merged[1], dim=1)]

    def forward(self, batch: TokenBatch, frames: Sequence[VisionFeatures]) -> Readout:
        """Read sequences.

        Args:
            batch: token ids and positions.
            frames: the features of every image of the batch, in order.
        """
        hidden = self.model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            mm_encoder_outputs={"image": _images(frames)},
            use_cache=False,
        ).last_hidden_state
        asked = hidden[batch.progress_at]
        return Readout(
            progress=self.progress_head(asked),
            success=self.success_head(asked).squeeze(-1),
            preference=self.preference_head(hidden[batch.preference_at]).squeeze(-1),
            counts=batch.counts,
        )

    def read(self, tree: Tree) -> Readout:
        """Read sequences that begin alike, level by level; the outputs are in the order of its members."""
        device = self.frame_pool_attn.weight.device
        text: Any = self.config.text_config
        cache = DynamicCache(config=text)
        asked: list[Tensor] = []
        place = 0
        for depth, level in enumerate(tree.levels):
            nodes, tokens = level.ids.shape
            place += tokens
            if depth:
                cache.batch_select_indices(torch.from_numpy(level.parents).to(device))
            hidden = self.model(
                input_ids=torch.from_numpy(level.ids).to(device),
                attention_mask=torch.ones(nodes, place, dtype=torch.int64, device=device),
                position_ids=torch.from_numpy(level.positions).to(device),
                past_key_values=cache,
                mm_encoder_outputs={"image": _images(level.frames)},
                use_cache=True,
            ).last_hidden_state
            asked.append(hidden[:, -1][torch.from_numpy(tree.paths[:, depth]).to(device)])
        chosen = torch.stack(asked, dim=1).flatten(0, 1)
        return Readout(
            progress=self.progress_head(chosen),
            success=self.success_head(chosen).squeeze(-1),
            preference=chosen.new_empty(0),
            counts=(len(tree.levels),) * len(tree.members),
        )


def fast_patches(visual: Any) -> None:
    """Make a Qwen3-VL vision tower project its patches by a matrix product, in place; its weights stay."""
    visual.patch_embed.proj.__class__ = _PatchProjection  # and not a new one, whose weights would be drawn anew


class _PatchProjection(nn.Conv3d):
    """A convolution over single patches, which is a matrix product: twice as fast as one, and the same parameters."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as torch names it
        weight = self.weight.flatten(1)
        return nn.functional.linear(input.flatten(1), weight, self.bias).view(len(input), -1, 1, 1, 1)


def _images(frames: Sequence[VisionFeatures]) -> Any:
    """Return the features of a forward's images, in order, as transformers passes them on."""
    layers = torch.cat([frame.layers for frame in frames], dim=1)
    made: Any = BaseModelOutputWithDeepstackFeatures
    return made(pooler_output=(layers[0],), deepstack_features=[(layer,) for layer in layers[1:]])


def _head(hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(hidden, hidden // 2),
        nn.LayerNorm(hidden // 2),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(hidden // 2, outputs),
    )
