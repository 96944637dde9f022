"""The embedded vision-language-action policy: flow matching over action chunks, small enough for a CPU."""

from __future__ import annotations

from models.policies.flow_vla.policy import FlowVLAPolicy

__all__ = ["FlowVLAPolicy"]
