"""A frozen policy and the high-level actor that steers it (TMRL, arXiv 2605.12236; DSRL, arXiv 2506.15799)."""

from __future__ import annotations

from models.policies.steered.policy import SteeredPolicy

__all__ = ["SteeredPolicy"]
