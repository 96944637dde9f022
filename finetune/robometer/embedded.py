"""The embedded Robometer's sizes and tokenizer: the published architecture in small numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.robometer.prompt import ASKING_TOKENS, IMAGE_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import Qwen3VLConfig

_END, _TURN_END, _VISION_START, _VISION_END, _VIDEO = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video_pad|>",
)
_SPECIAL = (_END, "<|im_start|>", _TURN_END, _VISION_START, _VISION_END, "<|vision_pad|>", IMAGE_TOKEN, _VIDEO)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The numbers in which a model differs from the published one.

    Attributes:
        image: side of the square frames, a multiple of twice the patch; `patch`: side of a patch, pixels.
        vision_width, vision_layers, vision_heads: of the vision tower; `deepstack`: its layers whose output also enters
            the text layers.
        width, layers, heads, key_value_heads, feed_forward: of the language model, whose heads have 32 dimensions.
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


def make_tokenizer(texts: Iterable[str], sizes: Sizes) -> Any:
    """Train a byte-level tokenizer with Qwen's special tokens, the asking tokens last.

    Args:
        texts: instructions and prompt pieces; bytes that do not occur in them stand for themselves.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.vocabulary - len(ASKING_TOKENS),
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ASKING_TOKENS])
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, eos_token=_TURN_END, pad_token=_END, model_max_length=4096)


def make_config(tokenizer: Any, sizes: Sizes) -> Qwen3VLConfig:
    """Return the Qwen3-VL configuration of these sizes."""
    from transformers import Qwen3VLConfig

    place = tokenizer.convert_tokens_to_ids
    grid = sizes.image // sizes.patch
    vision = {
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
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.width,
        "intermediate_size": sizes.feed_forward,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    }
    return Qwen3VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=place(IMAGE_TOKEN),
        video_token_id=place(_VIDEO),
        vision_start_token_id=place(_VISION_START),
        vision_end_token_id=place(_VISION_END),
        tie_word_embeddings=True,
    )
