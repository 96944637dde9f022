"""A robot's environment as a VLA knows it: what its encoder makes of an observation takes the place of the state."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np

from clients.images import resize_with_pad
from finetune.common.environments.registry import make_env
from finetune.common.environments.robot import RobotEnv

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray


class View(Protocol):
    """A camera as a policy has it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def height(self) -> int:
        """Pixels."""
        ...

    @property
    def width(self) -> int:
        """Pixels."""
        ...


class Eyes(Protocol):
    """What makes a state of an observation."""

    @property
    def cameras(self) -> Sequence[View]:
        """What it needs."""
        ...

    @property
    def size(self) -> int:
        """Numbers of a state."""
        ...

    def encode(
        self, images: Mapping[str, NDArray[np.uint8]], state: NDArray[np.float32], instruction: str
    ) -> NDArray[np.float32]:
        """Return the state, float32 (size,), of images of these cameras, the robot's state and the instruction."""
        ...


class SeeingEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Observation: float32 (features,), of the images, the state and the instruction that the robot is told.

    Looking is most of the work. Who needs observations only where decisions are made sets `each_step` to False: `step`
    then gives NaN, and `look` what is seen now.

    Args:
        env: a robot's. `encoder`: of the VLA that acts, or what sends it observations.

    Raises:
        TypeError: the environment is no robot's.
        ValueError: the robot lacks a camera of the VLA.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], encoder: Eyes) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, RobotEnv):
            raise TypeError(f"task: {type(env.unwrapped).__name__} has no cameras; a VLA needs robot:name=...")
        self._robot, self._encoder = env.unwrapped, encoder
        wanted = {camera.name for camera in encoder.cameras}
        if not wanted <= set(self._robot.cameras):
            raise ValueError(f"task: the robot has the cameras {self._robot.cameras}, the policy needs {wanted}")
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (encoder.size,), np.float32)
        self.each_step = True
        self._unseen = np.full(encoder.size, np.nan, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode."""
        _, info = self.env.reset(seed=seed, options=options)
        return self.look(), info

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], Any, bool, bool, dict[str, Any]]:
        """Play a row for one tick."""
        _, reward, terminated, truncated, info = self.env.step(action)
        return self.look() if self.each_step else self._unseen.copy(), reward, terminated, truncated, info

    def look(self) -> NDArray[np.float32]:
        """Return what is seen now."""
        seen = self._robot.seen
        fitted = {
            camera.name: resize_with_pad(seen.images[camera.name], camera.height, camera.width)
            for camera in self._encoder.cameras
        }
        return self._encoder.encode(fitted, np.asarray(seen.state, np.float32), self._robot.told)


def maker(task: str, encoder: Eyes | None) -> Callable[[], gymnasium.Env[Any, Any]]:
    """Return what makes the environment of `make_env`, as the policy's encoder knows it where it has one."""
    if encoder is None:
        return partial(make_env, task)
    return lambda: SeeingEnv(make_env(task), encoder)
