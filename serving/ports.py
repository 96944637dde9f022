"""TCP ports that are free on this machine now."""

from __future__ import annotations

import random
import socket

_BLOCKS = (20_000, 32_000)
"""Below the ports that the kernel hands out and above those of Ray's workers."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_port_block(count: int, *, seed: int | None = None) -> range:
    """Return `count` TCP ports in a row, all free now on every address; where they begin is drawn at random.

    Raises:
        RuntimeError: no such block was found in a hundred draws.
    """
    draw = random.Random(seed)  # noqa: S311  nothing is secret about a port
    for _ in range(100):
        first = draw.randrange(*_BLOCKS, count)
        block = range(first, first + count)
        if block[-1] < _BLOCKS[1] and all(map(_is_free, block)):
            return block
    raise RuntimeError(f"no {count} free TCP ports in a row between {_BLOCKS[0]} and {_BLOCKS[1]}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
