"""Environments whose every step comes with a picture and a true reward that the learner is not told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import gymnasium
import numpy as np
from PIL import Image, ImageDraw

from finetune.sac.environment import MetaWorldEnv

if TYPE_CHECKING:
    from numpy.typing import NDArray

CARTPOLE = "cartpole"
_GRAVITY, _CART, _POLE, _HALF, _FORCE, _TICK = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
_FALLEN, _EDGE = 1.2, 2.4


class Pictured(Protocol):
    """An environment that has words for what it wants."""

    @property
    def instruction(self) -> str:
        """What is to be reached."""
        ...


class CartPoleEnv(gymnasium.Env["NDArray[np.float32]", "NDArray[np.float32]"]):
    """The cart and the pole of Barto, Sutton and Anderson (1983), pushed by any force up to 10 N.

    Every episode has the same length, so that its end tells nothing: a pole that has fallen stays where it is. The true
    reward is 1 for an upright pole and falls to 0 where it has fallen. Observation: float32 (4,), position m, speed
    m/s, angle rad, angular speed rad/s. Action: float32 (1,), -1 to 1.

    Args:
        horizon: decisions of an episode; `image_size`: side of the square pictures, pixels.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as Gymnasium declares it
    render_mode = "rgb_array"
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    instruction = "the brown pole on the black cart stands upright"

    def __init__(self, *, horizon: int = 100, image_size: int = 64) -> None:
        self._horizon, self._side = horizon, image_size

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin with a pole that leans by up to 0.4 rad and moves a little."""
        super().reset(seed=seed, options=options)
        self._state = self.np_random.uniform(-1.0, 1.0, 4) * (0.5, 0.05, 0.4, 0.05)
        self._left = self._horizon
        return self._state.astype(np.float32), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Push for a fiftieth of a second (semi-implicit Euler)."""
        place, speed, angle, turning = self._state
        if abs(angle) < _FALLEN and abs(place) < _EDGE:
            sine, cosine = np.sin(angle), np.cos(angle)
            pull = (float(np.clip(action[0], -1.0, 1.0)) * _FORCE + _POLE * _HALF * turning**2 * sine) / (_CART + _POLE)
            turn = (_GRAVITY * sine - cosine * pull) / (_HALF * (4 / 3 - _POLE * cosine**2 / (_CART + _POLE)))
            push = pull - _POLE * _HALF * turn * cosine / (_CART + _POLE)
            speed, turning = speed + _TICK * push, turning + _TICK * turn
            self._state = np.array([place + _TICK * speed, speed, angle + _TICK * turning, turning])
        else:
            self._state = np.array([place, 0.0, angle, 0.0])
        self._left -= 1
        reward = uprightness(self._state[2])
        return self._state.astype(np.float32), reward, False, self._left <= 0, {"success": reward > 0.9}

    def render(self) -> Any:
        """Draw cart and pole, uint8 (image_size, image_size, 3)."""
        return cartpole_picture(float(self._state[0]), float(self._state[2]), self._side)


def cartpole_picture(place: float, angle: float, side: int) -> NDArray[np.uint8]:
    """Draw a cart at `place`, m, whose pole leans by `angle`, rad; uint8 (side, side, 3)."""
    scale = 4 * side
    image = Image.new("RGB", (scale, scale), (250, 250, 250))
    pen = ImageDraw.Draw(image)
    middle, floor, long = scale * (0.5 + 0.16 * place), 0.78 * scale, 0.5 * scale
    pen.line((0, floor, scale, floor), fill=(160, 160, 160), width=scale // 100)
    half, high = 0.1 * scale, 0.07 * scale
    pen.rectangle((middle - half, floor - high, middle + half, floor + high), fill=(20, 20, 20))
    tip = (middle + long * np.sin(angle), floor - high - long * np.cos(angle))
    pen.line((middle, floor - high, *tip), fill=(165, 105, 60), width=scale // 18)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def uprightness(angle: float) -> float:
    """Return the true reward of a pole that leans by `angle`, rad: 1 upright, 0 where it has fallen."""
    return float(np.clip(1.0 - abs(angle) / _FALLEN, 0.0, 1.0))


class PictureEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds to every step's `info` the picture of where it led and its true reward, for `PictureBuffer`."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play an action and look."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        picture = np.asarray(self.env.render(), np.uint8)
        return (
            observation,
            float(reward),
            terminated,
            truncated,
            {**info, "picture": picture, "true_reward": float(reward)},
        )


def make_environment(task: str, *, horizon: int, repeat: int, image_size: int) -> tuple[gymnasium.Env[Any, Any], str]:
    """Return a task's environment and its wording.

    Raises:
        RoboserveError: the task is unknown.
    """
    env: Any
    if task == CARTPOLE:
        env = CartPoleEnv(horizon=horizon, image_size=image_size)
    else:
        env = MetaWorldEnv(task, own_reward="env", horizon=horizon, repeat=repeat, image_size=image_size)
    return env, cast("Pictured", env).instruction
