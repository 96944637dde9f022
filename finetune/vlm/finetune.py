"""Supervised finetuning of any vision-language folder on conversations: all weights, LoRA, or LoRA of a 4-bit base."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from finetune.vlm.adapters import LoraSettings, add_lora, save_adapter
from finetune.vlm.conversations import JsonlConversations
from finetune.vlm.train import Lesson, Task, TrainConfig, train
from models.folders import files_hash
from models.vlm.checkpoint import FACTS, VlmFolder, load_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from models.vlm.checkpoint import VlmCheckpoint

Method = Literal["full", "lora", "qlora"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What is finetuned on what.

    Attributes:
        folder: the model; `data`: conversations, see `JsonlConversations`.
        method: all weights; an adapter; or an adapter of a base whose linear layers are held in four bits (NF4).
        train: the loop's own settings.
        dtype: of the base in computation; weights that are trained whole should stay in float32.
        device: "cpu", "cuda" or "auto".
    """

    folder: Path
    data: Path
    train: TrainConfig
    method: Method = "lora"
    lora: LoraSettings = field(default_factory=LoraSettings)
    dtype: str = "float32"
    device: str = "cpu"


def finetune(config: FinetuneConfig, *, report: Callable[[int, dict[str, float]], None] | None = None) -> Path:
    """Finetune, from the last state of the run folder if it has one.

    Returns:
        folder of the adapter, or of the whole model, below the run folder.

    Raises:
        FileNotFoundError, ValueError: model or data are missing or damaged, or the run folder is another run's.
    """
    conversations = JsonlConversations(config.data)
    torch.manual_seed(config.train.seed)
    loaded = load_checkpoint(
        config.folder,
        device=config.device,
        dtype=config.dtype,
        quantization="nf4" if config.method == "qlora" else "none",
    )
    network = loaded.network if config.method == "full" else add_lora(loaded.network, config.lora)
    task = Task(
        network=network,
        composer=loaded.composer,
        lessons=(Lesson(name="answers", source=conversations),),
        identity={
            "base": loaded.folder.content_hash,
            "data": files_hash([config.data]),
            "method": config.method,
            "lora": vars(config.lora) if config.method != "full" else None,
        },
    )
    train(config.train, task, report=report)
    if config.method == "full":
        return _save_whole(loaded, config.train.out / "checkpoint")
    return save_adapter(network, config.train.out / "adapter", base=loaded.folder.id)


def _save_whole(loaded: VlmCheckpoint, out: Path) -> Path:
    """Write a model that was trained whole: its weights, and beside them the files that its base brought."""
    source: VlmFolder = loaded.folder
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.path.iterdir()):
        if (
            path.is_file()
            and path.suffix not in (".safetensors", ".md")
            and path.name != "model.safetensors.index.json"
        ):
            shutil.copy2(path, out / path.name)
    saved = loaded.network
    saved.save_pretrained(out)  # type: ignore[operator]
    facts = {"id": f"{source.id}-finetuned", "revision": files_hash(sorted(out.glob("*.safetensors")))[:12]}
    (out / FACTS).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    return out
