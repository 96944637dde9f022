"""Train the embedded Robometer: `python -m finetune.robometer vision`, then `train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

app = typer.Typer(help="Robometer: train the embedded model.", no_args_is_help=True)

DataOption = Annotated[Path, typer.Option(help="Folder with one dataset a task.")]
WorkOption = Annotated[Path, typer.Option(help="Folder of decoded frames, the vision run and its features.")]
ThreadsOption = Annotated[int, typer.Option(help="Threads of PyTorch.")]
SeedOption = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]


@app.command()
def vision(
    data: DataOption = Path("runs/rewards-data"),
    work: WorkOption = Path("runs/robometer"),
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 4000,
    threads: ThreadsOption = 1,
    seed: SeedOption = 0,
) -> None:
    """Stage one: teach the vision tower to read the simulator's state."""
    from finetune.robometer.recipe import Recipe
    from finetune.robometer.vision import VisionConfig

    recipe = Recipe(data=data, work=work)
    with _bars() as bars:
        frames = recipe.load(_decoding(bars))
        bar = bars.add_task("vision", total=steps, note="")

        def report(step: int, loss: float) -> None:
            bars.update(bar, completed=step, note=f"loss {loss:.4f}")

        config = VisionConfig(out=work / "vision", steps=steps, threads=threads, seed=seed)
        recipe.vision(frames, config, report)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/robometer/pairs"),
    data: DataOption = Path("runs/rewards-data"),
    work: WorkOption = Path("runs/robometer"),
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2000,
    batch: Annotated[int, typer.Option(help="Pairs in each step.")] = 32,
    threads: ThreadsOption = 1,
    seed: SeedOption = 0,
    model_id: Annotated[str, typer.Option(help="Name of the model.")] = "metaworld-robometer",
    *,
    preference: Annotated[bool, typer.Option(help="Teach preference beside progress and success.")] = True,
) -> None:
    """Stage two: pairs of clips teach progress, success and preference; run again to go on where it stopped."""
    from finetune.robometer.recipe import Recipe
    from finetune.robometer.train import TrainConfig

    with _bars() as bars:
        bar = bars.add_task("pairs", total=steps, note="")

        def report(step: int, losses: Any) -> None:
            parts = (f"{name} {float(getattr(losses, name)):.3f}" for name in ("preference", "progress", "success"))
            bars.update(bar, completed=step, note=", ".join(parts))

        config = TrainConfig(out=out, steps=steps, batch=batch, threads=threads, seed=seed, preference=preference)
        folder = Recipe(data=data, work=work).run(config, report, model_id=model_id, revision="1")
    typer.echo(f"checkpoint: {folder}")


def _bars() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns)


def _decoding(bars: Progress) -> Callable[[int, int], None]:
    bar = bars.add_task("decoding", total=None, note="episodes")
    return lambda done, total: bars.update(bar, completed=done, total=total)


if __name__ == "__main__":
    app()
