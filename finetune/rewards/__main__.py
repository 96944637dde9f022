"""The reward models' data, from the command line: `python -m finetune.rewards collect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.rewards.collect import HELD_OUT_TASKS, TRAINING_TASKS, CollectConfig
from finetune.rewards.collect import collect as run_collect

app = typer.Typer(help="Rollouts of mixed quality for reward models.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Rollouts of mixed quality for reward models."""


@app.command()
def collect(
    out: Annotated[Path, typer.Option(help="Folder for one dataset a task.")] = Path("runs/rewards-data"),
    tasks: Annotated[str | None, typer.Option(help="Comma-separated task names; all when left out.")] = None,
    scale: Annotated[float, typer.Option(help="Factor on the number of episodes.")] = 1.0,
    processes: Annotated[int, typer.Option(help="Workers, each with a simulator.")] = 1,
) -> None:
    """Record rollouts; run again to go on where it stopped."""
    chosen = tuple(tasks.split(",")) if tasks else (*TRAINING_TASKS, *HELD_OUT_TASKS)
    counts = run_collect(CollectConfig(out=out, tasks=chosen, scale=scale, processes=processes))
    typer.echo(f"{sum(counts.values())} rollouts of {len(counts)} tasks in {out}")


if __name__ == "__main__":
    app()
