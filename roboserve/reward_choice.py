"""Which reward model a command asks where its user did not say."""

from __future__ import annotations

from pathlib import Path

from clients.connection import parse_address
from clients.errors import RoboserveError
from roboserve import state

DEFAULT_MODEL, SERVED_MODEL = "zoo:metaworld-robometer", "robometer"
"""What is asked where nothing is chosen: in this process, and on a platform."""


def chosen_model(model: str | None, server: str | None) -> str:
    """Return the model to open: a served model's address where a platform is named or runs, else a checkpoint."""
    if server is None and model is not None and (":" in model or Path(model).is_dir()):
        return model
    running = state.read()
    if server is None and running is None:
        if model is not None:
            raise RoboserveError(
                "invalid_request",
                f"model: {model!r:.80} is neither zoo:NAME nor a folder, and no platform runs that serves it",
            )
        return DEFAULT_MODEL
    address = server or "ws" + (running.url.removeprefix("http") if running else "")
    if parse_address(address, family="reward").uri.endswith("/"):
        return parse_address(address, model or SERVED_MODEL, family="reward").uri
    return parse_address(address, model, family="reward").uri
