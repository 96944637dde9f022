"""A small flow VLA, and adapters of it that PEFT wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune.lora.artefacts import base_of, write_adapter
from finetune.lora.trainable import LoraSettings, make_trainable
from models.policies.contract import ActItem, ActOptions, Observation
from models.policies.flow_vla.checkpoint import load_checkpoint, save_checkpoint
from models.policies.flow_vla.network import FlowVLANetwork
from models.policies.normalizer import Normalizer
from tests.models.test_flow_vla import tiny_config

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "expert.leave.1"


def make_base(folder: Path, *, seed: int = 3) -> Path:
    torch.manual_seed(seed)
    config = tiny_config()
    save_checkpoint(folder, config, FlowVLANetwork(config.network), card="# tiny")
    return folder


def make_adapter(
    folder: Path, base: Path, *, seed: int, scale: float = 0.2, mean: float | None = None, **lora: Any
) -> Path:
    """Write an adapter with random changes; `mean` gives it action statistics of its own."""
    config, network, content_hash = load_checkpoint(base)
    torch.manual_seed(seed)
    made = make_trainable(network, "lora", LoraSettings(**lora))
    for name, value in network.named_parameters():
        if value.requires_grad and ("lora_B" in name or "lora_" not in name):
            torch.nn.init.normal_(value, std=scale)
    target = replace(config, id=folder.name)
    if mean is not None:
        target = replace(target, action_normalizer=Normalizer(mean=(mean,) * 4, std=(1.0,) * 4))
    write_adapter(made.peft, folder, config=target, base=base_of(config, content_hash), revision="1", card="# made\n")
    return folder


def make_item(number: int, adapter: str | None = None, **options: Any) -> ActItem:
    random = np.random.default_rng(number)
    observation = Observation(
        images={"front": random.integers(0, 256, (32, 32, 3), dtype=np.uint8)},
        state=random.normal(size=3).astype(np.float32),
        instruction=("open the drawer", "press the button", "reach")[number % 3],
    )
    return ActItem(observation=observation, adapter=adapter, options=ActOptions(seed=number, **options))
