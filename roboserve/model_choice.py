"""Which model a command asks, where its user did not say all of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from clients.connection import parse_address
from clients.errors import RoboserveError
from roboserve import state


class Choice(NamedTuple):
    """What a family of models is asked of where nothing is chosen: `here` in this process, `served` on a platform.

    `names` are others that a model of this process goes by.
    """

    family: str
    here: str
    served: str
    names: tuple[str, ...] = ()


REWARD = Choice(family="reward", here="zoo:metaworld-robometer", served="robometer")
PATH = Choice(family="path", here="zoo:metaworld-vlm", served="metaworld")
ORACLE = "oracle"
"""A labeller that is told the truth: only where pairs carry it."""
PREFERENCE = Choice(family="preference", here="zoo:metaworld-vlm", served="metaworld", names=(ORACLE,))


def chosen_model(model: str | None, server: str | None, choice: Choice) -> str:
    """Return the model to open: a served one's address where a platform is named or runs, else a checkpoint.

    Raises:
        RoboserveError: `invalid_request`.
    """
    if server is None and model is not None and (":" in model or model in choice.names or Path(model).is_dir()):
        return model
    running = state.read()
    if server is None and running is None:
        if model is not None:
            raise RoboserveError(
                "invalid_request",
                f"model: {model!r:.80} is neither zoo:NAME nor a folder, and no platform runs that serves it",
            )
        return choice.here
    address = server or "ws" + (running.url.removeprefix("http") if running else "")
    if parse_address(address, family=choice.family).uri.endswith("/"):
        return parse_address(address, model or choice.served, family=choice.family).uri
    return parse_address(address, model, family=choice.family).uri
