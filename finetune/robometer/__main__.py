"""Robometer's recipes: the embedded model by `vision` and `train`, one's own data by `finetune`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clients.errors import RoboserveError
from finetune.bars import counting, progress_bars

if TYPE_CHECKING:
    from finetune.robometer.finetune import FinetuneConfig

app = typer.Typer(help="Robometer: train the embedded model, finetune any.", no_args_is_help=True)

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
def finetune(
    base: Annotated[str, typer.Argument(help="Checkpoint folder, or zoo:NAME.")],
    out: Annotated[Path, typer.Option(help="Run folder; the result is its folder `checkpoint`.")],
    data: Annotated[list[str], typer.Option(help="NAME=FOLDER of a LeRobot v3 dataset; again for more.")],
    cutoff: Annotated[
        list[str] | None, typer.Option(help="NAME=SHARE after which its task is done; all need it.")
    ] = None,
    camera: Annotated[list[str] | None, typer.Option(help="NAME=CAMERA; each makes an episode of its own.")] = None,
    preference_only: Annotated[list[str] | None, typer.Option(help="NAME whose progress is not trusted.")] = None,
    *,
    mode: Annotated[Literal["lora", "full"], typer.Option(help="An adapter, or the weights themselves.")] = "lora",
    vision: Annotated[
        Literal["frozen", "last", "all"], typer.Option(help="Of a full run: the vision tower's trained layers.")
    ] = "frozen",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch: Annotated[int, typer.Option(help="Pairs in each step, on each process.")] = 8,
    forward_pairs: Annotated[int | None, typer.Option(help="Most pairs of one forward.")] = None,
    frames: Annotated[int, typer.Option(help="Frames of each clip.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak of the cosine.")] = 2e-5,
    vision_learning_rate: Annotated[float, typer.Option(help="Peak for the vision tower.")] = 1e-5,
    recompute: Annotated[bool, typer.Option(help="Keep no activations: less memory, more time.")] = False,
    parity: Annotated[bool, typer.Option(help="Keep the reference's quirks of mask and loss.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of PyTorch on each process.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of decoded frames, to be shared by runs.")] = None,
    model_id: Annotated[str | None, typer.Option(help="Name of the model that comes out.")] = None,
    revision: Annotated[str, typer.Option(help="Its revision.")] = "1",
) -> None:
    """Finetune a checkpoint on datasets; run again to go on where it stopped, `accelerate launch` for many devices."""
    from dataclasses import replace

    from finetune.robometer.finetune import FinetuneConfig
    from finetune.robometer.sources import data_sources
    from finetune.robometer.train import REFERENCE

    try:
        sources = data_sources(
            {name: Path(folder) for name, folder in _named(data, "data").items()},
            {name: _share(name, said) for name, said in _named(cutoff or [], "cutoff").items()},
            cameras=_grouped(camera or []),
            preference_only=preference_only or [],
        )
        config = FinetuneConfig(
            base=base,
            data=sources,
            out=out,
            cache=cache,
            model_id=model_id,
            revision=revision,
            mode=mode,
            vision=vision,
            sampler=replace(REFERENCE, frames=frames, parity=parity),
            steps=steps,
            batch=batch,
            forward_pairs=forward_pairs,
            learning_rate=learning_rate,
            vision_learning_rate=vision_learning_rate,
            recompute=recompute,
            checkpoint_every=checkpoint_every,
            seed=seed,
            threads=threads,
        )
        folder = _finetuned(config)
    except (RoboserveError, ValueError, FileNotFoundError) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from error
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"checkpoint: {folder}")


def _finetuned(config: FinetuneConfig) -> Path:
    from finetune.robometer.finetune import Watch
    from finetune.robometer.finetune import finetune as run

    shown = progress_bars()
    shown.disable = os.environ.get("RANK", "0") != "0"  # of many processes one draws
    with shown as bars:
        bar = bars.add_task("pairs", total=config.steps, note="")

        def report(step: int, losses: dict[str, float]) -> None:
            bars.update(bar, completed=step, note=", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))

        return run(config, Watch(decoding=counting(bars, "decoding", "episodes"), step=report))


def _named(values: list[str], option: str) -> dict[str, str]:
    """Return what options of the form NAME=VALUE say.

    Raises:
        RoboserveError: `invalid_request` for another form, or a name that comes twice.
    """
    found: dict[str, str] = {}
    for value in values:
        name, equals, said = value.partition("=")
        if not (name and equals and said):
            raise RoboserveError("invalid_request", f"{option}: {value!r:.80}, must be NAME=VALUE")
        if name in found:
            raise RoboserveError("invalid_request", f"{option}: {name} comes twice")
        found[name] = said
    return found


def _share(name: str, said: str) -> float:
    try:
        return float(said)
    except ValueError as error:
        raise RoboserveError(
            "invalid_request", f"cutoff: {said!r:.40} of dataset {name!r}, must be a number"
        ) from error


def _grouped(values: list[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for value in values:
        ((name, camera),) = _named([value], "camera").items()
        found[name] = (*found.get(name, ()), camera)
    return found


@app.command()
def average(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, the last of a chain first.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    *,
    revision: Annotated[str, typer.Option(help="Its revision.")] = "1",
) -> None:
    """Make one model whose weights are the mean of several runs'."""
    from finetune.robometer.average import average as mean

    typer.echo(f"checkpoint: {mean(runs, out, revision=revision)}")


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
