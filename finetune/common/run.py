"""The folder of a run: settings, metrics, and the state to go on from. No pickle: JSON lines and safetensors.

A run draws all its randomness from (seed, count), so that its state is weights, moments and replay, and a run that was
killed and started again gives the same numbers as one that was not.
"""

from __future__ import annotations

import fcntl
import json
import math
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

CONFIG, METRICS, STATE, LOCK = "config.json", "metrics.jsonl", "state.safetensors", "lock"
_PLACE = ("step", "seconds")


@dataclass(kw_only=True)
class Run:
    """A run folder and the place that a run has come to.

    Args:
        folder: made when absent. `identity`: what makes the run what it is, as JSON has it.
        board: log for TensorBoard as well.
        claims: keep other processes out of it; of a job of several, that is for the main one.

    Raises:
        ValueError: the folder holds a run with another identity, whose differing settings are named; or another process
            is at it.
    """

    folder: Path
    identity: Mapping[str, Any]
    board: bool = False
    claims: bool = True
    step: int = 0
    seconds: float = 0.0
    _writer: Any = field(default=None, init=False, repr=False)
    _lock: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = claim(self.folder) if self.claims else None
        path = self.folder / CONFIG
        identity = json.loads(json.dumps(self.identity, default=str))
        if path.exists():
            kept = json.loads(path.read_text("utf-8"))
            differing = sorted(name for name in {*identity, *kept} if identity.get(name) != kept.get(name))
            if differing:
                text = ", ".join(differing)
                raise ValueError(f"out: {self.folder.name} holds a run with other settings ({text})")
        path.write_text(json.dumps(identity, indent=2) + "\n", "utf-8")

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Save weights, moments and place; a kill leaves the old state or the new one."""
        self.write({**_prefixed("network/", module.state_dict()), **_prefixed("optimizer/", moments(optimizer))})

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Save tensors and the place; a kill leaves the old state or the new one."""
        place = {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in _PLACE}
        kept = {name: value.detach().clone().contiguous() for name, value in {**tensors, **place}.items()}
        save_file(kept, self.folder / "state.new")
        (self.folder / "state.new").replace(self.folder / STATE)

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Go on from the state saved last, if there is one, and drop the metrics logged after it."""
        tensors = self.read()
        if tensors:
            module.load_state_dict(_part(tensors, "network/"))
            set_moments(optimizer, _part(tensors, "optimizer/"))

    def read(self) -> dict[str, Tensor]:
        """Return the tensors saved last, take their place, and drop the metrics logged after it; empty without any."""
        path = self.folder / STATE
        tensors = load_file(path) if path.exists() else {}
        if tensors:
            self.step, self.seconds = int(tensors.pop("step")), float(tensors.pop("seconds"))
        rows = [row for row in self.metrics() if tensors and row["step"] <= self.step]
        (self.folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return tensors

    def log(self, **values: Any) -> None:
        """Write one row of metrics as a JSON line."""
        row = {"step": self.step, "seconds": round(self.seconds, 2), **values}
        with (self.folder / METRICS).open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(row) + "\n")
        if not self.board:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # what a killed run logged beyond is dropped here too
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step)
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, self.step)
        self._writer.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows logged so far."""
        return metrics(self.folder)


def claim(folder: Path) -> IO[str]:
    """Keep other processes out of a run's folder until what is returned is closed, or this process ends, however.

    Raises:
        ValueError: another process is at it.
    """
    lock = (folder / LOCK).open("w")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        lock.close()
        raise ValueError(f"out: another process is writing the run {folder.name}") from error
    return lock


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return a run folder's metrics; half a line that a kill left is not among them."""
    file = folder / METRICS
    if not file.exists():
        return []
    text = file.read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def run_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the state that a run saved last.

    Raises:
        FileNotFoundError: it saved none.
    """
    path = folder / STATE
    if not path.is_file():
        raise FileNotFoundError(f"start: {folder} holds no state of a run")
    return _part(load_file(path), "network/")


def cosine_rate(peak: float, step: int, steps: int, *, warmup: float, floor: float = 0.02) -> float:
    """Return the learning rate of a step: linear warm-up over a share of all steps, then a cosine to `floor` x peak."""
    ramp = min(1.0, (step + 1) / max(1.0, warmup * steps))
    return peak * ramp * ((1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps)) + floor)


def pack(
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    arrays: Mapping[str, Mapping[str, NDArray[Any]]],
) -> dict[str, Tensor]:
    """Return the state of modules, optimisers and replays as tensors under flat names."""
    flat: dict[str, Tensor] = {}
    for name, module in modules.items():
        flat |= _prefixed(f"module/{name}/", module.state_dict())
    for name, optimizer in optimizers.items():
        flat |= _prefixed(f"optimizer/{name}/", moments(optimizer))
    for name, parts in arrays.items():
        flat |= _prefixed(f"array/{name}/", {key: torch.from_numpy(np.array(value)) for key, value in parts.items()})
    return flat


def unpack(
    tensors: Mapping[str, Tensor],
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, dict[str, NDArray[Any]]]:
    """Bring modules and optimisers to what `pack` gave, and return the arrays."""
    for name, module in modules.items():
        module.load_state_dict(_part(tensors, f"module/{name}/"))
    for name, optimizer in optimizers.items():
        set_moments(optimizer, _part(tensors, f"optimizer/{name}/"))
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    for key, value in _part(tensors, "array/").items():
        name, _, part = key.partition("/")
        arrays.setdefault(name, {})[part] = value.numpy()
    return arrays


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's moments as tensors under flat names."""
    state = optimizer.state_dict()["state"]
    return {f"{index}/{name}": torch.as_tensor(value) for index, kept in state.items() for name, value in kept.items()}


def set_moments(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Put back what `moments` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
