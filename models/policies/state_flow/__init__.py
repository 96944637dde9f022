"""A small flow or diffusion policy on states, for simulators and toys."""

from __future__ import annotations

from models.policies.state_flow.policy import StateFlowPolicy

__all__ = ["StateFlowPolicy"]
