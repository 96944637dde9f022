"""What a relabelling job is asked to do, and the plan of which frames get a value."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from clients.errors import RoboserveError
from models.rewards.frames import MODES, FramePolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

Codec = Literal["png", "jpeg", "raw"]
CODECS = ("png", "jpeg", "raw")


def default_cache() -> Path:
    """Return the user's own cache folder for labels: `$XDG_CACHE_HOME/roboserve/relabel`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "roboserve" / "relabel"


@dataclass(frozen=True, kw_only=True)
class RelabelConfig:
    """One job.

    Attributes:
        dataset: a LeRobot v3 dataset, or a folder of mp4 files with a text file of the same name beside each.
        server: address of a platform that serves the model; None runs the model inside the workers.
        model: with a server the served model's name; without one `zoo:NAME`, a checkpoint folder or `MODULE:CLASS`.
        model_config: fields of `CLASS.Config` where the model is a `MODULE:CLASS`.
        out: the parquet file; None for `DATASET/<model id>_progress.parquet`.
        cache: folder of labels by content, shared by all datasets and, on a cluster, by all nodes.
        cameras: which cameras to judge by; several give their mean. Empty where the dataset has only one.
        mode: a progress mode of `models.rewards.frames`.
        frame_policy: a frame policy by name; None for the one that the model was trained for.
        every: in prefix mode, ask for every n-th frame only (the first and the last always).
        task: instruction for every episode, in place of the dataset's own.
        workers: processes that decode, send and wait at once.
        codec: how frames travel; "jpeg" is small and shifts pixels, the others are exact.
        wait_s: longest wait for the answer for one episode, or a part of a long one, a lost server's return included.

    Raises:
        RoboserveError: `invalid_request` naming the field.
    """

    dataset: Path
    server: str | None = None
    model: str | None = None
    model_config: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None
    cache: Path = field(default_factory=default_cache)
    cameras: tuple[str, ...] = ()
    mode: str = "prefix"
    frame_policy: str | None = None
    every: int = 1
    task: str | None = None
    workers: int = 2
    codec: Codec = "png"
    wait_s: float = 600.0
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("every", "workers"):
            if getattr(self, name) < 1:
                raise _invalid(f"{name}: {getattr(self, name)}, at least 1")
        for name, known in (("mode", MODES), ("codec", CODECS)):
            if getattr(self, name) not in known:
                raise _invalid(f"{name}: {getattr(self, name)!r:.40}, known are {', '.join(known)}")
        if self.every > 1 and self.mode != "prefix":
            raise _invalid(f"every: {self.every}, only mode prefix can leave frames out")
        if self.server is None and self.model is None:
            raise _invalid("server: none given, and no model to run in the workers either")
        if self.task is not None and not self.task.strip():
            raise _invalid("task: empty")
        if len(set(self.cameras)) != len(self.cameras):
            raise _invalid(f"cameras: {', '.join(self.cameras)}, one comes twice")
        if self.frame_policy is not None:
            _parse_policy(self.frame_policy)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which frames of an episode get a value, and which frames the model is shown for it."""

    mode: str
    frame_policy: str
    every: int = 1

    def __post_init__(self) -> None:
        _parse_policy(self.frame_policy)

    def labelled(self, length: int) -> list[int]:
        """Return the frames that get a value, ascending.

        `prefix`: 0, every, 2 * every ..., and the last. `single_pass`: the frames shown. `final`: the last.
        """
        if self.mode == "prefix":
            return sorted({*range(0, length, self.every), length - 1})
        if self.mode == "single_pass":
            return sorted(set(self.policy.indices(length)))
        return [length - 1]

    def windows(self, length: int) -> list[tuple[int, ...]]:
        """Return the frames shown in each query: one query a labelled frame in prefix mode, one in all otherwise."""
        if self.mode == "prefix":
            return [self.policy.indices(frame + 1) for frame in self.labelled(length)]
        return [self.policy.indices(length)]

    @property
    def policy(self) -> FramePolicy:
        """The parsed frame policy."""
        return FramePolicy.parse(self.frame_policy)


def parse_codec(name: str) -> Codec:
    """Return a codec by its name.

    Raises:
        RoboserveError: `invalid_request`.
    """
    if name not in CODECS:
        raise _invalid(f"codec: {name!r:.40}, known are {', '.join(CODECS)}")
    return cast("Codec", name)


def _parse_policy(name: str) -> None:
    try:
        FramePolicy.parse(name)
    except ValueError as error:
        raise _invalid(f"frame_policy: {error}") from error


def _invalid(text: str) -> RoboserveError:
    return RoboserveError("invalid_request", text)
