"""Train the embedded ReWiND: `python -m finetune.rewind train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.bars import counting, progress_bars

app = typer.Typer(help="ReWiND: train the embedded model.", no_args_is_help=True)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/rewind/base"),
    data: Annotated[Path, typer.Option(help="Folder with one dataset a task.")] = Path("runs/rewards-data"),
    work: Annotated[Path, typer.Option(help="Work folder of `finetune.robometer`: frames, tower, features.")] = Path(
        "runs/robometer"
    ),
    image: Annotated[str, typer.Option(help="robometer_tower, or the folder of a DINOv2.")] = "robometer_tower",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 600,
    batch: Annotated[int, typer.Option(help="Clips in each step; each is shown under two instructions.")] = 64,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    *,
    model_id: Annotated[str, typer.Option(help="Name of the model.")] = "metaworld-rewind",
) -> None:
    """Teach progress on successes, rewound and mismatched; run again to go on where it stopped."""
    from finetune.rewind.recipe import Recipe
    from finetune.rewind.train import TrainConfig

    recipe = Recipe(data=data, work=work, image=image)
    with progress_bars() as bars:
        decoding = counting(bars, "decoding", "episodes")
        bar = bars.add_task("rewind", total=steps, note="")

        def report(step: int, loss: float) -> None:
            bars.update(bar, completed=step, note=f"loss {loss:.4f}")

        config = TrainConfig(out=out, steps=steps, batch=batch, threads=threads, seed=seed)
        folder = recipe.run(config, report, model_id=model_id, revision="1", decoding=decoding)
    typer.echo(f"checkpoint: {folder}")


@app.command()
def card(
    evaluation: Annotated[Path, typer.Argument(help="`evaluation.json` of the checkpoint.")],
    run: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/rewind/base"),
) -> None:
    """Write the checkpoint's card from what was measured."""
    from finetune.rewind.card import write_card

    typer.echo(f"card: {write_card(run, evaluation)}")


if __name__ == "__main__":
    app()
