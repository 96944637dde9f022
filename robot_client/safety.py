"""The last check before a command reaches the robot; every command passes here, holds included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional, Tuple, Union

import numpy as np

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from clients.contract import Vector

Array = np.ndarray[Any, Any]
Validate = Callable[[Array, Optional[Array]], Optional[str]]
"""A user's own check: takes the command and the one before, returns None to let it pass or a sentence to refuse it."""


@dataclass(frozen=True)
class SafetyConfig:
    """Limits beside those of the contract and the robot's interface.

    Attributes:
        max_step: largest change of an absolute dimension from one command to the next, in its own units: one number for
            all, or one for each dimension; None for no limit.
        validate: the user's own check.
    """

    max_step: Union[float, Tuple[float, ...], None] = None
    validate: Optional[Validate] = None


@dataclass(frozen=True)
class Checked:
    """A command after the checks: the action to send, or None and why not; and which dimensions were limited."""

    action: Optional[Array]
    clamped: Tuple[str, ...] = ()
    refusal: Optional[str] = None


class Safety:
    """Checks shape, NaN and infinity, limits, the step of absolute dimensions, and the user's own rule, in that order.

    Args:
        vectors: the action vectors whose limits hold, of the contract and of the robot; the tighter limit wins.

    Raises:
        RoboserveError: `contract_mismatch` for limits that are not numbers or leave no room.
    """

    def __init__(self, config: SafetyConfig, *vectors: Vector) -> None:
        self._names = np.array(vectors[0].names)
        self._low = np.max([vector.low for vector in vectors], axis=0).astype(np.float32)
        self._high = np.min([vector.high for vector in vectors], axis=0).astype(np.float32)
        if not (self._low <= self._high).all():
            wrong = ", ".join(self._names[~(self._low <= self._high)])
            raise RoboserveError("contract_mismatch", f"action limits of {wrong}: low is not below high")
        step = np.full(len(self._names), np.inf if config.max_step is None else config.max_step, dtype=np.float32)
        if not (step > 0).all():
            raise RoboserveError("invalid_request", f"max_step: {config.max_step}, must be above 0")
        absolute = np.array([kind == "absolute" for kind in vectors[0].kinds], dtype=bool)
        self._step = np.where(absolute, step, np.float32(np.inf))
        self._validate = config.validate

    def check(self, action: Array, last: Optional[Array]) -> Checked:
        """Return the command that may be sent.

        Args:
            action: (action size,), any float dtype.
            last: the command before, as it was sent; None where there was none.
        """
        if action.shape != self._names.shape:
            return Checked(None, refusal=f"action: shape {action.shape}, needs {self._names.shape}")
        if not np.isfinite(action).all():
            return Checked(None, refusal=f"action: {', '.join(self._names[~np.isfinite(action)])} not finite")
        wanted = action.astype(np.float32)
        limited = np.clip(wanted, self._low, self._high)
        if last is not None:
            limited = np.clip(limited, last - self._step, last + self._step)
        clamped = tuple(str(name) for name in self._names[limited != wanted])
        refusal = self._ask(limited, last)
        return Checked(None if refusal else limited, clamped, refusal)

    def _ask(self, action: Array, last: Optional[Array]) -> Optional[str]:
        if self._validate is None:
            return None
        try:
            return self._validate(action.copy(), None if last is None else last.copy())
        except Exception as error:  # noqa: BLE001 - a check that fails has not passed, and the episode's events say so
            return f"validate: {type(error).__name__}: {error}"
