"""The contract that every policy keeps, whether it runs in this process or in a worker of its own.

Only numpy arrays and plain values cross it, never tensors: so a policy whose stack cannot share an environment with
ours can run as a worker process behind the same three methods.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

VectorKind = Literal["absolute", "delta", "velocity"]
AdapterUse = Literal["none", "alike", "mixed"]
"""Whether a policy takes adapters, and whether the items of one batch may have different ones."""


@dataclass(frozen=True, kw_only=True)
class CameraSpec:
    """One camera that the policy sees: RGB, uint8, height x width x 3."""

    name: str
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class VectorSpec:
    """Names, units, kinds and ranges of a state or action vector, one entry a dimension, in order.

    `kinds` decides what a robot does when it has nothing to play: an absolute dimension repeats, a delta or a velocity
    is zero. `low` and `high` are hard limits in the same units.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    kinds: tuple[VectorKind, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.names), len(self.units), len(self.kinds), len(self.low), len(self.high)}
        if len(lengths) != 1:
            raise ValueError(f"vector spec: names, units, kinds, low and high differ in length: {sorted(lengths)}")

    @property
    def size(self) -> int:
        """Number of dimensions."""
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """What a policy wants and gives: the part of the server's contract that the model decides.

    Attributes:
        id: name of the model.
        revision: version of the weights, as its author names it.
        content_hash: SHA-256 of the weights and configuration, hex.
        cameras: the images of one observation.
        state: proprioception.
        action: one row of a chunk, in physical units.
        control_hz: rate at which rows are meant to be played.
        chunk_length: rows of a chunk (H).
        execute: rows that should be played before the next chunk replaces them.
        integration_steps: default number of integration steps of the flow (0 where there is none).
        supports_rtc: takes `inference_delay` and `leftover`.
        supports_seed: the same request with the same seed gives the same chunk.
        supports_noise: takes the noise that a chunk starts from.
        supports_summary: tells what it has read from an observation, for an agent elsewhere that steers it.
        follows_path: was trained to follow a path of the gripper that is drawn, in the style "policy", on the image of
            its first camera; without one it acts on the image alone.
        context_size: numbers of context noise that the policy takes beside a context level (context-smoothed
            pre-training, arXiv 2605.12236); 0 where it was trained without.
        stateful: keeps something per session, so that `reset` matters.
        instruction_chars: longest instruction.
        normalization: key of the statistics that scale state and action.
        adapters: whether it is an `AdaptedPolicy`, and what a batch may hold.
        light: `act` and `reset` take well under half a millisecond and never wait, so that a server may run them on its
            event loop: the way to another thread and back would cost more than they do.
    """

    id: str
    revision: str
    content_hash: str
    cameras: tuple[CameraSpec, ...]
    state: VectorSpec
    action: VectorSpec
    control_hz: float
    chunk_length: int
    execute: int
    integration_steps: int = 0
    supports_rtc: bool = False
    supports_seed: bool = False
    supports_noise: bool = False
    supports_summary: bool = False
    follows_path: bool = False
    context_size: int = 0
    stateful: bool = False
    instruction_chars: int = 512
    normalization: str = "none"
    adapters: AdapterUse = "none"
    light: bool = False


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One observation, already checked against the spec.

    Attributes:
        images: camera name to uint8 (height, width, 3), RGB.
        state: float32 (state.size,), in physical units.
        instruction: what to do, in words.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    instruction: str


@dataclass(frozen=True, kw_only=True)
class ActOptions:
    """Options of one request.

    Attributes:
        seed: noise seed; None draws a fresh one.
        integration_steps: Euler steps of the flow; None takes the policy's default.
        inference_delay: RTC: rows of `leftover` that will be played before this answer arrives (d).
        leftover: RTC: unplayed rest of the previous chunk in model space, float32 (n, model action size), n <= H.
        execution_horizon: RTC: row up to which the leftover still guides; None takes the policy's default.
        noise: what the chunk starts from in model space, float32 (H, model action size); None draws it.
        context_level: 0 trusts the context, 1 erases it; None is 0. `context_noise`: float32 (context_size,), what
            takes its place; None draws it.
        return_summary: also tell what was read from the observation.
    """

    seed: int | None = None
    integration_steps: int | None = None
    inference_delay: int = 0
    leftover: NDArray[np.float32] | None = None
    execution_horizon: int | None = None
    noise: NDArray[np.float32] | None = None
    context_level: float | None = None
    context_noise: NDArray[np.float32] | None = None
    return_summary: bool = False


@dataclass(frozen=True, kw_only=True)
class ActItem:
    """One item of a batch."""

    observation: Observation
    session: str = ""
    adapter: str | None = None
    options: ActOptions = field(default_factory=ActOptions)


@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """One answer.

    Attributes:
        actions: float32 (H, action.size), physical units, within the action's limits.
        model_actions: float32 (H, model action size), before un-normalisation: what RTC wants back as `leftover`.
        seed: that noise was drawn from, asked for or not; None where none was. `context_level`: that was used; None for
            a policy without.
        adapter_hash: SHA-256, hex, of the adapter that answered; None for the base.
        summary: float32 (L,), what was read from the observation, its context clean, where it was asked for.
    """

    actions: NDArray[np.float32]
    model_actions: NDArray[np.float32]
    seed: int | None = None
    context_level: float | None = None
    adapter_hash: str | None = None
    summary: NDArray[np.float32] | None = None


class Policy(Protocol):
    """A policy: batched, synchronous, and called from one thread at a time."""

    @property
    def spec(self) -> PolicySpec:
        """What it wants and gives; constant over its life."""
        ...

    def act(self, items: Sequence[ActItem]) -> Sequence[ActionChunk]:
        """Return one chunk for each item, in order.

        A batch of n gives the same chunks as n batches of one, to float tolerance. It may raise; the caller then asks
        again for each item alone, so that only the item at fault fails.
        """
        ...

    def reset(self, session: str) -> None:
        """Forget what is kept for a session: a new episode starts."""
        ...


@runtime_checkable
class AdaptedPolicy(Protocol):
    """A policy that answers with an item's `adapter`; which there are may change while it serves."""

    @property
    def adapters(self) -> Mapping[str, str]:
        """Names of those that may be asked for now, to their content hashes; read from any thread."""
        ...

    @property
    def refused_adapters(self) -> Mapping[str, str]:
        """Names of those that are there and cannot be served, to the reason."""
        ...
