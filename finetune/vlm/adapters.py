"""LoRA adapters of a vision-language model's language part, in PEFT's layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of the language model; vLLM serves adapters of these, those of a vision tower it does not."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Of LoRA (Hu et al. 2021): `rank` of the change, which is scaled by `alpha` / `rank`, and its dropout."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0


def add_lora(network: nn.Module, settings: LoraSettings) -> Any:
    """Return the network with an adapter, whose parameters alone are trained; a quantised base stays as it is."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if getattr(network, "quantization_method", None) is not None:
        prepare: Any = prepare_model_for_kbit_training
        network = prepare(network, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(TARGETS),
        exclude_modules=r".*visual.*",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(network, config)


def save_adapter(network: Any, folder: Path, *, base: str) -> Path:
    """Write an adapter's folder and return it.

    Args:
        base: what the base is called; where it lay when the adapter was trained is nobody's business.
    """
    for config in network.peft_config.values():
        config.base_model_name_or_path = base
        config.inference_mode = True
    network.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # a form that nobody filled in
    return folder
