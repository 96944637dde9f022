"""A training run on disk: settings, metrics, and the state to resume from; safetensors and JSON only."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn


@dataclass(kw_only=True)
class Run:
    """A run folder and the place that a run has come to.

    Args:
        folder: made when absent; `identity`: what makes the run what it is.

    Raises:
        ValueError: the folder holds a run with another identity; the message names the settings that differ.
    """

    folder: Path
    identity: dict[str, Any]
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.json"
        identity = json.loads(json.dumps(self.identity, default=str))
        if path.exists():
            kept = json.loads(path.read_text("utf-8"))
            differing = sorted(name for name in identity if identity[name] != kept.get(name))
            if differing:
                raise ValueError(f"out: {self.folder.name} holds a run with other settings ({', '.join(differing)})")
        path.write_text(json.dumps(identity, indent=2) + "\n", "utf-8")

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Save weights, moments and place; a kill leaves the old state or the new one."""
        flat = {f"network/{name}": value for name, value in module.state_dict().items()}
        for index, moments in optimizer.state_dict()["state"].items():
            flat |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
        self.write(flat)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Save tensors and the place; a kill leaves the old state or the new one."""
        place = {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("step", "seconds")}
        kept = {name: value.detach().clone().contiguous() for name, value in {**tensors, **place}.items()}
        save_file(kept, self.folder / "state.new")
        (self.folder / "state.new").replace(self.folder / "state.safetensors")

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Go on from the state saved last, if there is one, and drop the metrics logged after it."""
        tensors = self.read()
        if not tensors:
            return
        module.load_state_dict(_part(tensors, "network/"))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimizer/").items():
            index, _, moment = name.partition("/")
            moments.setdefault(int(index), {})[moment] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def read(self) -> dict[str, Tensor]:
        """Return the tensors saved last, take their place, and drop the metrics logged after it; empty without any."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return {}
        tensors = load_file(path)
        self.step, self.seconds = int(tensors["step"]), float(tensors["seconds"])
        rows = [row for row in self.metrics() if row["step"] <= self.step]
        self._log.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return tensors

    def log(self, **values: float) -> None:
        """Write one row of metrics as a JSON line."""
        row = {"step": self.step, "seconds": round(self.seconds, 2), **values}
        with self._log.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(row) + "\n")

    def metrics(self) -> list[dict[str, float]]:
        """Return the rows logged so far."""
        return [json.loads(line) for line in self._log.read_text("utf-8").splitlines()] if self._log.exists() else []

    @property
    def _log(self) -> Path:
        return self.folder / "metrics.jsonl"


def run_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the state that a run saved last.

    Raises:
        FileNotFoundError: it saved none.
    """
    path = folder / "state.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"start: {folder} holds no state of a run")
    return _part(load_file(path), "network/")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def cosine_rate(peak: float, step: int, steps: int, *, warmup: float, floor: float = 0.02) -> float:
    """Return the learning rate of a step: linear warm-up over a share of all steps, then a cosine to `floor` x peak."""
    ramp = min(1.0, (step + 1) / max(1.0, warmup * steps))
    return peak * ramp * ((1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps)) + floor)
