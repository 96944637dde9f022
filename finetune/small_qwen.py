"""Qwen3-VL's configuration in small numbers, as the embedded models have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HEAD = 32
"""Dimensions of a head: vLLM's attention on a CPU refuses 16."""


@dataclass(frozen=True, kw_only=True)
class SmallSizes:
    """The numbers in which an embedded model differs from the published ones.

    Attributes:
        image: side of the square images, a multiple of twice the patch; `patch`: side of a patch, pixels.
        vision_width, vision_layers, vision_heads: of the vision tower; `deepstack`: its layers whose output also enters
            the text layers.
        width, layers, heads, key_value_heads, feed_forward: of the language model, whose heads have `HEAD` dimensions.
        vocabulary: most tokens of the tokenizer.
    """

    image: int = 96
    patch: int = 16
    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    deepstack: tuple[int, ...] = (1, 2)
    width: int = 128
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    feed_forward: int = 384
    vocabulary: int = 1024


def vision_config(sizes: SmallSizes) -> dict[str, Any]:
    """Return the vision tower's part of a Qwen3-VL configuration."""
    grid = sizes.image // sizes.patch
    return {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_width,
        "intermediate_size": 2 * sizes.vision_width,
        "num_heads": sizes.vision_heads,
        "patch_size": sizes.patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": sizes.width,
        "num_position_embeddings": grid * grid,
        "deepstack_visual_indexes": list(sizes.deepstack),
    }


def text_config(sizes: SmallSizes, *, vocabulary: int, context: int) -> dict[str, Any]:
    """Return the language model's part.

    Args:
        vocabulary: tokens of the tokenizer; `context`: most tokens of a sequence.
    """
    return {
        "vocab_size": vocabulary,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.feed_forward,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "head_dim": HEAD,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    }
