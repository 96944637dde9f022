"""One decision, several steps: a chunk is played open loop, and what happened is handed back whole.

Rewards of a served model may come later than the steps (`clients.reward_env.RewardEnv` with a lag). A learner keeps
what `labelled` gives, in the order of play: never a step without its reward, and never waiting for one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from clients.reward_env import RewardEnv

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import gymnasium
    from numpy.typing import NDArray

    from clients.reward_env import Transition

Wait = Literal["no", "all"]


@dataclass(frozen=True, kw_only=True)
class Macro:
    """What a chunk led to, n steps of it.

    Attributes:
        observations: float32 (n + 1, O), from before the first step to after the last; NaN between these two where
            nobody looked.
        actions: float32 (n, A), as played.
        rewards: float32 (n,); NaN where they are not there yet.
        terminated: the task ended the episode: nothing follows. `truncated`: the clock did: the value goes on.
        success: whether the last step said so: the environment, or, for served rewards, the model.
        infos: of each step.
        note: what the learner noted when it chose the chunk.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminated: bool
    truncated: bool
    success: bool
    infos: tuple[dict[str, Any], ...]
    note: Any = None

    @property
    def over(self) -> bool:
        """Whether the episode is."""
        return self.terminated or self.truncated


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a learner chose.

    Attributes:
        chunks: float32 (N, H, A).
        notes: one for each, with which the macro comes back to be kept; empty for a learner that needs none.
    """

    chunks: NDArray[np.float32]
    notes: Sequence[Any] = ()

    def note(self, index: int) -> Any:
        """Return the note of a chunk."""
        return self.notes[index] if self.notes else None


class MacroEnv:
    """An environment that plays chunks.

    Args:
        env: its observations are vectors, its actions lie in [-1, 1].
        execute: steps of a chunk that are played, unless the episode ends before.
        each_step: False spares an environment that can (`environments.seeing`) all looks but those before and after a
            chunk.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, execute: int, each_step: bool = True) -> None:
        if execute < 1:
            raise ValueError(f"execute: {execute}, must be 1 or more")
        self.env, self.execute = env, execute
        self._look: Callable[[], NDArray[np.float32]] | None = None
        if not each_step and env.has_wrapper_attr("look"):
            env.set_wrapper_attr("each_step", value=False)
            self._look = env.get_wrapper_attr("look")

    def reset(self, *, seed: int | None = None) -> NDArray[np.float32]:
        """Begin an episode and return what is seen, float32 (O,)."""
        seen, _ = self.env.reset(seed=seed)
        self.seen = np.asarray(seen, np.float32)
        return self.seen

    def step(self, chunk: NDArray[np.float32], note: Any = None) -> Macro:
        """Play the first `execute` rows of a chunk (H, A), cut to [-1, 1]; `note` comes back with the macro."""
        rows = np.clip(np.asarray(chunk[: self.execute], np.float32), -1.0, 1.0)
        observations, rewards, infos = [self.seen], [], []
        terminated = truncated = False
        for row in rows:
            seen, reward, terminated, truncated, info = self.env.step(row)
            observations.append(np.asarray(seen, np.float32))
            rewards.append(float(reward))
            infos.append(info)
            if terminated or truncated:
                break
        if self._look is not None:
            observations[-1] = self._look()
        self.seen = observations[-1]
        return Macro(
            observations=np.stack(observations),
            actions=rows[: len(rewards)],
            rewards=np.asarray(rewards, np.float32),
            terminated=bool(terminated),
            truncated=bool(truncated),
            success=bool(infos[-1]["success"]),
            infos=tuple(infos),
            note=note,
        )


class PaidMacros(MacroEnv):
    """An environment to learn in: what was played is handed out once all its rewards are there, in order, each once.

    Args:
        env: a `clients.reward_env.RewardEnv` may pay late; any other pays at once. `execute`, `each_step`: see
            `MacroEnv`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, execute: int, each_step: bool = True) -> None:
        super().__init__(env, execute=execute, each_step=each_step)
        self._late = env if isinstance(env, RewardEnv) and env.lag else None
        self._waiting: deque[Macro] = deque()
        self._paid: list[Transition] = []

    def step(self, chunk: NDArray[np.float32], note: Any = None) -> Macro:
        """Play a chunk; `labelled` hands it out again with its rewards."""
        macro = super().step(chunk, note)
        self._waiting.append(macro)
        return macro

    def labelled(self, *, wait: Wait = "no") -> list[Macro]:
        """Return what has all its rewards by now.

        Args:
            wait: "all" waits for every reward that is under way.

        Raises:
            RoboserveError: what the reward model refused, once the macros before it were returned.
        """
        if self._late is None:
            done = list(self._waiting)
            self._waiting.clear()
            return done
        self._paid += self._late.drain() if wait == "all" else self._late.labelled()
        done = []
        while self._waiting and len(self._paid) >= len(self._waiting[0].rewards):
            macro = self._waiting.popleft()
            own, self._paid = self._paid[: len(macro.rewards)], self._paid[len(macro.rewards) :]
            done.append(_labelled(macro, own))
        return done


class HandedOver:
    """What several environments played, in an order in which no episode is interrupted by another.

    One environment's macros are handed over as soon as they are labelled; those of several when their episode is over
    and labelled, in the environments' order.
    """

    def __init__(self, envs: Sequence[PaidMacros]) -> None:
        self._envs = envs
        self._held: list[list[Macro]] = [[] for _ in envs]

    def labelled(self, *, wait: Wait = "no") -> list[Macro]:
        """Return what may be kept by now; see `PaidMacros.labelled`."""
        if len(self._envs) == 1:
            return self._envs[0].labelled(wait=wait)
        done: list[Macro] = []
        for held, env in zip(self._held, self._envs, strict=True):
            for macro in env.labelled(wait=wait):
                held.append(macro)
                if macro.over:
                    done += held
                    held.clear()
        return done


def _labelled(macro: Macro, paid: list[Transition]) -> Macro:
    rewards = np.array([transition.reward for transition in paid], np.float32)
    return replace(macro, rewards=rewards, success=paid[-1].success)
