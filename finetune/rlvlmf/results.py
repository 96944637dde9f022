"""What studies of the method found: return, and how well the learned reward ranks states, a row of panels a study."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.common.run import metrics
from finetune.rlvlmf.train import SESSIONS
from finetune.study.run import DONE, is_done

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from finetune.study.config import Cell, Study

_PANELS = (("return", "return on fresh scenes"), ("spearman", "Spearman of learned and true reward"))
_METRICS = ("return", "success", "spearman", "spearman_newest")
_HEAD = (
    "| task | learned from | return | each seed | success | Spearman | each seed | newest states | labels asked for "
    "| ties | right | minutes |"
)
_GREY = "#4a5260"


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """Pairs of a run: `requested`, `ties` (alike ones included), `kept`, and of those the labels that are `right`."""

    requested: int = 0
    ties: int = 0
    kept: int = 0
    right: int = 0


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One run: each of its metrics at `steps`, None where it has none; its pairs, and the minutes that it took."""

    seed: int
    steps: tuple[int, ...]
    metrics: dict[str, tuple[float | None, ...]]
    sessions: Sessions
    minutes: float

    def last(self, name: str, share: float) -> float | None:
        """Return the mean of the last share of a metric; None where it has none there."""
        told = self.metrics[name][-max(1, round(share * len(self.steps))) :]
        known = [value for value in told if value is not None]
        return float(np.mean(known)) if known else None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method on a task: its runs, which differ in their seed."""

    task: str
    title: str
    last: float
    traces: tuple[Trace, ...]


def read_arms(study: Study) -> list[Arm]:
    """Return a study's methods with the runs that are done; those without any are left out.

    Raises:
        ValueError: runs of one method were evaluated at other steps than each other.
    """
    arms = []
    for task in study.tasks:
        for name, method in study.methods.items():
            cells = [cell for cell in study.cells() if (cell.task, cell.method) == (task, name)]
            traces = tuple(_trace(cell) for cell in cells if is_done(study, cell))
            if len({trace.steps for trace in traces}) > 1:
                raise ValueError(f"{task}, {name}: runs were evaluated at other steps than each other")
            if traces:
                arms.append(Arm(task=task, title=method.title or name, last=study.last, traces=traces))
    return arms


def _trace(cell: Cell) -> Trace:
    rows = metrics(cell.folder)
    told = cell.folder / SESSIONS
    sessions = [json.loads(line) for line in told.read_text("utf-8").splitlines()] if told.exists() else []
    return Trace(
        seed=cell.seed,
        steps=tuple(int(row["step"]) for row in rows),
        metrics={
            name: tuple(row[name] for row in rows) for name in ("return", "success", "spearman", "spearman_newest")
        },
        sessions=Sessions(
            requested=sum(row["requested"] for row in sessions),
            ties=sum(row["ties"] + row["alike"] for row in sessions),
            kept=sum(row["kept"] for row in sessions),
            right=sum(row["right"] for row in sessions),
        ),
        minutes=json.loads((cell.folder / DONE).read_text("utf-8"))["seconds"] / 60,
    )


def table(arms: Sequence[Arm]) -> str:
    """Return a Markdown table, a row an arm: means over seeds of the last share of each run, and every seed's."""
    lines = [_HEAD, "|" + "---|" * 12]
    for arm in arms:
        pairs = [trace.sessions for trace in arm.traces]
        asked, kept = sum(each.requested for each in pairs), sum(each.kept for each in pairs)
        cells = [
            *(arm.task, arm.title, *_told(arm, "return", 1), _told(arm, "success", 2)[0]),
            *(*_told(arm, "spearman", 2), _told(arm, "spearman_newest", 2)[0]),
            f"{asked / len(pairs):.0f}" if asked else "none",
            f"{sum(each.ties for each in pairs) / asked:.2f}" if asked else "-",
            f"{sum(each.right for each in pairs) / kept:.3f}" if kept else "-",
            f"{np.mean([trace.minutes for trace in arm.traces]):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _told(arm: Arm, name: str, decimals: int) -> tuple[str, str]:
    found = [trace.last(name, arm.last) for trace in arm.traces]
    known = [value for value in found if value is not None]
    if not known:
        return "-", "-"
    each = ", ".join("-" if value is None else f"{value:.{decimals}f}" for value in found)
    return f"{np.mean(known):.{decimals}f}", each


def write(studies: Sequence[Study], out: Path) -> str:
    """Write `table.md`, `curves.json` and `curves.png` to a folder, and return the table.

    Raises:
        ValueError: see `read_arms`; or no run of a study is done.
    """
    found = [read_arms(study) for study in studies]
    for study, arms in zip(studies, found, strict=True):
        if not arms:
            raise ValueError(f"study {study.title!r}: none of its runs is done")
    out.mkdir(parents=True, exist_ok=True)
    everything = [arm for arms in found for arm in arms]
    text = table(everything)
    (out / "table.md").write_text(text, "utf-8")
    rows = [{"task": arm.task, "method": arm.title, **_plain(trace)} for arm in everything for trace in arm.traces]
    (out / "curves.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", "utf-8")
    figure(studies, found).savefig(out / "curves.png", dpi=110)
    return text


def _plain(trace: Trace) -> dict[str, Any]:
    return {
        "seed": trace.seed,
        "minutes": round(trace.minutes, 2),
        "pairs": vars(trace.sessions),
        "step": trace.steps,
        **trace.metrics,
    }


def figure(studies: Sequence[Study], found: Sequence[Sequence[Arm]]) -> Any:
    """Draw every seed thin, the mean thick and the range over seeds shaded; a row of panels a study."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 3.7 * len(studies)), layout="constrained")
    rows: Any = drawn.subplots(len(studies), len(_PANELS), squeeze=False)
    for panels, study, arms in zip(rows, studies, found, strict=True):
        for panel, (name, words) in zip(panels, _PANELS, strict=True):
            for number, arm in enumerate(arms):
                _draw(panel, arm, name, f"C{number}")
            panel.set_title(study.title, fontsize=10, loc="left", color=_GREY)
            panel.set(xlabel="decisions", ylabel=words)
            panel.grid(visible=True, alpha=0.3)
        panels[0].legend(fontsize="small", frameon=False)
    return drawn


def _draw(panel: Any, arm: Arm, name: str, colour: str) -> None:
    steps = np.array(arm.traces[0].steps)
    values = np.array([trace.metrics[name] for trace in arm.traces], np.float64)  # None becomes NaN
    seen = ~np.isnan(values).any(axis=0)
    if not seen.any():
        return
    steps, values = steps[seen], values[:, seen]
    panel.plot(steps, values.T, color=colour, alpha=0.35, linewidth=0.8)
    panel.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12, linewidth=0)
    label = f"{arm.title} ({len(values)} seed{'s' if len(values) > 1 else ''})"
    panel.plot(steps, values.mean(axis=0), color=colour, linewidth=2.2, label=label)
