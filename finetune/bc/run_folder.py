"""A training run on disk: configuration, metrics, state to resume from, plot. No pickle: safetensors and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from finetune.common.run import claim

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from models.policies.flow_vla.network import FlowVLANetwork

_SMOOTHING = 0.98
_LOG_EVERY = 20
_COUNTERS = ("step", "seconds", "smooth_loss")


@dataclass(kw_only=True)
class TrainState:
    """Everything that a step changes."""

    network: FlowVLANetwork
    optimizer: torch.optim.AdamW
    average: dict[str, Tensor]
    step: int = 0
    seconds: float = 0.0
    smooth_loss: float = float("nan")

    @classmethod
    def fresh(cls, network: FlowVLANetwork, optimizer: torch.optim.AdamW) -> TrainState:
        """Return the state before the first step."""
        average = {name: value.detach().clone() for name, value in network.state_dict().items()}
        return cls(network=network, optimizer=optimizer, average=average)

    def advance(self, loss: float, *, ema: float) -> None:
        """Count a step: average the weights (faster at the start) and smooth the loss."""
        decay = min(ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        first = self.step == 0
        self.smooth_loss = loss if first else _SMOOTHING * self.smooth_loss + (1 - _SMOOTHING) * loss
        self.step += 1

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, averages and optimiser moments under flat names."""
        flat = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        flat |= {f"average/{name}": value for name, value in self.average.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            flat |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
        flat |= {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in _COUNTERS}
        return {name: value.detach().clone().contiguous() for name, value in flat.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what `tensors` gave."""
        self.network.load_state_dict(_part(tensors, "network/"))
        kept = _part(tensors, "average/")
        self.average = {name: kept[name].to(value) for name, value in self.network.state_dict().items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimizer/").items():
            index, _, moment = name.partition("/")
            moments.setdefault(int(index), {})[moment] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step = int(tensors["step"])
        self.seconds, self.smooth_loss = float(tensors["seconds"]), float(tensors["smooth_loss"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


class RunFolder:
    """The folder of a run.

    Args:
        path: made when absent.
        identity: what makes the run what it is.

    Raises:
        ValueError: the folder belongs to a run with another identity, whose differing settings are named; or another
            process is at it.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._path = path
        self._writer: Any = None
        path.mkdir(parents=True, exist_ok=True)
        self._lock = claim(path)
        config = path / "config.json"
        if config.exists():
            kept = json.loads(config.read_text("utf-8"))
            differing = sorted(name for name in identity if identity[name] != kept.get(name))
            if differing:
                text = (
                    f"out: {path.name} holds a run with other settings ({', '.join(differing)}); choose another folder"
                )
                raise ValueError(text)
        config.write_text(json.dumps(identity, indent=2), "utf-8")

    def restore(self, state: TrainState) -> None:
        """Bring a state to the last one saved, if there is one, and drop the metrics logged after it."""
        file = self._path / "state.safetensors"
        if not file.exists():
            return
        state.load(load_file(file))
        rows = [row for row in self.metrics() if row["step"] <= state.step]
        self._metrics.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def save(self, state: TrainState) -> None:
        """Save a state; a kill leaves the old one or the new one."""
        save_file(state.tensors(), self._path / "state.new")
        (self._path / "state.new").replace(self._path / "state.safetensors")

    def log(self, state: TrainState, rate: float) -> None:
        """Write metrics of every 20th step as a JSON line and for TensorBoard."""
        if state.step % _LOG_EVERY:
            return
        row = {"step": state.step, "loss": state.smooth_loss, "learning_rate": rate, "seconds": round(state.seconds, 2)}
        with self._metrics.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(row) + "\n")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._path / "tensorboard"))
        for name in ("loss", "learning_rate"):
            self._writer.add_scalar(name, row[name], state.step)

    @property
    def _metrics(self) -> Path:
        return self._path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, float]]:
        """Return the rows logged so far."""
        if not self._metrics.exists():
            return []
        return [json.loads(line) for line in self._metrics.read_text("utf-8").splitlines()]

    def plot(self) -> None:
        """Draw the loss over steps to loss.png."""
        from matplotlib.figure import Figure

        rows = self.metrics()
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.semilogy([row["step"] for row in rows], [row["loss"] for row in rows])
        axes.set(xlabel="step", ylabel="flow-matching loss (smoothed)", title=self._path.name)
        axes.grid(visible=True, which="both", alpha=0.3)
        figure.savefig(self._path / "loss.png", dpi=120)
