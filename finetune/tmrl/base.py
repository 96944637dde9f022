"""The frozen policy that is steered: in this process, or behind the policy service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from clients.errors import RoboserveError
from clients.policy import ActOptions, PolicyClient
from finetune.common.device import CPU
from finetune.tmrl.sent_views import SentViews
from models.policies.flow_vla.steerable import SteerableVla
from models.policies.steered.base import open_flow

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from clients.images import WireImage
    from clients.policy import ActReply
    from finetune.common.environments.seeing import Eyes
    from models.policies.steered.choice import Steering


class SteeredPolicy(Protocol):
    """A policy that takes its noise, context level and context noise from outside."""

    @property
    def chunk(self) -> tuple[int, int]:
        """Rows and columns of a chunk (H, A)."""
        ...

    @property
    def execute(self) -> int:
        """Rows that are played before the next decision."""
        ...

    @property
    def context_size(self) -> int:
        """Numbers of context noise; 0 for a policy that was trained without."""
        ...

    @property
    def content_hash(self) -> str:
        """Of its weights and configuration."""
        ...

    @property
    def encoder(self) -> Eyes | None:
        """What makes states of what a robot sees; None for a policy on states."""
        ...

    def act(self, states: NDArray[np.float32], steering: Steering) -> NDArray[np.float32]:
        """Return chunks float32 (N, H, A) for states (N, S)."""
        ...

    def look(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the agent that steers it is shown of states (N, S), float32 (N, L)."""
        ...


class LocalPolicy:
    """A checkpoint folder of `models.policies.state_flow` or `flow_vla`; its chunks are cut to [-1, 1].

    Args:
        steps: Euler steps of the flow. `device`: where it computes.
    """

    def __init__(self, folder: Path, *, steps: int = 10, device: torch.device = CPU) -> None:
        self.folder, self.steps = folder, steps
        self.flow = open_flow(folder, steps=steps, device=device)
        self.content_hash = self.flow.content_hash
        self.chunk, self.execute, self.context_size = self.flow.chunk, self.flow.execute, self.flow.context_size

    @property
    def encoder(self) -> Eyes | None:
        """What makes states of what a robot sees, for a VLA."""
        return self.flow.encoder if isinstance(self.flow, SteerableVla) else None

    def look(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the agent is shown."""
        return self.flow.look(states)

    def act(self, states: NDArray[np.float32], steering: Steering) -> NDArray[np.float32]:
        """Return chunks."""
        return np.clip(
            self.flow.steer(states, noise=steering.noise, level=steering.level, context_noise=steering.context_noise),
            -1.0,
            1.0,
        )


class ServedPolicy:
    """A policy behind the policy service: noise, level and context noise go up, its weights never come down.

    It is asked twice for a decision: what it has read from the observation, which the agent is shown, and then for the
    chunk that the agent steers it to.

    Args:
        server: "host:port" or a ws:// address. `api_key`: where the service asks for one.

    Raises:
        RoboserveError: the service cannot be reached; `contract_mismatch` where the policy takes no noise from outside,
            or does not tell what it reads.
    """

    def __init__(self, server: str, *, policy: str | None = None, api_key: str | None = None) -> None:
        self._client = PolicyClient(server, policy=policy, api_key=api_key)
        contract = self._client.contract
        if "noise" not in contract.supports:
            raise RoboserveError("contract_mismatch", f"policy {contract.model!r} takes no noise from outside")
        if "summary" not in contract.supports:
            raise RoboserveError("contract_mismatch", f"policy {contract.model!r} does not tell what it reads")
        self.chunk = (contract.chunk_length, contract.action.size)
        self.execute, self.context_size = contract.execute, contract.context_size
        self.content_hash = contract.content_hash
        self._views = SentViews(contract) if contract.cameras else None

    @property
    def encoder(self) -> Eyes | None:
        """What makes vectors of what a robot sees, which go up as requests."""
        return self._views

    def act(self, states: NDArray[np.float32], steering: Steering) -> NDArray[np.float32]:
        """Return chunks, one request each.

        Raises:
            RoboserveError: the service's refusal.
        """
        return np.stack(
            [self._ask(state, self._steered(steering, index)).actions for index, state in enumerate(states)]
        )

    def look(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the service has read from the observations.

        Raises:
            RoboserveError: as `act`.
        """
        return np.stack([self._read(state) for state in states])

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def _read(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        summary = self._ask(state, ActOptions(seed=0, return_summary=True)).summary
        if summary is None:
            raise RoboserveError("invalid_output", "summary: the policy gave none")
        return summary.astype(np.float32)

    def _steered(self, steering: Steering, index: int) -> ActOptions:
        noise = steering.noise[index]
        if not self.context_size:
            return ActOptions(noise=noise)
        level, context = float(steering.level[index]), steering.context_noise[index]
        return ActOptions(noise=noise, context_level=level, context_noise=context)

    def _ask(self, state: NDArray[np.float32], options: ActOptions) -> ActReply:
        images: dict[str, WireImage] = {}
        words = ""
        if self._views is not None:
            images, state, words = self._views.request(state)
        return self._client.act(images=images, state=state, instruction=words, options=options)
