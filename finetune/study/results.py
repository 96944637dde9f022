"""What a study found: a table with intervals over seeds, a plot of every curve, and the curves as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.common.intervals import bootstrap
from finetune.common.run import metrics
from finetune.study.run import DONE, is_done

if TYPE_CHECKING:
    from pathlib import Path

    from finetune.study.config import Cell, Study


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run's metric: `x` and `y` of equal length, and the seconds that it took."""

    method: str
    task: str
    seed: int
    x: tuple[float, ...]
    y: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one task.

    Attributes:
        final: mean over seeds of the last part of each curve; `low` to `high` its bootstrap interval over seeds.
        reached: mean over seeds of where the metric first was at the study's level; None where a seed never was, and
            `seeds_reached` says how many were.
        minutes: mean of a run.
    """

    method: str
    task: str
    seeds: int
    finals: tuple[float, ...]
    final: float
    low: float
    high: float
    reached: float | None
    seeds_reached: int
    minutes: float


def read_curves(study: Study) -> list[Curve]:
    """Return the curves of all runs that are done."""
    return [_curve(study, cell) for cell in study.cells() if is_done(study, cell)]


def _curve(study: Study, cell: Cell) -> Curve:
    rows = [row for row in metrics(cell.folder) if study.metric in row]
    seconds = json.loads((cell.folder / DONE).read_text("utf-8"))["seconds"]
    return Curve(
        method=cell.method,
        task=cell.task,
        seed=cell.seed,
        x=tuple(float(row[study.over]) for row in rows),
        y=tuple(float(row[study.metric]) for row in rows),
        # a run that was stopped and gone on with took longer than its last process
        seconds=max(float(seconds), *(float(row.get("seconds", 0.0)) for row in rows), 0.0),
    )


def table(study: Study, curves: list[Curve]) -> list[Row]:
    """Return a row for each task and method that has runs."""
    rows = []
    for task in study.tasks:
        for method in study.methods:
            own = [curve for curve in curves if (curve.task, curve.method) == (task, method) and curve.y]
            if own:
                rows.append(_row(study, own))
    return rows


def _row(study: Study, own: list[Curve]) -> Row:
    finals = [float(np.mean(curve.y[-max(1, round(study.last * len(curve.y))) :])) for curve in own]
    crossings = [next((x for x, y in zip(curve.x, curve.y, strict=True) if y >= study.reached), None) for curve in own]
    known = [crossing for crossing in crossings if crossing is not None]
    low, high = bootstrap(finals)
    return Row(
        method=own[0].method,
        task=own[0].task,
        seeds=len(own),
        finals=tuple(round(final, 4) for final in finals),
        final=float(np.mean(finals)),
        low=low,
        high=high,
        reached=float(np.mean(known)) if len(known) == len(own) else None,
        seeds_reached=len(known),
        minutes=float(np.mean([curve.seconds for curve in own])) / 60,
    )


def as_markdown(study: Study, rows: list[Row]) -> str:
    """Return the table, a line a row."""
    level = f"{study.over} to {study.reached:g}"
    lines = [
        f"| task | method | {study.metric}, last {study.last:.0%} | 95 % over seeds | each seed | {level} | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        title = study.methods[row.method].title or row.method
        some = f"{row.seeds_reached} of {row.seeds} seeds"
        reached = some if row.reached is None else f"{row.reached:.0f}"
        each = ", ".join(f"{final:.2f}" for final in row.finals)
        interval = f"{row.low:.2f} to {row.high:.2f}"
        lines.append(
            f"| {row.task} | {title} | {row.final:.2f} | {interval} | {each} | {reached} | {row.minutes:.1f} |"
        )
    return "\n".join(lines) + "\n"


def write(study: Study, out: Path) -> str:
    """Write `table.md`, `curves.json` and `curves.png` to a folder, and return the table.

    Those of further metrics have the metric in their names, as `table-ways.md`; their tables are returned after it.

    Raises:
        ValueError: no run of the study is done.
    """
    others = [(study.model_copy(update={"metric": metric}), f"-{metric}") for metric in study.also]
    return "\n".join(_write(one, out, suffix) for one, suffix in [(study, ""), *others])


def _write(study: Study, out: Path, suffix: str) -> str:
    curves = read_curves(study)
    if not curves:
        raise ValueError("study: none of its runs is done")
    out.mkdir(parents=True, exist_ok=True)
    text = as_markdown(study, table(study, curves))
    (out / f"table{suffix}.md").write_text(text, "utf-8")
    lines = ",\n".join(json.dumps(asdict(curve)) for curve in curves)
    (out / f"curves{suffix}.json").write_text(f"[\n{lines}\n]\n", "utf-8")
    plot(study, curves, out / f"curves{suffix}.png")
    return text


def plot(study: Study, curves: list[Curve], path: Path) -> None:
    """Draw each seed thin and each method's mean thick, a panel a task."""
    from matplotlib.figure import Figure

    tasks = list(study.tasks)
    width = max(7.6, 5.2 * len(tasks) + 1.0)
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    panels: Any = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        for number, (name, method) in enumerate(study.methods.items()):
            own = [curve for curve in curves if (curve.task, curve.method) == (task, name) and len(curve.x) > 1]
            if not own:
                continue
            colour = f"C{number}"
            for curve in own:
                panel.plot(curve.x, curve.y, color=colour, alpha=0.3, linewidth=0.8)
            grid = np.linspace(max(curve.x[0] for curve in own), min(curve.x[-1] for curve in own), 100)
            mean = np.mean([np.interp(grid, curve.x, curve.y) for curve in own], axis=0)
            panel.plot(grid, mean, color=colour, linewidth=2, label=method.title or name)
        panel.set(title=task, xlabel=study.over.replace("_", " "))
        panel.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel(study.metric.replace("_", " "))
    columns = max(1, int(width / 2.6))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize="small")
    figure.suptitle(f"{study.title}\neach seed thin, their mean thick", fontsize="medium")
    figure.savefig(path, dpi=110)
