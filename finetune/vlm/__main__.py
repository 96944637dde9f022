"""`python -m finetune.vlm collect | vision | train | adapt | evaluate | card`, and `finetune` for any other folder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.bars import progress_bars

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

app = typer.Typer(help="Vision-language models: finetune any, train the embedded one.", no_args_is_help=True)

DataOption = Annotated[Path, typer.Option(help="Folder of frames, as `collect` makes it.")]
WorkOption = Annotated[Path, typer.Option(help="Folder of the runs; the model comes to be in `checkpoint`.")]
StepsOption = Annotated[int, typer.Option(help="Optimiser steps.")]
RateOption = Annotated[float, typer.Option(help="Peak of the learning rate.")]
SeedOption = Annotated[int, typer.Option(help="Seed of weights and batches.")]
ThreadsOption = Annotated[int, typer.Option(help="Threads of PyTorch.")]
DATA, WORK = Path("runs/vlm/data"), Path("runs/vlm")


class Adapter(StrEnum):
    """The adapters that come with the embedded model."""

    PATH = "path"
    PREFERENCE = "preference"


class Read(StrEnum):
    """What the small network on top of the vision tower reads."""

    PLACES = "places"
    MEAN = "mean"


class Method(StrEnum):
    """How a folder is finetuned: all weights, an adapter, or an adapter of a base in four bits."""

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


@app.command()
def collect(
    out: DataOption = DATA,
    scale: Annotated[float, typer.Option(help="Factor on the number of episodes.")] = 1.0,
    processes: Annotated[int, typer.Option(help="Simulators that run at once.")] = 1,
) -> None:
    """Collect frames of all tasks in varied looks; goes on, task by task, where it was stopped."""
    from finetune.vlm.collect import CollectConfig
    from finetune.vlm.collect import collect as run

    counts = run(CollectConfig(out=out, scale=scale, processes=processes))
    typer.echo(f"{sum(counts.values())} frames of {len(counts)} tasks")


@app.command()
def vision(
    data: DataOption = DATA,
    work: WorkOption = WORK,
    steps: StepsOption = 600,
    batch: Annotated[int, typer.Option(help="Frames in a step.")] = 64,
    learning_rate: RateOption = 1.5e-3,
    read: Annotated[Read, typer.Option(help="What is read: all tokens at their places, or their mean.")] = Read.PLACES,
    start: Annotated[Path | None, typer.Option(help="Run folder whose tower it starts from.")] = None,
    *,
    hues: Annotated[float, typer.Option(help="Share of pictures whose colours are turned about grey.")] = 0.4,
    name: Annotated[str, typer.Option(help="Run folder in `work`.")] = "vision",
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
) -> None:
    """Stage one: the vision tower learns to see where things are; run again to go on where it stopped."""
    from finetune.vlm.augment import Jitter
    from finetune.vlm.recipe import Recipe
    from finetune.vlm.vision import VisionConfig

    config = VisionConfig(
        out=work / name,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        read=read.value,
        start=start,
        jitter=Jitter(hues=hues),
        seed=seed,
        threads=threads,
    )
    with progress_bars() as bars:
        bar = bars.add_task("vision", total=steps, note="")
        Recipe(data=data, work=work).vision(
            config, lambda step, error: bars.update(bar, completed=step, note=f"points off by {error:.4f}")
        )


@app.command()
def train(
    data: DataOption = DATA,
    work: WorkOption = WORK,
    tower: Annotated[str, typer.Option(help="Run of stage one, in `work`, that it starts from.")] = "means",
    steps: StepsOption = 1000,
    batch: Annotated[int, typer.Option(help="Conversations in a step.")] = 32,
    learning_rate: RateOption = 1.5e-3,
    *,
    model_id: Annotated[str, typer.Option(help="What the model is called.")] = "metaworld-vlm",
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
) -> None:
    """Stage two: the base learns paths and preferences at once; run again to go on where it stopped."""
    from finetune.vlm.recipe import Recipe
    from finetune.vlm.train import TrainConfig

    config = TrainConfig(
        out=work / "base",
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        smoothing=1.0,
        seed=seed,
        threads=threads,
    )
    with progress_bars() as bars:
        report = _reporting(bars, "base", steps)
        folder = Recipe(data=data, work=work).base(config, work / tower, report, model_id=model_id)
    typer.echo(f"checkpoint: {folder}")


@app.command()
def adapt(
    name: Annotated[Adapter, typer.Argument(help="Which adapter.")],
    data: DataOption = DATA,
    work: WorkOption = WORK,
    steps: StepsOption = 500,
    batch: Annotated[int, typer.Option(help="Conversations in a step.")] = 48,
    learning_rate: RateOption = 2e-3,
    *,
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 8,
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
) -> None:
    """Stage three: an adapter for one of both lessons; run again to go on where it stopped."""
    from finetune.vlm.adapters import LoraSettings
    from finetune.vlm.recipe import Recipe
    from finetune.vlm.train import TrainConfig

    config = TrainConfig(
        out=work / f"adapter-{name.value}",
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        smoothing=1.0,
        seed=seed,
        threads=threads,
    )
    with progress_bars() as bars:
        report = _reporting(bars, name.value, steps)
        folder = Recipe(data=data, work=work).adapt(name.value, config, LoraSettings(rank=rank, alpha=2 * rank), report)
    typer.echo(f"adapter: {folder}")


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="Checkpoint.")] = WORK / "checkpoint",
    data: DataOption = DATA,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = WORK / "evaluation.json",
    frames: Annotated[int, typer.Option(help="Most frames of a task in one look.")] = 20,
    pairs: Annotated[int, typer.Option(help="Pairs of a task in one look.")] = 20,
) -> None:
    """Ask a checkpoint about scenes and looks that it never saw."""
    from finetune.vlm.evaluate import evaluate as run
    from finetune.vlm.evaluate import write
    from finetune.vlm.path_figures import EvaluateConfig

    with progress_bars() as bars:
        known: dict[str, Any] = {}

        def report(stage: str, count: int) -> None:
            if stage not in known:
                known[stage] = bars.add_task(stage, total=None, note="")
            bars.advance(known[stage], count)

        found = run(folder, EvaluateConfig(data=data, frames=frames, pairs=pairs), report=report)
    typer.echo(f"evaluation: {write(found, out)}")


@app.command()
def card(
    data: DataOption = DATA,
    work: WorkOption = WORK,
    memory: Annotated[str | None, typer.Option(help="A sentence on start-up time and memory.")] = None,
) -> None:
    """Draw examples and write the checkpoint's card from what was measured."""
    from finetune.vlm.card import EXAMPLES, write_card
    from finetune.vlm.drawings import draw_examples

    draw_examples(work / "checkpoint", data, work / "checkpoint" / EXAMPLES)
    typer.echo(f"card: {write_card(work, work / 'evaluation.json', memory=memory)}")


@app.command()
def finetune(
    folder: Annotated[str, typer.Argument(help='Model folder, or "zoo:NAME".')],
    conversations: Annotated[Path, typer.Argument(help="Conversations, one JSON map a line.")],
    out: Annotated[Path, typer.Option(help="Run folder; goes on where it was stopped.")],
    method: Annotated[Method, typer.Option(help="What is trained.")] = Method.LORA,
    steps: StepsOption = 500,
    batch: Annotated[int, typer.Option(help="Conversations in a step.")] = 8,
    *,
    micro: Annotated[int | None, typer.Option(help="Conversations in one forward; all of them when left out.")] = None,
    learning_rate: RateOption = 1e-4,
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 16,
    dtype: Annotated[str, typer.Option(help="Of the base in computation.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
) -> None:
    """Finetune any vision-language folder on conversations with pictures."""
    from finetune.vlm.adapters import LoraSettings
    from finetune.vlm.finetune import FinetuneConfig
    from finetune.vlm.finetune import finetune as run
    from finetune.vlm.train import TrainConfig
    from models.folders import checkpoint_folder

    loop = TrainConfig(
        out=out, steps=steps, batch=batch, micro=micro, learning_rate=learning_rate, seed=seed, threads=threads
    )
    config = FinetuneConfig(
        folder=checkpoint_folder(folder),
        data=conversations,
        train=loop,
        method=method.value,
        lora=LoraSettings(rank=rank, alpha=2 * rank),
        dtype=dtype,
        device=device,
    )
    with progress_bars() as bars:
        made = run(config, report=_reporting(bars, method.value, steps))
    typer.echo(f"made: {made}")


def _reporting(bars: Progress, name: str, steps: int) -> Callable[[int, dict[str, float]], None]:
    bar: Any = bars.add_task(name, total=steps, note="")
    smooth: dict[str, float] = {}

    def report(step: int, losses: dict[str, float]) -> None:
        for lesson, loss in losses.items():
            smooth[lesson] = 0.95 * smooth.get(lesson, loss) + 0.05 * loss
        note = ", ".join(f"{lesson} {loss:.3f}" for lesson, loss in smooth.items())
        bars.update(bar, completed=step, note=note)

    return report


if __name__ == "__main__":
    app()
