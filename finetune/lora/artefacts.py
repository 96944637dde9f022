"""What a run leaves: an adapter's folder with its card, or a whole checkpoint; and an adapter merged into its base."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from finetune.lora.bases import load_base
from models.policies.adapters import Base, merge, read_adapter, seal

if TYPE_CHECKING:
    from pathlib import Path

    from finetune.lora.bases import PolicyConfig
    from models.policies.adapters import AdapterFacts


def base_of(config: PolicyConfig, content_hash: str) -> Base:
    """Return what an adapter says of its base."""
    return Base(id=config.id, revision=config.revision, content_hash=content_hash)


def write_adapter(
    peft: Any, folder: Path, *, config: PolicyConfig, base: Base, revision: str, card: str
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
        FileNotFoundError, ValueError: see `load_base`, `read_adapter` and `merge`.
    """
    loaded = load_base(base)
    read = read_adapter(adapter, base=base_of(loaded.config, loaded.content_hash))
    merge(loaded.network, read)
    merged, of = loaded.renamed(read.facts), loaded.config
    card = f"# {merged.id}\n\n{of.id} revision {of.revision} with an adapter of rank {read.rank} merged in.\n"
    loaded.save(out, merged, card=card)
    return out
