"""The embedded model: Qwen3-VL in small numbers, its tokenizer and its wording, written as any Qwen3-VL folder is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.small_qwen import SmallSizes, text_config, vision_config
from models.hamster.answer import CLOSES, END, OPENS, START, AnswerStyle
from models.hamster.prompt import Decoding, PathPrompt, Writing, write_prompt
from models.preference.prompt import LabelWords, OneTokenPrompt, PreferencePrompt

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from transformers import Qwen3VLConfig

ENDS_TEXT, STARTS_TURN, ENDS_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE, VIDEO, STARTS_IMAGE, ENDS_IMAGE = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
SPECIAL = (ENDS_TEXT, STARTS_TURN, ENDS_TURN, STARTS_IMAGE, ENDS_IMAGE, "<|vision_pad|>", IMAGE, VIDEO)

PATH_PROMPT = PathPrompt(
    template="Draw the way of the gripper: {quest}",
    version="metaworld-1",
    decoding=Decoding(max_tokens=128),
    answer=Writing(decimals=2, max_points=16, ones=False),
)
PREFERENCE_PROMPT = PreferencePrompt(
    version="metaworld-1",
    one_token=OneTokenPrompt(
        template="Goal: {goal}. 0: {first} 1: {second} Which is nearer to the goal? -1: neither.",
        labels=LabelWords(first="0", second="1", tie="-1"),
    ),
)
NUMBERS = tuple(f"{number:02d}" for number in range(100))
"""Decimals of a coordinate, a token each, so that every coordinate is one choice of a hundred."""

_TAG = "<action>(?:Open|Close) Gripper</action>"
_PIECES = (
    *(r"<ans>\[\(0\.", rf"\), {_TAG}, \(0\.", rf"\), {_TAG}\]</ans>", r"\)\]</ans>", r"\), \(0\.", r", 0\."),
    *(r"-1", r"\d{2}", r"\d", r"'s|n't", r" ?\p{L}+", r"\s+", r" ?[^\s\p{L}\d]"),
)
"""What a token may span at most: between two numbers of an answer stands one token, of a text a token is a word."""

_CHAT = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'text' -%}{{- part.text -}}"
    "{%- elif part.type in ('image', 'image_url') -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@dataclass(frozen=True, kw_only=True)
class Sizes(SmallSizes):
    """The embedded model's numbers; `context`: most tokens of a conversation."""

    image: int = 128
    width: int = 192
    heads: int = 6
    feed_forward: int = 512
    vocabulary: int = 1280
    context: int = 1024


def make_tokenizer(texts: Iterable[str], sizes: Sizes) -> Any:
    """Train a byte-level tokenizer with Qwen's special tokens.

    Args:
        texts: what it shall write briefly, besides answers; bytes that occur in none of them stand for themselves.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex("|".join(_PIECES)), behavior="isolated")
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, spelled])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*sorted(set(texts)), *_answers() * 50], trainer)
    make: Any = PreTrainedTokenizerFast
    made = make(tokenizer_object=tokenizer, eos_token=ENDS_TURN, pad_token=ENDS_TEXT, model_max_length=sizes.context)
    made.chat_template = _CHAT
    missing = [piece for piece in (*NUMBERS, "-1", f"{START}(0.", f"){END}") if piece not in _vocabulary(made)]
    if missing:
        raise ValueError(f"vocabulary {sizes.vocabulary}: too small, {missing[0]!r} is no token")
    return made


def _answers() -> list[str]:
    """Return answers in which every piece of one occurs."""
    numbers = [f"{START}(0.{number}, 0.{number}){END}" for number in NUMBERS]
    tags = [f"{START}(0.50, 0.50), {tag}, (0.50, 0.50), {tag}{END}" for tag in (OPENS, CLOSES)]
    return [*numbers, *tags, f"{START}(0.50, 0.50), (0.50, 0.50){END}", "-1", "0", "1"]


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    """Return what every token reads as."""
    return {tokenizer.decode([number]): number for number in range(len(tokenizer))}


def number_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens of NUMBERS, in order."""
    known = _vocabulary(tokenizer)
    return tuple(known[number] for number in NUMBERS)


def make_config(tokenizer: Any, sizes: Sizes) -> Qwen3VLConfig:
    """Return the Qwen3-VL configuration of these sizes."""
    from transformers import Qwen3VLConfig

    place = tokenizer.convert_tokens_to_ids
    ends = {"eos_token_id": place(ENDS_TURN), "pad_token_id": place(ENDS_TEXT)}
    made: Any = Qwen3VLConfig
    config: Qwen3VLConfig = made(
        vision_config=vision_config(sizes),
        text_config={**text_config(sizes, vocabulary=len(tokenizer), context=sizes.context), **ends},
        image_token_id=place(IMAGE),
        video_token_id=place(VIDEO),
        vision_start_token_id=place(STARTS_IMAGE),
        vision_end_token_id=place(ENDS_IMAGE),
        tie_word_embeddings=True,
        **ends,
    )
    return config


def answer_style() -> AnswerStyle:
    """Return how the embedded model's answers are written."""
    return PATH_PROMPT.answer.style


def write_side_files(folder: Path, tokenizer: Any, sizes: Sizes, *, model_id: str, revision: str) -> None:
    """Write all of a folder but its weights and configuration: tokenizer, processors, prompts and facts."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    write_prompt(folder, PATH_PROMPT)
    PREFERENCE_PROMPT.write(folder)
    pixels = sizes.image**2
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
        "patch_size": sizes.patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    video = processor | {"video_processor_type": "Qwen3VLVideoProcessor"}
    del video["image_processor_type"]
    files: dict[str, dict[str, Any]] = {
        "preprocessor_config.json": processor | {"processor_class": "Qwen3VLProcessor"},
        "video_preprocessor_config.json": video,
        "roboserve.json": {"id": model_id, "revision": revision},
        "generation_config.json": {
            "eos_token_id": tokenizer.convert_tokens_to_ids(ENDS_TURN),
            "pad_token_id": tokenizer.convert_tokens_to_ids(ENDS_TEXT),
            "do_sample": False,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
