"""What a high-level agent may steer, by its checkpoint folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.policies.flow_vla.head import is_vla, load_head
from models.policies.flow_vla.steerable import SteerableVla
from models.policies.state_flow.checkpoint import load_state_policy
from models.policies.state_flow.policy import SteerableFlow

if TYPE_CHECKING:
    from pathlib import Path

    import torch


def open_flow(folder: Path, *, steps: int, device: torch.device | None = None) -> SteerableFlow:
    """Return the policy of a checkpoint folder: one on states, or an embedded VLA.

    Args:
        steps: Euler steps of its flow. `device`: where it computes; the CPU by default.

    Raises:
        FileNotFoundError, ValueError: see `load_state_policy` and `load_head`.
    """
    if is_vla(folder):
        config, head, encoder, content_hash = load_head(folder)
        return SteerableVla(config, head.to(device), encoder.to(device), content_hash, steps=steps)
    loaded, network, content_hash = load_state_policy(folder)
    return SteerableFlow(loaded, network.to(device), content_hash, steps=steps)
