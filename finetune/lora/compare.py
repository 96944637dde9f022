"""Ways to teach a served VLA one more task: what each learns, what it forgets, and how many weights it takes.

Each method is trained on the same few demonstrations of a task that the base does not know, with several seeds, and
judged on fresh scenes of that task and of tasks that the base knows. A cell that is done is not done again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path  # noqa: TC003  a comparison's settings are read by tools
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.bc.evaluate import EvaluateConfig, evaluate_task
from finetune.common.intervals import wilson
from finetune.lora.artefacts import merge_adapter
from finetune.lora.train import FinetuneConfig, finetune
from finetune.lora.trainable import LoraSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from finetune.lora.trainable import Method


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train: its method, rank (of an adapter), and peak learning rate."""

    name: str
    method: Method
    learning_rate: float
    rank: int = 8


WAYS = (
    Way(name="full", method="full", learning_rate=3e-4),
    Way(name="heads", method="heads", learning_rate=1e-3),
    Way(name="lora-2", method="lora", learning_rate=1e-3, rank=2),
    Way(name="lora-8", method="lora", learning_rate=1e-3, rank=8),
    Way(name="lora-32", method="lora", learning_rate=1e-3, rank=32),
)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison.

    Attributes:
        base: checkpoint folder, or zoo:NAME. `data`: demonstrations of `task`, a LeRobot v3 dataset.
        task: the new one. `known`: tasks that the base knows.
        out: folder of the runs.
        steps, batch: of each run.
        episodes: scenes of the new task, `known_episodes` of each known one.
        heads: linear layers that "heads" trains.
    """

    base: str
    data: Path
    out: Path
    task: str
    known: tuple[str, ...]
    ways: tuple[Way, ...] = WAYS
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 800
    batch: int = 64
    episodes: int = 50
    known_episodes: int = 10
    heads: tuple[str, ...] = ("expert.leave.1",)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one run came to: weights that were trained and their share of the base's, and successes.

    Attributes:
        way: "base" is the base as it was. `new`, `old`: successes of `new_episodes` and `old_episodes`.
        seconds: of training.
    """

    way: str
    seed: int
    trained: int
    share: float
    seconds: float
    new: int
    new_episodes: int
    old: int
    old_episodes: int


def compare(config: CompareConfig, *, report: Callable[[int, str], None]) -> list[Cell]:
    """Train and judge what is not done; the base first.

    Args:
        report: told cells done, and the one that is under way.

    Raises:
        ValueError: a cell's file is of another comparison; see `finetune` and `EvaluateConfig` for the rest.
    """
    plan: list[tuple[Way | None, int]] = [(None, 0), *((way, seed) for seed in config.seeds for way in config.ways)]
    cells = []
    for done, (way, seed) in enumerate(plan):
        name = "base" if way is None else f"{way.name}-{seed}"
        report(done, name)
        cells.append(_cell(config, way, seed, config.out / name))
    report(len(plan), "")
    return cells


def _cell(config: CompareConfig, way: Way | None, seed: int, folder: Path) -> Cell:
    """Return a cell, from its file if it has one."""
    settings = json.loads(json.dumps(asdict(replace(config, ways=(), seeds=())), default=str))
    identity = {**settings, "way": None if way is None else asdict(way), "seed": seed}
    file = folder / "cell.json"
    if file.exists():
        kept = json.loads(file.read_text("utf-8"))
        if kept["identity"] != identity:
            raise ValueError(f"{file}: is of another comparison; choose another folder")
        return Cell(**kept["cell"])
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"trained": 0, "share": 0.0, "seconds": 0.0}
    checkpoint = config.base
    if way is not None:
        checkpoint, facts = _trained(config, way, seed, folder)
    solved = {
        task: evaluate_task(EvaluateConfig(checkpoint=checkpoint, tasks=(task,), episodes=episodes), task).successes
        for task, episodes in [
            (config.task, config.episodes),
            *((task, config.known_episodes) for task in config.known),
        ]
    }
    cell = Cell(
        way="base" if way is None else way.name,
        seed=seed,
        new=solved[config.task],
        new_episodes=config.episodes,
        old=sum(solved[task] for task in config.known),
        old_episodes=config.known_episodes * len(config.known),
        **facts,
    )
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({"identity": identity, "cell": asdict(cell)}, indent=2) + "\n", "utf-8")
    fresh.replace(file)
    return cell


def _trained(config: CompareConfig, way: Way, seed: int, folder: Path) -> tuple[str, dict[str, Any]]:
    """Train a cell; return its checkpoint, merged where it is an adapter, and facts of the training."""
    settings = FinetuneConfig(
        base=config.base,
        data=(config.data,),
        out=folder,
        method=way.method,
        lora=LoraSettings(rank=way.rank, alpha=2 * way.rank, heads=config.heads if way.method == "heads" else ()),
        steps=config.steps,
        batch=config.batch,
        learning_rate=way.learning_rate,
        seed=seed,
        cache=config.out / "frames",
    )
    made = finetune(settings)
    report = json.loads((folder / "report.json").read_text("utf-8"))
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    facts = {"trained": report["trained"], "share": report["share"], "seconds": json.loads(lines[-1])["seconds"]}
    if made.name == "adapter":
        made = merge_adapter(made, config.base, folder / "merged")
    return str(made), facts


def as_markdown(cells: Sequence[Cell]) -> str:
    """Return the table: a row a way, seeds pooled, with 95 % Wilson intervals."""
    lines = [
        "| way | weights trained | of the base | new task | 95 % | by seed | known tasks | 95 % | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way in dict.fromkeys(cell.way for cell in cells):
        rows = [cell for cell in cells if cell.way == way]
        new, old = _pooled(rows, "new"), _pooled(rows, "old")
        seeds = ", ".join(f"{cell.new / cell.new_episodes:.2f}" for cell in rows)
        weights = f"{rows[0].trained:,} | {100 * rows[0].share:.1f} %"
        minutes = np.mean([cell.seconds for cell in rows]) / 60
        lines.append(
            f"| {way} | {weights} | {_rate(*new)} | {_interval(*new)} | {seeds} | {_rate(*old)} | {_interval(*old)} | "
            f"{minutes:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _pooled(rows: Sequence[Cell], name: str) -> tuple[int, int]:
    return sum(getattr(cell, name) for cell in rows), sum(getattr(cell, f"{name}_episodes") for cell in rows)


def _rate(solved: int, episodes: int) -> str:
    return f"{solved / episodes:.2f}"


def _interval(solved: int, episodes: int) -> str:
    low, high = wilson(solved, episodes)
    return f"{low:.2f} to {high:.2f}"


def write(out: Path, cells: Sequence[Cell], *, title: str) -> str:
    """Write `table.md`, `cells.json` and `compare.png` to a folder, and return the table."""
    out.mkdir(parents=True, exist_ok=True)
    text = as_markdown(cells)
    (out / "table.md").write_text(text, "utf-8")
    rows = ",\n".join(json.dumps(asdict(cell)) for cell in cells)
    (out / "cells.json").write_text(f"[\n{rows}\n]\n", "utf-8")
    plot(cells, out / "compare.png", title=title)
    return text


def plot(cells: Sequence[Cell], path: Path, *, title: str) -> None:
    """Draw success on the new task and on the known ones for each way, with a dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes: Any = figure.subplots()
    ways = list(dict.fromkeys(cell.way for cell in cells))
    for offset, (name, label) in zip((-0.2, 0.2), (("new", "the new task"), ("old", "known tasks")), strict=True):
        for index, way in enumerate(ways):
            rows = [cell for cell in cells if cell.way == way]
            solved, episodes = _pooled(rows, name)
            low, high = wilson(solved, episodes)
            rate, place = solved / episodes, index + offset
            bars = [[max(0.0, rate - low)], [max(0.0, high - rate)]]
            colour = "C0" if name == "new" else "C7"
            axes.bar(place, rate, 0.38, color=colour, label=label if not index else None, yerr=bars, capsize=3)
            each = [getattr(cell, name) / getattr(cell, f"{name}_episodes") for cell in rows]
            axes.plot(np.linspace(place - 0.08, place + 0.08, len(each)), each, "k.", markersize=4)
    axes.set(ylabel="success", ylim=(0, 1.05), title=f"{title} (95 % intervals, a dot a seed)")
    axes.set_xticks(range(len(ways)), ways)
    axes.legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=110)
