"""From a configuration to a policy that can be served: the class, its contract, and the check of what it answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from clients.contract import Camera, PolicyContract, Vector
from clients.errors import RoboserveError
from models.policies.contract import ActionChunk, ActItem, Observation
from serving.factory import make_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from models.policies.contract import Policy, PolicySpec
    from serving.config import PolicyArgs

_LIMIT_TOLERANCE = 1e-3
_WARM_UP = "warm-up"


def make_policy(args: PolicyArgs) -> Policy:
    """Make the policy that a configuration names.

    Raises:
        ValueError: the class cannot be imported, or its configuration is wrong.
    """
    policy: Policy = make_model(args.policy, "policy")
    return policy


def contract_of(spec: PolicySpec, args: PolicyArgs) -> PolicyContract:
    """Return the contract that robots see: the model's spec and this server's limits."""
    supports = {
        "rtc": spec.supports_rtc,
        "seed": spec.supports_seed,
        "integration_steps": spec.integration_steps > 0,
        "noise": spec.supports_noise,
        "summary": spec.supports_summary,
        "context_noise": spec.context_size > 0,
        "path": spec.follows_path,
        "adapters": spec.adapters != "none",
        "reset": True,
    }
    return PolicyContract(
        model=args.name,
        revision=spec.revision,
        content_hash=spec.content_hash,
        cameras=tuple(Camera(**asdict(camera)) for camera in spec.cameras),
        state=Vector(**asdict(spec.state)),
        action=Vector(**asdict(spec.action)),
        control_hz=spec.control_hz,
        chunk_length=spec.chunk_length,
        execute=spec.execute,
        integration_steps=spec.integration_steps,
        context_size=spec.context_size,
        supports=tuple(name for name, present in supports.items() if present),
        adapters=(),
        normalization=spec.normalization,
        limits={
            "message_bytes": args.limits.message_bytes,
            "image_pixels": args.limits.image_pixels,
            "instruction_chars": spec.instruction_chars,
            "in_flight": args.limits.in_flight,
        },
    )


def checked_forward(policy: Policy) -> Callable[[Sequence[ActItem]], list[ActionChunk | Exception]]:
    """Return the forward that the batcher runs: an unusable chunk becomes its item's error, never an answer."""
    low, high = np.array(policy.spec.action.low), np.array(policy.spec.action.high)
    slack = _LIMIT_TOLERANCE * np.where(np.isfinite(high - low), high - low, 0.0)
    low, high = (low - slack).astype(np.float32), (high + slack).astype(np.float32)
    shape = (policy.spec.chunk_length, policy.spec.action.size)

    def fault(chunk: ActionChunk) -> str | None:
        actions, model_actions = chunk.actions, chunk.model_actions
        if actions.shape != shape or actions.dtype != np.float32:
            return f"actions: the policy gave {actions.dtype} {actions.shape}, promised float32 {shape}"
        if not np.isfinite(actions).all():
            return "actions: the policy gave values that are not finite"
        if (actions < low).any() or (actions > high).any():
            return "actions: the policy went beyond its own limits"
        if model_actions.ndim != 2 or len(model_actions) != shape[0] or not np.isfinite(model_actions).all():
            return "model_actions: the policy gave values that are not finite, or not a row for each action"
        summary = chunk.summary
        if summary is not None and (summary.ndim != 1 or not np.isfinite(summary).all()):
            return "summary: the policy gave values that are not finite, or more than one dimension"
        return None

    def check(chunk: ActionChunk) -> ActionChunk | Exception:
        text = fault(chunk)
        return chunk if text is None else RoboserveError("invalid_output", text)

    def forward(items: Sequence[ActItem]) -> list[ActionChunk | Exception]:
        return [check(chunk) for chunk in policy.act(items)]

    return forward


def warm_up(policy: Policy) -> None:
    """Run one checked forward, so that the first robot neither pays for lazy initialisation nor finds a fault.

    Raises:
        RoboserveError: `invalid_output`.
    """
    spec = policy.spec
    blank = Observation(
        images={camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in spec.cameras},
        state=np.zeros(spec.state.size, np.float32),
        instruction="",
    )
    outcome = checked_forward(policy)([ActItem(observation=blank, session=_WARM_UP)])[0]
    policy.reset(_WARM_UP)
    if isinstance(outcome, Exception):
        raise outcome
