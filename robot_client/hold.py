"""What a robot is told when there is nothing to play: decided by what each dimension means, not by the robot's luck."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import numpy as np

if TYPE_CHECKING:
    from clients.contract import Vector

Array = np.ndarray[Any, Any]


def hold_action(vector: Vector, last: Optional[Array]) -> Optional[Array]:
    """Return the command that keeps a robot where it is.

    A dimension that is absolute repeats its last command; a delta or a velocity is zero.

    Args:
        vector: the action vector, with its kinds.
        last: float32 (action size,), the last command that was sent; None where none was.

    Returns:
        float32 (action size,), or None where an absolute dimension has no last command to repeat: then only no command
        is safe.
    """
    absolute = np.array([kind == "absolute" for kind in vector.kinds], dtype=bool)
    if last is None:
        return None if absolute.any() else np.zeros(vector.size, np.float32)
    return np.where(absolute, last, 0.0).astype(np.float32)
