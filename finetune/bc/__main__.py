"""`python -m finetune.bc collect | train | evaluate | card`: from nothing to a checkpoint with its card."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from finetune.common.options import DeviceOption  # noqa: TC001  typer reads it
from finetune.common.publish import AlwaysOption, OverOption, PublishOption  # noqa: TC001  typer reads them
from robot_client.robots.metaworld_tasks import TASKS

if TYPE_CHECKING:
    from finetune.bc.evaluate import TaskResult

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Behaviour cloning of the embedded VLA.")
TasksOption = Annotated[str | None, typer.Option(help="Comma-separated task names; all when left out.")]


def _tasks(names: str | None) -> tuple[str, ...]:
    return tuple(TASKS) if names is None else tuple(names.split(","))


@app.command()
def collect(
    out: Annotated[Path, typer.Option(help="Folder that gets one LeRobot v3 dataset a task.")],
    tasks: TasksOption = None,
    episodes: Annotated[int, typer.Option(help="Demonstrations of each task.")] = 40,
    processes: Annotated[int, typer.Option(help="Simulators that run at once.")] = 1,
) -> None:
    """Collect demonstrations of MetaWorld's scripted experts; goes on where it was stopped."""
    from finetune.bc.collect import CollectConfig
    from finetune.bc.collect import collect as run

    config = CollectConfig(out=out, tasks=_tasks(tasks), episodes=episodes, processes=processes)
    Console().print(run(config))


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder of datasets, as `collect` makes it.")],
    out: Annotated[Path, typer.Option(help="Run folder; goes on where it was stopped.")],
    tasks: TasksOption = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 6500,
    batch: Annotated[int, typer.Option(help="Observations in a step.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and noise.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    *,
    revision: Annotated[str, typer.Option(help="Version of the weights.")] = "1",
    publish: PublishOption = None,
    publish_always: AlwaysOption = False,
    publish_over: OverOption = None,
    episodes: Annotated[int, typer.Option(help="Of each task, by which what is to be published is judged.")] = 10,
    path: Annotated[bool, typer.Option("--path", help="Draw the gripper's path on every image.")] = False,
    smooth: Annotated[bool, typer.Option("--smooth", help="With noise of any level on what is seen and read.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train on demonstrations."""
    from finetune.bc.collect import dataset_folders
    from finetune.bc.paths import PathNoise
    from finetune.bc.train import TrainConfig
    from finetune.bc.train import train as run
    from finetune.common.device import chosen
    from finetune.common.publish import considering, publisher
    from models.policies.context_noise import ContextSchedule
    from models.revisions import copied

    to = publisher(publish, job=out, always=publish_always, over=publish_over)
    folders = dataset_folders(data, _tasks(tasks))
    config = TrainConfig(
        data=tuple(folders),
        out=out,
        steps=steps,
        batch=batch,
        seed=seed,
        threads=threads,
        checkpoint_every=checkpoint_every,
        revision=revision,
        model_id="-".join(["metaworld-flow", *(["smooth"] if smooth else []), *(["path"] if path else [])]),
        context=ContextSchedule() if smooth else None,
        path=PathNoise() if path else None,
    )
    columns = (TextColumn("loss {task.fields[loss]:.4f}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("train", total=steps, loss=float("nan"))

        def report(step: int, loss: float) -> None:
            progress.update(bar, completed=step, loss=loss)

        folder = run(config, report=report, device=chosen(device))
    Console().print(f"checkpoint: {folder}")
    published = considering(to, copied(folder), say=Console().print)
    if published is not None:
        published({} if publish_always else _judge(str(folder), _tasks(tasks), episodes))


def _judge(checkpoint: str, tasks: tuple[str, ...], episodes: int) -> dict[str, float]:
    from finetune.bc.evaluate import EvaluateConfig
    from finetune.bc.evaluate import evaluate as run
    from finetune.common.intervals import wilson

    results = run(EvaluateConfig(checkpoint=checkpoint, tasks=tasks, episodes=episodes))
    solved, played = sum(result.successes for result in results), sum(result.episodes for result in results)
    low, high = wilson(solved, played)
    return {"success": solved / played, "success_low": low, "success_high": high, "episodes": float(played)}


@app.command()
def evaluate(
    checkpoint: Annotated[str, typer.Option(help="Checkpoint folder, or zoo:NAME.")],
    tasks: TasksOption = None,
    episodes: Annotated[int, typer.Option(help="Fresh scenes of each task.")] = 50,
    wording: Annotated[Literal["canonical", "held_out"], typer.Option(help="Which wording to use.")] = "canonical",
    level: Annotated[
        float | None, typer.Option(help="Context level, for a policy with a smoothed context.", min=0, max=1)
    ] = None,
    processes: Annotated[int, typer.Option(help="Simulators that run at once.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Result file; evaluation-WORDING(-LEVEL).json beside the folder.")
    ] = None,
) -> None:
    """Play fresh scenes and write a result file."""
    from finetune.bc.evaluate import EvaluateConfig, save_results
    from finetune.bc.evaluate import evaluate as run

    config = EvaluateConfig(
        checkpoint=checkpoint,
        tasks=_tasks(tasks),
        episodes=episodes,
        wording=wording,
        level=level,
        processes=processes,
    )
    console, started = Console(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("tasks", total=len(config.tasks))

        def report(result: TaskResult) -> None:
            progress.advance(bar)
            low, high = result.interval
            console.print(f"{result.task:24s} {result.successes}/{result.episodes}  95 % {low:.2f} to {high:.2f}")

        results = run(config, report=report)
    name = wording if level is None else f"{wording}-{level:g}"
    path = out or Path(checkpoint).parent / f"evaluation-{name}.json"
    save_results(path, config, results, (time.monotonic() - started) / 60)
    console.print(f"mean {sum(result.rate for result in results) / len(results):.3f}; written to {path}")


@app.command()
def card(
    run: Annotated[Path, typer.Option(help="Run folder of `train`, with its evaluations.")],
) -> None:
    """Write the model card from the run's own files."""
    from finetune.bc.card import write_card

    held_out = run / "evaluation-held_out.json"
    levels = sorted(run.glob("evaluation-canonical-*.json"))
    path = write_card(
        run,
        canonical=run / "evaluation-canonical.json",
        held_out=held_out if held_out.exists() else None,
        levels=levels,
    )
    Console().print(f"written: {path}")


@app.command()
def hierarchy(
    out: Annotated[Path, typer.Option(help="Folder of the plays; goes on where it was stopped.")],
    following: Annotated[str, typer.Option(help="Policy that follows paths: folder, or zoo:NAME.")],
    flat: Annotated[str, typer.Option(help="Policy without paths: folder, or zoo:NAME.")] = "zoo:metaworld-flow",
    planner: Annotated[str, typer.Option(help="Who draws the paths: folder, or zoo:NAME.")] = "zoo:metaworld-vlm",
    scenes: Annotated[int, typer.Option(help="Scenes in each look, round the tasks.")] = 50,
    tasks: TasksOption = None,
    conditions: Annotated[str | None, typer.Option(help="Comma-separated; all when left out.")] = None,
) -> None:
    """Compare policies with and without a path on scenes in changed looks, and write hierarchy.json."""
    from finetune.bars import progress_bars
    from finetune.bc.hierarchy import CONDITIONS, HierarchyConfig, compare
    from finetune.bc.hierarchy_table import save_table

    chosen = tuple(name for name in CONDITIONS if conditions is None or name in conditions.split(","))
    config = HierarchyConfig(
        out=out,
        flat=flat,
        following=following,
        planner=planner,
        scenes=scenes,
        tasks=_tasks(tasks),
        conditions=chosen,
    )
    with progress_bars() as bars:
        bar = bars.add_task("plays", total=scenes * len(config.looks) * len(chosen), note="")
        plays = compare(config, report=lambda: bars.advance(bar))
    Console().print(save_table(config, plays))


@app.command()
def hierarchy_card(
    run: Annotated[Path, typer.Option(help="Run folder of `train --path`.")],
    results: Annotated[Path, typer.Option(help="Folder of `hierarchy`.")],
) -> None:
    """Write the model card of a policy that follows a path."""
    from finetune.bc.hierarchy_card import write_hierarchy_card

    Console().print(f"written: {write_hierarchy_card(run, results)}")


app()
