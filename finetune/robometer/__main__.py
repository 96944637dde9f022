"""Train the embedded Robometer: `python -m finetune.robometer vision`, then `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from finetune.bars import counting, progress_bars

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
    with progress_bars() as bars:
        frames = recipe.load(counting(bars, "decoding", "episodes"))
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
    sampler: Annotated[
        Literal["simulated", "reference"], typer.Option(help="How pairs are drawn (finetune/robometer/train.py).")
    ] = "simulated",
    start: Annotated[Path | None, typer.Option(help="Run folder whose weights it starts from.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak of the cosine.")] = 1e-3,
    preference: Annotated[bool, typer.Option(help="Teach preference beside progress and success.")] = True,
) -> None:
    """Stage two: pairs of clips teach progress, success and preference; run again to go on where it stopped."""
    from finetune.robometer.recipe import Recipe
    from finetune.robometer.train import REFERENCE, SIMULATED, TrainConfig

    with progress_bars() as bars:
        bar = bars.add_task("pairs", total=steps, note="")

        def report(step: int, losses: Any) -> None:
            parts = (
                f"{name} {float(getattr(losses, name).detach()):.3f}" for name in ("preference", "progress", "success")
            )
            bars.update(bar, completed=step, note=", ".join(parts))

        config = TrainConfig(
            out=out,
            steps=steps,
            batch=batch,
            sampler={"simulated": SIMULATED, "reference": REFERENCE}[sampler],
            start=start,
            learning_rate=learning_rate,
            threads=threads,
            seed=seed,
            preference=preference,
        )
        folder = Recipe(data=data, work=work).run(config, report, model_id=model_id, revision="1")
    typer.echo(f"checkpoint: {folder}")


@app.command()
def compare(
    out: Annotated[Path, typer.Option(help="Folder for a run of each arm and seed, and the table.")] = Path(
        "runs/robometer/compare"
    ),
    data: DataOption = Path("runs/rewards-data"),
    work: WorkOption = Path("runs/robometer"),
    seeds: Annotated[int, typer.Option(help="Runs of each arm.")] = 3,
    steps: Annotated[int, typer.Option(help="Optimiser steps of each run.")] = 300,
    batch: Annotated[int, typer.Option(help="Pairs in each step.")] = 16,
    limit: Annotated[int, typer.Option(help="Rollouts of each task that are ranked.")] = 9,
    threads: ThreadsOption = 1,
) -> None:
    """Train with and without preference, all else equal, and rank rollouts that no run saw."""
    from finetune.rewards.material import load_material
    from finetune.robometer import compare as comparison
    from finetune.robometer.recipe import Recipe

    material = load_material(tuple(sorted(data.iterdir())), split="validation", limit=limit)
    config = comparison.CompareConfig(out=out, seeds=seeds, steps=steps, batch=batch, threads=threads)
    with progress_bars() as bars:
        training: dict[str, Any] = {}
        judging = bars.add_task("judging", total=None, note="")

        def trained(run: str, step: int) -> None:
            if run not in training:
                training[run] = bars.add_task(run, total=steps, note="")
            bars.update(training[run], completed=step)

        def judged(run: str, stage: str, done: int, total: int) -> None:
            bars.update(judging, completed=done, total=total, note=f"{run}: {stage}")

        watch = comparison.Watch(training=trained, judging=judged)
        found = comparison.compare(Recipe(data=data, work=work), material, config, watch)
    typer.echo(comparison.markdown(found))


@app.command()
def card(
    evaluation: Annotated[Path, typer.Argument(help="`evaluation.json` of the checkpoint.")],
    run: Annotated[Path, typer.Option(help="Run folder of the pairs.")] = Path("runs/robometer/pairs"),
    vision: Annotated[Path, typer.Option(help="Run folder of the vision tower.")] = Path("runs/robometer/vision"),
    comparison: Annotated[Path | None, typer.Option(help="`comparison.md` of `compare`.")] = None,
) -> None:
    """Write the checkpoint's card from what was measured."""
    from finetune.robometer.card import write_card

    typer.echo(f"card: {write_card(run, vision, evaluation, comparison)}")


if __name__ == "__main__":
    app()
