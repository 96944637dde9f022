"""Kinds of a policy side by side: what each does at every context level, over its seeds; a table and a plot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.csp.levels import by_level
from finetune.tmrl.base import LocalPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import gymnasium

    from finetune.csp.levels import LevelResult


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Policies of one kind, of several seeds.

    Attributes:
        name: what the kind is called.
        seeds: of each policy its results, level by level; a policy without context noise has one, at level 0.
    """

    name: str
    seeds: tuple[tuple[LevelResult, ...], ...]

    def mean(self, index: int, attribute: str) -> float | None:
        """Return the mean over seeds of an attribute at a level; None where one has none."""
        values = [getattr(seed[index], attribute) for seed in self.seeds]
        return None if any(value is None for value in values) else float(np.mean(values))


def compare(
    kinds: Mapping[str, Sequence[Path]],
    make: Callable[[], gymnasium.Env[Any, Any]],
    levels: Sequence[float],
    *,
    episodes: int,
    seed: int,
    report: Callable[[int], None],
) -> list[Kind]:
    """Play the same scenes at every level with every policy.

    Args:
        kinds: checkpoint folders by the name of their kind. `report`: told policies done.
    """
    found, done = [], 0
    for name, folders in kinds.items():
        seeds = []
        for folder in folders:
            policy = LocalPolicy(folder)
            own = levels if policy.context_size else [0.0]
            seeds.append(tuple(by_level(policy, make, own, episodes=episodes, seed=seed)))
            done += 1
            report(done)
        found.append(Kind(name=name, seeds=tuple(seeds)))
    return found


def as_markdown(kinds: Sequence[Kind], levels: Sequence[float]) -> str:
    """Return the table: a row a kind, as told (entropy of the ways, bits) at each level, means over seeds."""
    heads = " | ".join(f"t = {level:g}" for level in levels)
    lines = [f"| policy | seeds | {heads} |", "|---|---|" + "---|" * len(levels)]
    for kind in kinds:
        cells = [_cell(kind, index) if index < len(kind.seeds[0]) else "-" for index in range(len(levels))]
        lines.append(f"| {kind.name} | {len(kind.seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(kind: Kind, index: int) -> str:
    told, entropy = kind.mean(index, "success"), kind.mean(index, "entropy")
    return f"{told:.2f}" if entropy is None else f"{told:.2f} ({entropy:.2f})"


def write(out: Path, kinds: Sequence[Kind], levels: Sequence[float], *, title: str) -> str:
    """Write `table.md`, `levels.json` and `levels.png` to a folder, and return the table."""
    out.mkdir(parents=True, exist_ok=True)
    text = as_markdown(kinds, levels)
    (out / "table.md").write_text(text, "utf-8")
    lines = ",\n".join(json.dumps(asdict(kind)) for kind in kinds)
    (out / "levels.json").write_text(f"[\n{lines}\n]\n", "utf-8")
    plot(kinds, out / "levels.png", title=title)
    return text


def plot(kinds: Sequence[Kind], path: Path, *, title: str) -> None:
    """Draw, over the level, how often each kind does as it is told, and the entropy of the ways it knows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    for panel, attribute, label in zip(panels, ("success", "entropy"), ("goes as told", "entropy, bits"), strict=True):
        for number, kind in enumerate(kinds):
            _draw(panel, kind, attribute, f"C{number}")
        panel.set(xlabel="context level t", ylabel=label, ylim=(0, None))
        panel.grid(visible=True, alpha=0.3)
    panels[0].legend(fontsize="small")
    figure.suptitle(f"{title} (each seed thin, their mean thick)")
    figure.savefig(path, dpi=110)


def _draw(panel: Any, kind: Kind, attribute: str, colour: str) -> None:
    levels = [result.level for result in kind.seeds[0]]
    lines = [[getattr(result, attribute) for result in seed] for seed in kind.seeds]
    if any(value is None for line in lines for value in line):
        return
    for line in lines:
        panel.plot(levels, line, color=colour, alpha=0.3, linewidth=0.8, marker=".")
    panel.plot(levels, np.mean(lines, axis=0), color=colour, linewidth=2, marker="o", label=kind.name)
