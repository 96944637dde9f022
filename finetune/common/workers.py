"""Environments in processes of their own: Ray actors that play, and that are replaced when they die.

A worker holds several environments. One that is lost is begun anew: each of its episodes is reset with the seed that
it had and is played again up to where it was, and the step that was asked for then goes on. Whoever plays notices only
the time it takes: no step is lost, none counts twice. That asks for environments that do the same again, which is
checked; a robot with a clock of its own cannot, and is refused.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from collections.abc import Callable

    import gymnasium
    from numpy.typing import NDArray

    Make = Callable[[], gymnasium.Env[Any, Any]]

_log = logging.getLogger(__name__)
_MOST_DEATHS = 3
"""Of a worker with no call answered in between: then it is not bad luck."""
_FACTS = ("instruction", "told")


class Look(NamedTuple):
    """What came of a call: the observation, and the picture where one was asked for."""

    observation: NDArray[np.float32]
    picture: NDArray[np.uint8] | None
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = {}  # noqa: RUF012  never written to


class About(NamedTuple):
    """What a worker's environments are; `looks`: whether they can do without looking at each step."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    render_mode: str | None
    facts: dict[str, str]
    looks: bool


class _Refusal(NamedTuple):
    """A `RoboserveError`, which does not survive the way through Ray."""

    code: str
    message: str


class _Host:
    """The environments of a worker, in its process."""

    def __init__(self, make: Make, lanes: int) -> None:
        self._envs = [make() for _ in range(lanes)]

    def about(self) -> About:
        """Return spaces, render mode and what an environment is told."""
        env = self._envs[0]
        if getattr(env.unwrapped, "pace", "step") != "step":
            raise ValueError("workers: a robot with a clock of its own cannot be played again after a loss")
        facts = {name: getattr(env.unwrapped, name) for name in _FACTS if hasattr(env.unwrapped, name)}
        looks = env.has_wrapper_attr("look")
        return About(env.observation_space, env.action_space, env.render_mode, facts, looks)

    def pid(self) -> int:
        """Return the process."""
        return os.getpid()

    def reset(self, lane: int, seed: int, *, draw: bool) -> Look | _Refusal:
        """Begin an episode."""
        try:
            observation, info = self._envs[lane].reset(seed=seed)
            return Look(np.asarray(observation, np.float32), self._picture(lane, draw=draw), info=info)
        except RoboserveError as error:
            return _Refusal(error.code, error.message)

    def step(self, lane: int, action: NDArray[np.float32], *, draw: bool, each_step: bool) -> Look | _Refusal:
        """Play a row."""
        env = self._envs[lane]
        if env.has_wrapper_attr("each_step"):
            env.set_wrapper_attr("each_step", each_step)
        try:
            observation, reward, terminated, truncated, info = env.step(action)
        except RoboserveError as error:
            return _Refusal(error.code, error.message)
        picture = self._picture(lane, draw=draw)
        return Look(
            np.asarray(observation, np.float32), picture, float(reward), bool(terminated), bool(truncated), info
        )

    def look(self, lane: int) -> Look | _Refusal:
        """Return what is seen now."""
        try:
            return Look(self._envs[lane].get_wrapper_attr("look")(), None)
        except RoboserveError as error:
            return _Refusal(error.code, error.message)

    def _picture(self, lane: int, *, draw: bool) -> NDArray[np.uint8] | None:
        picture: Any = self._envs[lane].render() if draw else None
        return None if picture is None else np.asarray(picture)


@dataclass(kw_only=True)
class _Episode:
    """An episode that is under way, as it would be played again; `seen` is what was seen after `looked` actions."""

    seed: int
    draw: bool
    seen: NDArray[np.float32]
    looked: int = 0
    each_step: bool = True
    actions: list[NDArray[np.float32]] = field(default_factory=list)


class Worker:
    """A Ray actor with environments, and the next one when it dies.

    Args:
        make: makes an environment; it goes to the actor. `lanes`: how many there are.

    Raises:
        RoboserveError: `unavailable` where workers die one after the other.
        ValueError: the environment cannot be played again.
    """

    def __init__(self, make: Make, *, lanes: int) -> None:
        self._make, self._lanes = make, lanes
        self._episodes: dict[int, _Episode] = {}
        self._lock = threading.Lock()
        self.losses = self._deaths = 0
        self._start()
        try:
            self.about = self._answer(self._actor.about.remote)
        except BaseException:
            self.close()
            raise

    def reset(self, lane: int, seed: int, *, draw: bool) -> Look:
        """Begin an episode.

        Raises:
            RoboserveError: what the environment refused; `unavailable`, as above.
        """
        with self._lock:
            self._episodes.pop(lane, None)
            look: Look = self._answer(lambda: self._actor.reset.remote(lane, seed, draw=draw))
            self._episodes[lane] = _Episode(seed=seed, draw=draw, seen=look.observation)
        return look

    def step(self, lane: int, action: NDArray[np.float32], *, each_step: bool = True) -> Look:
        """Play a row; raises as `reset` does, and `invalid_request` before the first."""
        with self._lock:
            episode = self._under_way(lane)
            episode.each_step = each_step
            look: Look = self._answer(
                lambda: self._actor.step.remote(lane, action, draw=episode.draw, each_step=each_step)
            )
            episode.actions.append(np.array(action))
            if each_step:
                episode.seen, episode.looked = look.observation, len(episode.actions)
        return look

    def look(self, lane: int) -> Look:
        """Return what is seen now; raises as `step` does."""
        with self._lock:
            episode = self._under_way(lane)
            look: Look = self._answer(lambda: self._actor.look.remote(lane))
            episode.seen, episode.looked = look.observation, len(episode.actions)
        return look

    def close(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self._actor)

    @property
    def pid(self) -> int:
        """Of the process that plays now."""
        return int(self._answer(self._actor.pid.remote))

    def _under_way(self, lane: int) -> _Episode:
        if lane not in self._episodes:
            raise RoboserveError("invalid_request", "environment: reset must come before the first step")
        return self._episodes[lane]

    def _start(self) -> None:
        import ray

        self._actor: Any = ray.remote(num_cpus=1, max_restarts=0)(_Host).remote(self._make, self._lanes)

    def _answer(self, call: Callable[[], Any]) -> Any:
        """Return what the actor answers, or the next one that was brought to where it was."""
        import ray

        while True:
            try:
                answer = _wait(call())
            except ray.exceptions.RayActorError as error:
                self._replace(error)
                continue
            self._deaths = 0
            return answer

    def _replace(self, error: Exception) -> None:
        import ray

        rows = sum(len(episode.actions) for episode in self._episodes.values())
        while True:
            self.losses, self._deaths = self.losses + 1, self._deaths + 1
            if self._deaths > _MOST_DEATHS:
                raise RoboserveError(
                    "unavailable", f"workers: {self._deaths} died one after the other: {error}"
                ) from error
            _log.warning("a rollout worker died; the next one plays %d steps again", rows)
            self._start()
            try:
                for lane, episode in self._episodes.items():
                    self._again(lane, episode)
            except ray.exceptions.RayActorError as next_error:
                error = next_error
                continue
            return

    def _again(self, lane: int, episode: _Episode) -> None:
        draw, each_step = episode.draw, episode.each_step
        look: Look = _wait(self._actor.reset.remote(lane, episode.seed, draw=draw))
        seen = look.observation
        for count, action in enumerate(episode.actions, 1):
            look = _wait(self._actor.step.remote(lane, action, draw=draw, each_step=each_step))
            if count == episode.looked:
                seen = look.observation if each_step else _wait(self._actor.look.remote(lane)).observation
        if not np.array_equal(seen, episode.seen):
            raise RoboserveError(
                "unavailable",
                f"workers: lane {lane}, seed {episode.seed}: played again, its {len(episode.actions)} steps led "
                "elsewhere, so that the episode that was lost cannot go on",
            )


def _wait(reference: Any) -> Any:
    """Return an actor's answer.

    Raises:
        RayActorError: it is gone. Else what its environment raised.
    """
    import ray

    try:
        answer = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    if isinstance(answer, _Refusal):
        raise RoboserveError(answer.code, answer.message)
    return answer
