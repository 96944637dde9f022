"""Environments that workers play (`finetune.common.workers`), with the interface of those that are here."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from finetune.common.ray_session import ray_session
from finetune.common.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from finetune.common.workers import Look, Make


class WorkerEnv(gymnasium.Env["NDArray[np.float32]", "NDArray[np.float32]"]):
    """An environment that a worker plays, with the interface of one that is here.

    Args:
        lane: which of the worker's. `draw`: whether each step brings a picture, for `render`.
    """

    instruction: str
    told: str

    def __init__(self, worker: Worker, lane: int, *, draw: bool) -> None:
        self._worker, self._lane, self._draw = worker, lane, draw
        about = worker.about
        self.observation_space, self.action_space = about.observation_space, about.action_space
        self.render_mode = about.render_mode if draw else None
        for name, value in about.facts.items():
            setattr(self, name, value)
        self._picture: NDArray[np.uint8] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; without a seed one is drawn here, for it may be needed again."""
        super().reset(seed=seed, options=options)
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        look = self._worker.reset(self._lane, drawn, draw=self._draw)
        self._picture = look.picture
        return look.observation.copy(), look.info

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Play a row."""
        look = self._play(np.asarray(action, np.float32))
        self._picture = look.picture
        return look.observation.copy(), look.reward, look.terminated, look.truncated, look.info

    def render(self) -> Any:
        """Return the picture of the latest step."""
        return self._picture

    def _play(self, action: NDArray[np.float32]) -> Look:
        return self._worker.step(self._lane, action)


class SeeingWorkerEnv(WorkerEnv):
    """One whose observations cost (`environments.seeing`): with `each_step` False, `step` gives NaN until `look`."""

    each_step = True

    def look(self) -> NDArray[np.float32]:
        """Return what is seen now."""
        return self._worker.look(self._lane).observation.copy()

    def _play(self, action: NDArray[np.float32]) -> Look:
        return self._worker.step(self._lane, action, each_step=self.each_step)


@dataclass(frozen=True, kw_only=True)
class Played:
    """Environments that workers play: those to learn in, those to be judged in, and the workers."""

    learning: list[WorkerEnv]
    judged: list[WorkerEnv]
    workers: list[Worker]


@contextlib.contextmanager
def played(make: Make, *, workers: int, learning: int, judged: int, draw: bool) -> Iterator[Played]:
    """Give environments that as many processes play, until the end of the context.

    The processes share those to learn in, whose steps bring pictures where `draw` says so, and those to be judged in.
    """
    with ray_session(workers), contextlib.ExitStack() as opened:
        made, lanes = [], learning + judged
        for index in range(min(workers, lanes)):
            made.append(Worker(make, lanes=len(range(index, lanes, workers))))
            opened.callback(made[-1].close)
        kind = SeeingWorkerEnv if made[0].about.looks else WorkerEnv
        envs = [kind(made[lane % workers], lane // workers, draw=draw and lane < learning) for lane in range(lanes)]
        yield Played(learning=envs[:learning], judged=envs[learning:], workers=made)
