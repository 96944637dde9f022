"""Policies without a network: for tests, benchmarks and for trying a robot's wiring before a real policy moves it."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from models.policies.contract import ActionChunk, CameraSpec, PolicySpec, VectorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from models.policies.contract import ActItem


@dataclass(frozen=True, kw_only=True)
class Interface:
    """The interface that a scripted policy pretends to have; images are size x size."""

    cameras: tuple[str, ...] = ("front",)
    image_size: int = 224
    state_size: int = 8
    action_size: int = 4
    action_kind: Literal["absolute", "delta", "velocity"] = "delta"
    control_hz: float = 20.0
    chunk_length: int = 16
    execute: int = 8

    def spec(
        self,
        name: str,
        *,
        revision: str = "1",
        supports_rtc: bool = False,
        stateful: bool = False,
        light: bool = False,
    ) -> PolicySpec:
        """Return the spec of a policy with this interface; a stateful one gives no chunk twice, so no seed either."""
        return PolicySpec(
            id=name,
            revision=revision,
            content_hash=hashlib.sha256(f"{name}:{revision}:{self}".encode()).hexdigest(),
            cameras=tuple(
                CameraSpec(name=camera, height=self.image_size, width=self.image_size) for camera in self.cameras
            ),
            state=_vector("s", self.state_size, "absolute", 1e6),
            action=_vector("a", self.action_size, self.action_kind, 1.0),
            control_hz=self.control_hz,
            chunk_length=self.chunk_length,
            execute=self.execute,
            supports_rtc=supports_rtc,
            supports_seed=not stateful,
            stateful=stateful,
            light=light,
        )


def _vector(prefix: str, size: int, kind: Literal["absolute", "delta", "velocity"], limit: float) -> VectorSpec:
    return VectorSpec(
        names=tuple(f"{prefix}{index}" for index in range(size)),
        units=("1",) * size,
        kinds=(kind,) * size,
        low=(-limit,) * size,
        high=(limit,) * size,
    )


class ZeroPolicy:
    """Answers zeros at once: what remains is the platform's own overhead."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The interface to pretend; a policy that is not light is run as a model is, on a thread of its own."""

        interface: Interface = Interface()
        light: bool = True

    def __init__(self, config: Config) -> None:
        self._chunk_shape = (config.interface.chunk_length, config.interface.action_size)
        self._spec = config.interface.spec("zero", supports_rtc=True, light=config.light)

    @property
    def spec(self) -> PolicySpec:
        """What it wants and gives."""
        return self._spec

    def act(self, items: Sequence[ActItem]) -> list[ActionChunk]:
        """Return zeros, float32 (H, action size), for each item."""
        zeros = np.zeros(self._chunk_shape, np.float32)
        return [ActionChunk(actions=zeros, model_actions=zeros) for _ in items]

    def reset(self, session: str) -> None:
        """Keep nothing."""


class ReplayPolicy:
    """Plays back one recorded action sequence for each session, chunk by chunk: a robot's wiring test.

    The sequence is an .npy file, float (n, action size). After its end the last row repeats.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The recording, and the interface to pretend."""

        actions: str
        interface: Interface = Interface()

    def __init__(self, config: Config) -> None:
        path = Path(config.actions)
        with np.errstate(over="ignore"):  # what is beyond float32 is refused below as not finite
            self._actions: NDArray[np.float32] = np.load(path, allow_pickle=False).astype(np.float32)
        if self._actions.ndim != 2 or self._actions.shape[1] != config.interface.action_size:
            raise ValueError(
                f"actions: {path.name} has shape {self._actions.shape}, needs (n, {config.interface.action_size})"
            )
        if not len(self._actions) or not np.isfinite(self._actions).all():
            raise ValueError(f"actions: {path.name} needs one row or more, and finite values")
        revision = hashlib.sha256(self._actions.tobytes()).hexdigest()[:12]
        self._interface = config.interface
        self._spec = config.interface.spec("replay", revision=revision, stateful=True, light=True)
        self._next_row: dict[str, int] = {}

    @property
    def spec(self) -> PolicySpec:
        """What it wants and gives."""
        return self._spec

    def act(self, items: Sequence[ActItem]) -> list[ActionChunk]:
        """Return the next rows of the recording for each item's session."""
        return [self._chunk(item.session) for item in items]

    def _chunk(self, session: str) -> ActionChunk:
        start = self._next_row.get(session, 0)
        self._next_row[session] = start + self._interface.execute
        rows = np.minimum(np.arange(start, start + self._interface.chunk_length), len(self._actions) - 1)
        return ActionChunk(actions=self._actions[rows], model_actions=self._actions[rows])

    def reset(self, session: str) -> None:
        """Start the recording over."""
        self._next_row.pop(session, None)


class SlowPolicy:
    """Costs `base_ms + per_item_ms * n` for a batch of n, asleep: the model of a GPU in a fleet benchmark."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Cost in milliseconds, and the interface to pretend."""

        base_ms: float = 30.0
        per_item_ms: float = 2.0
        interface: Interface = Interface()

    def __init__(self, config: Config) -> None:
        self._config = config
        self._zero = ZeroPolicy(ZeroPolicy.Config(interface=config.interface))
        self._spec = config.interface.spec("slow")

    @property
    def spec(self) -> PolicySpec:
        """What it wants and gives."""
        return self._spec

    def act(self, items: Sequence[ActItem]) -> list[ActionChunk]:
        """Sleep, then return zeros."""
        time.sleep((self._config.base_ms + self._config.per_item_ms * len(items)) / 1e3)
        return self._zero.act(items)

    def reset(self, session: str) -> None:
        """Keep nothing."""


class CrashingPolicy:
    """Raises, or answers NaN, when the instruction asks for it: the test of everybody else's safety.

    "raise" raises; "nan" answers NaN; "short" answers too few rows; "die" ends the process; all else answers zeros.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The interface to pretend."""

        interface: Interface = Interface()

    def __init__(self, config: Config) -> None:
        self._zero = ZeroPolicy(ZeroPolicy.Config(interface=config.interface))
        self._spec = config.interface.spec("crashing")

    @property
    def spec(self) -> PolicySpec:
        """What it wants and gives."""
        return self._spec

    def act(self, items: Sequence[ActItem]) -> list[ActionChunk]:
        """Do what each instruction says.

        Raises:
            RuntimeError: for "raise", which takes the whole batch down, as a real model's fault does.
        """
        return [self._one(item, chunk) for item, chunk in zip(items, self._zero.act(items), strict=True)]

    def _one(self, item: ActItem, chunk: ActionChunk) -> ActionChunk:
        instruction = item.observation.instruction
        if instruction == "raise":
            raise RuntimeError("asked to raise")
        if instruction == "die":
            os._exit(13)  # as a crash in native code would, past every handler
        if instruction == "nan":
            return ActionChunk(actions=chunk.actions * np.nan, model_actions=chunk.model_actions)
        if instruction == "short":
            return ActionChunk(actions=chunk.actions[:-1], model_actions=chunk.model_actions)
        return chunk

    def reset(self, session: str) -> None:
        """Keep nothing."""
