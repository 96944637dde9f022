"""What a run leaves: an adapter's folder with its card, or a whole checkpoint; and an adapter merged into its base."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from models.folders import checkpoint_folder
from models.policies.adapters import Base, merge, read_adapter, seal
from models.policies.flow_vla.checkpoint import CheckpointConfig, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from models.policies.adapters import AdapterFacts


def base_of(config: CheckpointConfig, content_hash: str) -> Base:
    """Return what an adapter says of its base."""
    return Base(id=config.id, revision=config.revision, content_hash=content_hash)


def write_adapter(
    peft: Any, folder: Path, *, config: CheckpointConfig, base: Base, revision: str, card: str
) -> AdapterFacts:
    """Write an adapter's folder; a kill leaves the old one, the new one, or one that is refused.

    Args:
        config: of the checkpoint that the adapter makes of its base: its id, and the statistics of its training.
        card: Markdown.
    """
    for settings in peft.peft_config.values():
        settings.base_model_name_or_path, settings.inference_mode = base.id, True
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    peft.save_pretrained(fresh, save_embedding_layers=False)
    (fresh / "README.md").write_text(card, "utf-8")
    facts = seal(
        fresh,
        name=config.id,
        revision=revision,
        base=base,
        state=config.state_normalizer,
        action=config.action_normalizer,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for path in fresh.iterdir():
        path.replace(folder / path.name)
    fresh.rmdir()
    return facts


def merge_adapter(adapter: Path, base: str, out: Path) -> Path:
    """Write the checkpoint that an adapter makes of its base: no more to compute, and nothing left to choose.

    Args:
        base: folder, or "zoo:NAME".

    Raises:
        FileNotFoundError, ValueError: see `read_adapter` and `merge`.
    """
    config, network, content_hash = load_checkpoint(checkpoint_folder(base))
    read = read_adapter(adapter, base=base_of(config, content_hash))
    merge(network, read)
    facts = read.facts
    merged = replace(
        config,
        id=facts.id,
        revision=facts.revision,
        state_normalizer=facts.state,
        action_normalizer=facts.action,
    )
    card = f"# {facts.id}\n\n{config.id} revision {config.revision} with an adapter of rank {read.rank} merged in.\n"
    save_checkpoint(out, merged, network, card=card)
    return out
