"""The folder of a run: settings, metrics, and the state to go on from. No pickle: JSON lines and safetensors.

A run draws all its randomness from (seed, count), so that its state is weights, moments and replay, and a run that was
killed and started again gives the same numbers as one that was not.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

CONFIG, METRICS, STATE = "config.json", "metrics.jsonl", "state.safetensors"
_STEP = "run/step"


class Run:
    """A run on disk.

    Args:
        path: made when absent.
        identity: what makes the run what it is, as JSON has it.

    Raises:
        ValueError: the folder belongs to a run with another identity; the message names the settings that differ.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._writer: Any = None
        path.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(identity, default=str))
        config = path / CONFIG
        if config.exists():
            kept = json.loads(config.read_text("utf-8"))
            differing = sorted(name for name in {*wanted, *kept} if wanted.get(name) != kept.get(name))
            if differing:
                raise ValueError(
                    f"out: {path.name} holds a run with other {', '.join(differing)}; choose another folder"
                )
        config.write_text(json.dumps(wanted, indent=2) + "\n", "utf-8")

    def restore(self) -> tuple[int, dict[str, Tensor]] | None:
        """Return step and tensors last saved, if there are any, and drop the metrics after them."""
        file = self.path / STATE
        tensors = load_file(file) if file.exists() else None
        step = int(tensors.pop(_STEP)) if tensors is not None else 0
        kept = [row for row in metrics(self.path) if row["step"] <= step] if tensors is not None else []
        (self.path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
        return None if tensors is None else (step, tensors)

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Save a state; a kill leaves the old one or the new one."""
        whole = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        save_file({**whole, _STEP: torch.tensor(step)}, self.path / "state.new")
        (self.path / "state.new").replace(self.path / STATE)

    def log(self, row: Mapping[str, Any]) -> None:
        """Write metrics, `step` among them, as a JSON line and for TensorBoard."""
        with (self.path / METRICS).open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(row) + "\n")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path / "tensorboard"))
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Write what TensorBoard has not got yet."""
        if self._writer is not None:
            self._writer.close()


def metrics(path: Path) -> list[dict[str, Any]]:
    """Return a run folder's metrics; half a line that a kill left is not among them."""
    file = path / METRICS
    if not file.exists():
        return []
    text = file.read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def pack(
    *,
    modules: Mapping[str, torch.nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    arrays: Mapping[str, Mapping[str, NDArray[Any]]],
) -> dict[str, Tensor]:
    """Return the state of modules, optimisers and replays as tensors under flat names."""
    flat = {
        f"module/{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
    }
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            flat |= {f"optimizer/{name}/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    for name, parts in arrays.items():
        flat |= {f"array/{name}/{key}": torch.from_numpy(np.array(value)) for key, value in parts.items()}
    return flat


def unpack(
    tensors: Mapping[str, Tensor],
    *,
    modules: Mapping[str, torch.nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, dict[str, NDArray[Any]]]:
    """Bring modules and optimisers to what `pack` gave, and return the arrays."""
    for name, module in modules.items():
        module.load_state_dict(_part(tensors, f"module/{name}/"))
    for name, optimizer in optimizers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _part(tensors, f"optimizer/{name}/").items():
            index, _, moment = key.partition("/")
            moments.setdefault(int(index), {})[moment] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    for key, value in _part(tensors, "array/").items():
        name, _, part = key.partition("/")
        arrays.setdefault(name, {})[part] = value.numpy()
    return arrays


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def ema(average: torch.nn.Module, network: torch.nn.Module, rate: float) -> None:
    """Move averaged weights towards a network's by `rate`, in place."""
    pairs: Iterable[tuple[Tensor, Tensor]] = zip(average.parameters(), network.parameters(), strict=True)
    with torch.no_grad():
        averaged, current = zip(*pairs, strict=True)
        torch._foreach_lerp_(list(averaged), list(current), rate)
