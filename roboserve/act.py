"""`roboserve act`: one observation in, one action chunk out, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from clients.errors import RoboserveError
from clients.policy import ActOptions, PolicyClient, fit_images
from roboserve import state
from roboserve.credentials import api_key

if TYPE_CHECKING:
    from pathlib import Path

    from clients.contract import PolicyContract
    from clients.policy import ActReply

_DEFAULT_SERVER = "ws://127.0.0.1:8000"


@dataclass(frozen=True, kw_only=True)
class ActCommand:
    """One request as the command line gives it."""

    instruction: str
    server: str | None
    images: tuple[str, ...]
    state: str | None
    seed: int


def run(command: ActCommand, key_file: Path | None) -> int:
    """Ask once and print the chunk."""
    console = Console()
    try:
        with PolicyClient(command.server or _local_server(), api_key=api_key(key_file)) as client:
            contract = client.contract
            reply = client.act(
                images=fit_images(contract, _images(command, contract), codec="png"),
                state=_state(command, contract),
                instruction=command.instruction,
                options=ActOptions(seed=command.seed if "seed" in contract.supports else None),
            )
    except (RoboserveError, OSError, ValueError) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 1
    _print(console, contract, reply)
    return 0


def _local_server() -> str:
    running = state.read()
    return "ws" + running.url.removeprefix("http") if running else _DEFAULT_SERVER


def _images(command: ActCommand, contract: PolicyContract) -> dict[str, np.ndarray]:
    images = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in contract.cameras}
    for pair in command.images:
        name, _, file = pair.partition("=")
        if name not in images or not file:
            raise ValueError(f"--image {pair}: say CAMERA=FILE; this policy's cameras are {', '.join(images)}")
        with Image.open(file) as image:
            images[name] = np.asarray(image.convert("RGB"))
    return images


def _state(command: ActCommand, contract: PolicyContract) -> np.ndarray:
    if command.state is None:
        return np.zeros(contract.state.size, np.float32)
    values = np.array([float(part) for part in command.state.split(",")], np.float32)
    if values.size != contract.state.size:
        names = ", ".join(contract.state.names)
        raise ValueError(f"--state: {values.size} numbers, this policy needs {contract.state.size} ({names})")
    return values


def _print(console: Console, contract: PolicyContract, reply: ActReply) -> None:
    model = reply.model
    console.print(f"{model.id} revision {model.revision} ({model.content_hash[:12]})", highlight=False)
    table = Table(
        "row", *(f"{name} [{unit}]" for name, unit in zip(contract.action.names, contract.action.units, strict=True))
    )
    for index, row in enumerate(reply.actions):
        style = None if index < contract.execute else "dim"
        table.add_row(str(index), *(f"{value:+.4f}" for value in row), style=style)
    console.print(table)
    parts = "  ".join(f"{name} {value:.2f}" for name, value in reply.timings.items())
    console.print(f"{reply.round_trip_ms:.2f} ms round trip; on the server: {parts} ms", highlight=False)
