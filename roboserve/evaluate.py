"""`roboserve evaluate`: how good a served or trained model is, in tables, plots and JSON."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from clients.errors import RoboserveError
from finetune.rewards.evaluate import CLOCK, EvaluateConfig, evaluate, write
from finetune.rewards.judges import open_judge
from finetune.rewards.material import load_material
from roboserve.credentials import api_key
from roboserve.report.evaluation import write_page
from roboserve.report.evaluation_table import group_lines, group_name, model_line, task_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.progress import TaskID

    from finetune.rewards.evaluate import Evaluation, JudgeResult
    from finetune.rewards.judges import Judge


@dataclass(frozen=True, kw_only=True)
class RewardCommand:
    """An evaluation of reward models as the command line gives it."""

    model: str
    against: str | None
    quantization: str | None
    data: tuple[Path, ...]
    groups: tuple[str, ...]
    split: str
    camera: str | None
    frame_policy: str | None
    every: int
    limit: int | None
    seed: int
    out: Path | None


def reward(command: RewardCommand, key_file: Path | None) -> int:
    """Evaluate, print the tables and write the files; return the exit code."""
    console = Console()
    try:
        opened = _openers(command, api_key(key_file))
        material = load_material(command.data, split=command.split, limit=command.limit, camera=command.camera)
        config = EvaluateConfig(
            groups=_groups(command.groups), frame_policy=command.frame_policy, every=command.every, seed=command.seed
        )
        out = command.out or Path("runs") / time.strftime("evaluate-%Y%m%d-%H%M%S")
        with _Bars(console) as bars:
            found = evaluate(opened, material, config, journals=out, report=bars.report)
        files = write(found, out)
        files.append(write_page(found, files, out))
    except (RoboserveError, ImportError, OSError, ValueError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        return 1
    print_evaluation(console, found)
    console.print(f"{out}: {', '.join(file.name for file in files)}", highlight=False, soft_wrap=True)
    return 0


def print_evaluation(console: Console, found: Evaluation) -> None:
    """Print who was asked what, a table of figures for each group of tasks, and one of the first model's tasks."""
    material, judges = found.material, found.judges
    for name, result in judges.items():
        if name != CLOCK:
            console.print(model_line(name, result), highlight=False)
    console.print(f"{len(material.rollouts)} rollouts of {len(material.tasks)} tasks", highlight=False)
    console.print(_groups_table(judges))
    first = next(iter(judges.values()))
    if len(first.tasks) > 1:
        console.print(_tasks_table(first))
    if found.drift is not None:
        parts = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.drift.items())
        console.print(f"drift of the second model from the first: {parts}", highlight=False)


def _openers(command: RewardCommand, key: str | None) -> list[Callable[[], Judge]]:
    """Return what opens the model, and what opens the second one where there is one."""
    found: list[Callable[[], Judge]] = [partial(open_judge, command.model, api_key=key)]
    if command.quantization is not None:
        if command.against is not None or "://" in command.model:
            raise ValueError("--quantization: needs a checkpoint in this process, and no --against beside it")
        options: dict[str, object] = {"checkpoint": command.model, "quantization": command.quantization}
        found.append(partial(open_judge, "models.robometer.reward:RobometerReward", options=options))
    elif command.against is not None:
        found.append(partial(open_judge, command.against, api_key=key))
    return found


def _groups(given: tuple[str, ...]) -> dict[str, tuple[str, ...]] | None:
    if not given:
        return None
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, _, tasks = text.partition("=")
        if not name or not tasks:
            raise ValueError(f"--group {text}: say NAME=TASK,TASK")
        found[name] = tuple(task.strip() for task in tasks.split(",") if task.strip())
    return found


def _groups_table(judges: Mapping[str, JudgeResult]) -> Table:
    """Return the figures with their intervals, a section for each group and a column for each judge."""
    columns = [Column(name, justify="right") for name in judges]
    table = Table(Column("with 95 % intervals", no_wrap=True), *columns)
    for at, group in enumerate(next(iter(judges.values())).groups):
        table.add_row(group_name(group), style="bold")
        for line in group_lines({name: result.groups[at] for name, result in judges.items()}):
            table.add_row(*line)
        table.add_section()
    return table


def _tasks_table(result: JudgeResult) -> Table:
    headings, lines = task_lines(result)
    columns = [Column(heading, justify="right", no_wrap=True) for heading in headings[1:]]
    table = Table(Column(headings[0], no_wrap=True), *columns, title=f"{result.answers.facts.id}, task by task")
    table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 0), False
    for line in lines:
        table.add_row(*line)
    return table


class _Bars:
    """A progress bar for each stage of each judge."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self._bars: dict[str, TaskID] = {}

    def report(self, judge: str, stage: str, done: int, total: int) -> None:
        """Show how far a stage is; the clock, who answers at once, gets no bar."""
        if judge == CLOCK:
            return
        name = f"{judge}: {stage}"
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._bars[name], completed=done)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()
