"""A vision-language checkpoint: a folder in the layout that transformers and vLLM read, and its adapters.

- `config.json`, `*.safetensors`, the tokenizer's files with `chat_template.jinja`, `preprocessor_config.json`.
- `roboserve.json` (optional): id and revision; without it a model is called after its folder and its content.
- `adapters/NAME/`: PEFT adapters that come with it (`adapter_config.json`, `adapter_model.safetensors`).
- `path_prompt.json`, `preference_prompt.json`: how the model is asked for paths and preferences.

Weights are read from safetensors only; nothing is fetched, and no code of a folder is run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from models import peft_files
from models.folders import files_hash
from models.vlm.inputs import Composer

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

FAMILIES = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
"""What `config.json` may call its model type here; vLLM serves many more."""
CONFIG, FACTS, ADAPTERS = "config.json", "roboserve.json", "adapters"
Quantization = Literal["none", "int8", "nf4"]


class VlmFacts(BaseModel):
    """Everything in `roboserve.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    revision: str


@dataclass(frozen=True, kw_only=True)
class VlmFolder:
    """What is known of a folder before its weights are read.

    Attributes:
        path: the folder; `id`, `revision`: of the model.
        content_hash: SHA-256, hex, of all that decides an answer of the base.
        model_type: of `config.json`; `context`: most tokens of prompt and answer.
        adapters: name to folder of those that come with it.
    """

    path: Path
    id: str
    revision: str
    content_hash: str
    model_type: str
    context: int
    adapters: dict[str, Path]

    @classmethod
    def read(cls, path: Path) -> VlmFolder:
        """Read a folder's facts.

        Raises:
            FileNotFoundError: naming what the folder lacks.
            ValueError: a file is damaged.
        """
        weights = sorted(path.glob("*.safetensors"))
        for name in (CONFIG, "tokenizer.json", "preprocessor_config.json"):
            if not (path / name).is_file():
                raise FileNotFoundError(f"checkpoint: the folder {path.name!r} has no {name}")
        if not weights:
            raise FileNotFoundError(f"checkpoint: the folder {path.name!r} has no weights (*.safetensors)")
        config = _read_json(path / CONFIG)
        text = config.get("text_config") or config
        names = ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json", "preprocessor_config.json")
        rest = [path / name for name in (CONFIG, *names) if (path / name).is_file()]
        digest = files_hash((*weights, *rest))
        facts = _facts(path, digest)
        return cls(
            path=path,
            id=facts.id,
            revision=facts.revision,
            content_hash=digest,
            model_type=str(config.get("model_type", "?")),
            context=int(text.get("max_position_embeddings", 0)),
            adapters=shipped_adapters(path),
        )


@dataclass(frozen=True, kw_only=True)
class VlmCheckpoint:
    """A checkpoint in memory: the network in evaluation mode on its device."""

    folder: VlmFolder
    network: nn.Module
    composer: Composer
    device: torch.device

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.composer.tokenizer

    @property
    def ends(self) -> frozenset[int]:
        """Ids of the tokens that end an answer."""
        network: Any = self.network
        given = network.generation_config.eos_token_id if network.generation_config is not None else None
        if given is None:
            given = self.tokenizer.eos_token_id
        return frozenset(given if isinstance(given, list) else [given])


def load_composer(folder: Path) -> Composer:
    """Read tokenizer, chat template and image processor of a folder; nothing is fetched.

    Raises:
        ValueError: one of them is damaged or of another kind.
    """
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint: tokenizer or image processor of {folder.name!r} is damaged: {error}") from error
    return Composer(tokenizer, processor)


def load_checkpoint(
    path: Path, *, device: str = "cpu", dtype: str = "float32", quantization: Quantization = "none"
) -> VlmCheckpoint:
    """Read a checkpoint folder.

    Args:
        device: "cpu", "cuda" or "auto".
        dtype: of the computation.
        quantization: of the language model's linear layers by bitsandbytes.

    Raises:
        FileNotFoundError: naming what the folder lacks.
        ValueError: another family, or damaged files.
    """
    from transformers import AutoModelForImageTextToText

    folder = VlmFolder.read(path)
    if folder.model_type not in FAMILIES:
        raise ValueError(f"checkpoint: model type {folder.model_type!r}; known here are {', '.join(FAMILIES)}")
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if quantization != "none":
        options |= {"quantization_config": _quantization(quantization), "device_map": {"": str(where)}}
    try:
        network: Any = AutoModelForImageTextToText.from_pretrained(
            path, local_files_only=True, use_safetensors=True, trust_remote_code=False, **options
        )
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"checkpoint: the weights of {path.name!r} cannot be read: {error}") from error
    if quantization == "none":
        network.to(where)
    return VlmCheckpoint(folder=folder, network=network.eval(), composer=load_composer(path), device=where)


def shipped_adapters(path: Path) -> dict[str, Path]:
    """Return name to folder of the adapters that come with a checkpoint."""
    return {found.parent.name: found.parent for found in sorted((path / ADAPTERS).glob(f"*/{peft_files.CONFIG}"))}


def adapter_hash(path: Path) -> str:
    """Return the SHA-256, hex, of an adapter's files.

    Raises:
        FileNotFoundError: it has no configuration or no safetensors.
    """
    for name in (peft_files.CONFIG, peft_files.WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"adapter: the folder {path.name!r} has no {name}")
    return files_hash((path / peft_files.CONFIG, path / peft_files.WEIGHTS))


def _quantization(kind: Quantization) -> Any:
    import transformers

    settings: Any = transformers.BitsAndBytesConfig
    if kind == "int8":
        return settings(load_in_8bit=True, llm_int8_skip_modules=["visual", "lm_head"])
    return settings(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["visual", "lm_head"],
    )


def _facts(path: Path, digest: str) -> VlmFacts:
    if not (path / FACTS).is_file():
        return VlmFacts(id=path.name, revision=digest[:12])
    try:
        return VlmFacts.model_validate(_read_json(path / FACTS))
    except ValidationError as error:
        where = "; ".join(".".join(map(str, item["loc"])) + ": " + item["msg"] for item in error.errors())
        raise ValueError(f"checkpoint: {FACTS}: {where}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"checkpoint: {path.name} is not valid JSON") from error
    if not isinstance(raw, dict):
        raise ValueError(f"checkpoint: {path.name} must hold a map")  # noqa: TRY004  damage, not a caller's mistake
    return raw
