"""The page of an evaluation: figures and plots in one file that can be mailed, archived and opened anywhere."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader

from finetune.rewards.evaluate import CLOCK
from roboserve.report.evaluation_table import group_lines, group_name, model_line, task_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune.rewards.evaluate import Evaluation

_PLOTS = {
    "curves": "Progress over each rollout, by how the rollout came about: only what succeeds should reach the top.",
    "confusion": "Final progress of every task's successes under every task's words: only the diagonal should be dark.",
    "preference": "How often a success is preferred, by what it is set against; one half is chance.",
}


def write_page(evaluation: Evaluation, files: Sequence[Path], out: Path) -> Path:
    """Write `evaluation.html` and return its path.

    Args:
        files: among them the plots that it shows.
    """
    first = next(iter(evaluation.judges.values()))
    groups = [
        (group_name(group), list(group_lines({name: each.groups[at] for name, each in evaluation.judges.items()})))
        for at, group in enumerate(first.groups)
    ]
    headings, tasks = task_lines(first)
    plots = {
        text: base64.b64encode(path.read_bytes()).decode()
        for name, text in _PLOTS.items()
        for path in files
        if path.name == f"{name}.png"
    }
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    html = environment.get_template("evaluation.html.j2").render(
        models=[model_line(name, result) for name, result in evaluation.judges.items() if name != CLOCK],
        judges=list(evaluation.judges),
        rollouts=len(evaluation.material.rollouts),
        groups=groups,
        headings=headings,
        tasks=tasks,
        plots=plots,
        drift=evaluation.drift,
    )
    path = out / "evaluation.html"
    path.write_text(html, "utf-8")
    return path
