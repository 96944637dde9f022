"""`SteeredPolicy`: a frozen policy and the actor that steers it, behind the policy contract."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.folders import checkpoint_folder
from models.policies.contract import ActionChunk, PolicySpec
from models.policies.steered.checkpoint import load_steered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.policies.contract import ActItem


class SteeredPolicy:
    """A steered policy, on states or a VLA, from a checkpoint folder; it plays the actor's choices as that says.

    A request's seed draws them, unless the likeliest are played, and the context noise that the actor does not choose.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How to run a checkpoint.

        Attributes:
            checkpoint: folder as `save_steered` makes it, or "zoo:NAME".
            control_hz: rate at which rows of a policy on states are meant to be played.
        """

        checkpoint: str
        control_hz: float = 20.0

    def __init__(self, config: Config) -> None:
        """Load the checkpoint.

        Raises:
            FileNotFoundError, ValueError: see `load_steered`.
        """
        loaded, self._actor, self._flow, content_hash = load_steered(checkpoint_folder(config.checkpoint))
        self._space, self._draws = loaded.space, loaded.playing == "drawn"
        self._spec = replace(
            self._flow.spec(control_hz=config.control_hz),
            id=loaded.id,
            revision=loaded.revision,
            content_hash=content_hash,
            supports_noise=False,
            supports_summary=False,
            supports_rtc=False,
            context_size=0,
            integration_steps=0,
        )
        action = self._spec.action
        self._bounds = np.asarray(action.low, np.float32), np.asarray(action.high, np.float32)

    @property
    def spec(self) -> PolicySpec:
        """What it wants and gives."""
        return self._spec

    @torch.no_grad()
    def act(self, items: Sequence[ActItem]) -> Sequence[ActionChunk]:
        """Return one chunk for each item, and the context level that the actor chose for it.

        Raises:
            ValueError: naming the option or field that cannot be used.
        """
        for item in items:
            self._check(item)
        states = np.stack([self._flow.know(item.observation) for item in items])
        seeds = [secrets.randbits(63) if item.options.seed is None else item.options.seed for item in items]
        sources = [np.random.default_rng(seed) for seed in seeds]
        drawn = None
        if self._draws:
            size = (1, self._space.size)
            drawn = torch.from_numpy(np.concatenate([source.standard_normal(size, np.float32) for source in sources]))
        choices = self._actor(torch.from_numpy(self._flow.look(states)), drawn)[0].numpy()
        steered = [self._space.spread(choices[index : index + 1], source) for index, source in enumerate(sources)]
        model = self._flow.steer(
            states,
            noise=np.concatenate([one.noise for one in steered]),
            level=np.concatenate([one.level for one in steered]),
            context_noise=np.concatenate([one.context_noise for one in steered]),
        )
        return [
            ActionChunk(
                actions=np.clip(raw, *self._bounds),
                model_actions=raw,
                seed=seed,
                context_level=float(one.level[0]) if self._space.level else None,
            )
            for raw, seed, one in zip(model, seeds, steered, strict=True)
        ]

    def reset(self, session: str) -> None:
        """Do nothing: no request depends on an earlier one."""

    def _check(self, item: ActItem) -> None:
        options, spec = item.options, self._spec
        given = {"noise": options.noise, "context_level": options.context_level, "leftover": options.leftover}
        given |= {"context_noise": options.context_noise, "integration_steps": options.integration_steps}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}: a steered policy chooses for itself")
        if options.return_summary:
            raise ValueError("return_summary: a steered policy is not steered from elsewhere")
        if item.adapter is not None:
            raise ValueError(f"adapter: {item.adapter!r}, this policy has none")
        if item.observation.state.shape != (spec.state.size,):
            raise ValueError(f"state: shape {item.observation.state.shape}, needs ({spec.state.size},)")
