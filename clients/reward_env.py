"""Served rewards for any Gymnasium environment; needs gymnasium, which the extra `sim` installs.

with RewardClient("ws://127.0.0.1:8000/reward/robometer") as client:
    env = RewardEnv(env, client, "open the drawer", shape=RewardShape(form="delta"))
    observation, reward, terminated, truncated, info = env.step(action)      # the reward is the model's

With `lag`, `step` does not wait for the model; each transition is to be had once its reward is there:

    env = RewardEnv(env, client, "open the drawer", lag=16)
    env.step(action)                                                         # the reward is NaN
    for transition in env.labelled(): buffer.add(transition.observation, transition.action, transition.reward, ...)
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from clients.errors import RoboserveError
from clients.reward_episode import EpisodeStream, View
from clients.reward_lag import LaggedJudge
from clients.reward_shaping import RewardShape, Shaper

try:
    import gymnasium
except ImportError as missing:
    raise ImportError("clients.reward_env needs gymnasium, as the extra `sim` installs it") from missing

if TYPE_CHECKING:
    from clients.reward import RewardClient
    from clients.reward_shaping import Paid

FrameSource = Union[None, str, Callable[[Any, Any], View]]
_PLAIN = RewardShape()


@dataclass(frozen=True)
class Transition:
    """One step with its reward.

    Attributes:
        episode: number of the reset before it, from 0; `step`: its number in the episode, from 1.
        observation, action, next_observation, terminated, truncated, info: what the environment took and gave.
        reward: by the shape; `env_reward`: the environment's own.
        judged: whether the model was shown the frame after this step.
        progress: of that frame, 0 to 1; `success_probability`: likewise. None where not judged, or not given.
        success: whether the model saw success, by the shape's threshold and window, at the latest judged frame.
    """

    episode: int
    step: int
    observation: Any
    action: Any
    reward: float
    next_observation: Any
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]
    env_reward: float
    judged: bool
    progress: Optional[float]
    success_probability: Optional[float]
    success: bool


@dataclass(frozen=True)
class _Start:
    """An episode's first frame."""

    instruction: str
    view: View


@dataclass(frozen=True)
class _Step:
    """A step without its reward; `view` is None where the model is not shown it."""

    transition: Transition
    view: Optional[View]


class RewardEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Pays an environment's steps by a served reward model; each frame goes up the wire once.

    Synchronous (`lag` 0): `step` returns the reward. `info` gains `reward_ready` (True), `env_reward`, `progress`,
    `success_probability` and `served_success`, as in `Transition`.

    Asynchronous (`lag` n): `step` returns at once with the reward NaN and `info["reward_ready"]` False, and waits only
    while n steps are without reward. Every step is in `labelled()` exactly once, in order, also over resets. Success
    that ends the episode (`shape.terminate`) is known late: the first step after the news ends it.

    Args:
        env: any environment; its spaces stay.
        client: may be shared with other environments.
        instruction: what the episode is judged by; set `instruction` anew to change it at the next reset.
        shape: what is paid for what.
        frames: where frames come from: None for `env.render()`, a key of the observations, or a function of (env,
            observation). RGB uint8 (h, w, 3), or such by camera.
        every: show the model every n-th step, and the episode's last, so that it sees the rate that it was trained
            at. The steps between are not paid by the model, see `clients.reward_shaping`.
        lag: most steps without reward.
        frame_policy: which frames of the episode a value is read from; None for the model's own.
        patience_s: how long a lost server is waited for; then, or at once where it is 0, the call raises. An episode
            that raised is over: `reset` begins anew, and its `info["rewards_lost"]` counts the steps that get none.

    Raises:
        RoboserveError: `invalid_request` for `every` or `lag` out of range, or an environment that does not render
            arrays; `contract_mismatch` where the model lacks sessions or the success that the shape needs.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        client: RewardClient,
        instruction: str,
        *,
        shape: RewardShape = _PLAIN,
        frames: FrameSource = None,
        every: int = 1,
        lag: int = 0,
        frame_policy: Optional[str] = None,
        patience_s: float = 0.0,
    ) -> None:
        super().__init__(env)
        _check(env, client, shape, frames=frames, every=every, lag=lag)
        self.instruction = instruction
        self.shape = shape
        self._frames, self._every, self._lag = frames, every, lag
        self._stream = EpisodeStream(client, frame_policy=frame_policy, patience_s=patience_s)
        # where it is known late, it is the environment that ends, not the transition that the model judges
        self._paying = shape if lag == 0 else replace(shape, terminate=False)
        self._shaper: Optional[Shaper] = None
        self._episode, self._step, self._solved = -1, 0, -1
        self._observation: Any = None
        self._lagged: Optional[LaggedJudge[Union[_Start, _Step], Transition]] = None
        if lag:
            self._lagged = LaggedJudge(self._judge, lag=lag)

    @property
    def lag(self) -> int:
        """Most steps without reward; 0 where `step` returns it."""
        return self._lag

    @property
    def outstanding(self) -> int:
        """Steps without reward."""
        return 0 if self._lagged is None else self._lagged.outstanding

    def reset(
        self, *, seed: Optional[int] = None, options: Optional[Dict[str, Any]] = None
    ) -> Tuple[Any, Dict[str, Any]]:
        """Reset the environment and begin a new episode at the server.

        Raises:
            RoboserveError: as `clients.reward_episode.EpisodeStream.append`.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        self._episode, self._step = self._episode + 1, 0
        self._observation = copy.deepcopy(observation)
        start = _Start(self.instruction, self._look(observation))
        lost = 0
        if self._lagged is None:
            self._judge(start)
        else:
            lost = sum(isinstance(item, _Step) for item in self._lagged.recover())
            self._lagged.put(start)
        return observation, {**info, "rewards_lost": lost}

    def step(self, action: Any) -> Tuple[Any, float, bool, bool, Dict[str, Any]]:
        """Play an action.

        Raises:
            RoboserveError: `invalid_request` before `reset`; as `clients.reward_episode.EpisodeStream.append`, with a
                lag also for an earlier step.
        """
        if self._episode < 0:
            raise RoboserveError("invalid_request", "environment: reset must come before the first step")
        observation, env_reward, terminated, truncated, info = self.env.step(action)
        self._step += 1
        terminated = bool(terminated) or (self.shape.terminate and self._solved == self._episode)
        judged = terminated or bool(truncated) or self._step % self._every == 0
        following = copy.deepcopy(observation)
        transition = Transition(
            episode=self._episode,
            step=self._step,
            observation=self._observation,
            action=copy.deepcopy(action),
            reward=math.nan,
            next_observation=following,
            terminated=terminated,
            truncated=bool(truncated),
            info=info,
            env_reward=float(env_reward),
            judged=judged,
            progress=None,
            success_probability=None,
            success=False,
        )
        self._observation = following
        step = _Step(transition, self._look(observation) if judged else None)
        if self._lagged is not None:
            self._lagged.put(step)
            return observation, math.nan, terminated, bool(truncated), {**info, "reward_ready": False}
        done = self._pay(step)
        told = {
            "reward_ready": True,
            "env_reward": done.env_reward,
            "progress": done.progress,
            "success_probability": done.success_probability,
            "served_success": done.success,
        }
        return observation, done.reward, done.terminated, done.truncated, {**info, **told}

    def labelled(self) -> List[Transition]:
        """Return the transitions whose reward has come since the last call, in order; they are kept until then.

        Raises:
            RoboserveError: `invalid_request` without a lag, where `step` gives the reward; else what the server
                refused, once the transitions before it were taken.
        """
        return self._needs_lag().take()

    def drain(self) -> List[Transition]:
        """Wait until every step has its reward, and return what `labelled` gives; raises as it does."""
        lagged = self._needs_lag()
        lagged.drain()
        return lagged.take()

    def close(self) -> None:
        """Close the environment and the server's session; waits for the frame that is under way."""
        try:
            if self._lagged is not None:
                self._lagged.close()
            self._stream.close()
        finally:
            super().close()

    def _needs_lag(self) -> LaggedJudge[Union[_Start, _Step], Transition]:
        if self._lagged is None:
            raise RoboserveError("invalid_request", "lag: is 0, so that step returns the reward itself")
        return self._lagged

    def _judge(self, item: Union[_Start, _Step]) -> Optional[Transition]:
        """Begin an episode or pay a step; with a lag, in the judge's thread."""
        if isinstance(item, _Step):
            return self._pay(item)
        self._shaper = None
        self._shaper = Shaper(self._paying, self._stream.begin(item.instruction, item.view).progress)
        return None

    def _pay(self, step: _Step) -> Transition:
        if self._shaper is None:
            raise RoboserveError("invalid_request", "environment: the episode did not begin, reset it")
        known = step.transition
        if step.view is None:
            return _paid(known, self._shaper.unjudged(known.env_reward), None, None)
        value = self._stream.append(step.view)
        if value.success is None and self.shape.needs_success:
            raise RoboserveError("invalid_output", "success: the model gave none, and the shape needs it")
        paid = self._shaper.judged(known.env_reward, value.progress, value.success, terminated=known.terminated)
        if paid.success:
            self._solved = known.episode
        return _paid(known, paid, value.progress, value.success)

    def _look(self, observation: Any) -> View:
        if self._frames is None:
            view: Any = self.env.render()
        elif isinstance(self._frames, str):
            view = observation[self._frames]
        else:
            view = self._frames(self.env, observation)
        # a renderer may draw the next frame into the memory of this one
        kept: View = copy.deepcopy(view) if self._lagged is not None else view
        return kept


def _paid(known: Transition, paid: Paid, progress: Optional[float], probability: Optional[float]) -> Transition:
    return replace(
        known,
        reward=paid.reward,
        terminated=known.terminated or paid.terminated,
        progress=progress,
        success_probability=probability,
        success=paid.success,
    )


def _check(
    env: gymnasium.Env[Any, Any], client: RewardClient, shape: RewardShape, *, frames: FrameSource, every: int, lag: int
) -> None:
    if every < 1 or lag < 0:
        raise RoboserveError("invalid_request", f"every: {every}, must be 1 or more; lag: {lag}, must be 0 or more")
    if frames is None and env.render_mode != "rgb_array":
        raise RoboserveError("invalid_request", f"render_mode: {env.render_mode!r}, frames need 'rgb_array'")
    if shape.needs_success and "success" not in client.contract.supports:
        raise RoboserveError("contract_mismatch", f"success: {client.contract.model} gives none, the shape needs it")
