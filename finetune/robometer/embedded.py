"""The embedded Robometer's sizes and tokenizer: the published architecture in small numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.small_qwen import SmallSizes as Sizes
from finetune.small_qwen import text_config, vision_config
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
_CONTEXT = 4096
_SPECIAL = (_END, "<|im_start|>", _TURN_END, _VISION_START, _VISION_END, "<|vision_pad|>", IMAGE_TOKEN, _VIDEO)


__all__ = ["Sizes", "make_config", "make_tokenizer"]


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
    return make(tokenizer_object=tokenizer, eos_token=_TURN_END, pad_token=_END, model_max_length=_CONTEXT)


def make_config(tokenizer: Any, sizes: Sizes) -> Qwen3VLConfig:
    """Return the Qwen3-VL configuration of these sizes."""
    from transformers import Qwen3VLConfig

    place = tokenizer.convert_tokens_to_ids
    return Qwen3VLConfig(
        vision_config=vision_config(sizes),
        text_config=text_config(sizes, vocabulary=len(tokenizer), context=_CONTEXT),
        image_token_id=place(IMAGE_TOKEN),
        video_token_id=place(_VIDEO),
        vision_start_token_id=place(_VISION_START),
        vision_end_token_id=place(_VISION_END),
        tie_word_embeddings=True,
    )
