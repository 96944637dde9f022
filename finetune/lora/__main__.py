"""`python -m finetune.lora train | merge | compare | presets`: adapters of policies."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path  # noqa: TC003  typer reads it
from typing import Annotated

import typer

app = typer.Typer(help="Adapters of policies: train, merge, compare, presets.", no_args_is_help=True)


class MethodName(StrEnum):
    """What is trained."""

    LORA = "lora"
    QLORA = "qlora"
    HEADS = "heads"
    FULL = "full"


class RuleName(StrEnum):
    """How a column becomes weights."""

    WEIGHT = "weight"
    RETURN = "return"
    PROGRESS = "progress"


@app.command()
def train(
    *,
    base: Annotated[str, typer.Option(help="Checkpoint folder of a VLA or a policy on states, or zoo:NAME.")],
    data: Annotated[list[Path], typer.Option(help="LeRobot v3 dataset; may be given again.")],
    out: Annotated[Path, typer.Option(help="Run folder; goes on where it was stopped.")],
    preset: Annotated[str, typer.Option(help="Settings to start from; see `presets`.")] = "embedded",
    method: Annotated[MethodName, typer.Option(help="What is trained.")] = MethodName.LORA,
    targets: Annotated[
        str | None, typer.Option(help="all-linear, a regular expression, or ends of names between commas.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the changes.")] = None,
    alpha: Annotated[int | None, typer.Option(help="They are scaled by alpha / rank.")] = None,
    heads: Annotated[list[str] | None, typer.Option(help="Linear layer that is trained whole.")] = None,
    weights: Annotated[str | None, typer.Option(help="Column that says how much a frame counts.")] = None,
    labels: Annotated[str | None, typer.Option(help="Parquet file in each dataset that has that column.")] = None,
    rule: Annotated[RuleName, typer.Option(help="How the column becomes weights.")] = RuleName.WEIGHT,
    temperature: Annotated[float, typer.Option(help="Of weights from returns or progress.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch: Annotated[int | None, typer.Option(help="Observations in a step; the preset's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; the preset's.")] = None,
    revision: Annotated[str, typer.Option(help="Version of what comes out.")] = "1",
    seed: Annotated[int, typer.Option(help="Of weights, batches and noise.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    stabilised: Annotated[bool, typer.Option("--rslora", help="Scale by alpha / sqrt(rank).")] = False,
    own_statistics: Annotated[bool, typer.Option("--data-statistics", help="Normalise as these data.")] = False,
) -> None:
    """Finetune on demonstrations."""
    from finetune.bars import progress_bars
    from finetune.lora.presets import preset as find
    from finetune.lora.train import FinetuneConfig, finetune
    from finetune.lora.trainable import LoraSettings
    from finetune.lora.weights import WeightSettings

    chosen = find(preset)
    lora = LoraSettings(
        targets=chosen.targets if targets is None else parse_targets(targets),
        rank=rank or chosen.rank,
        alpha=alpha or chosen.alpha,
        stabilised=stabilised or chosen.stabilised,
        dropout=chosen.dropout,
        initial=chosen.initial,
        heads=tuple(heads or chosen.heads),
    )
    config = FinetuneConfig(
        base=base,
        data=tuple(data),
        out=out,
        method=method.value,
        lora=lora,
        statistics="data" if own_statistics else "base",
        steps=steps,
        batch=batch or chosen.batch or 64,
        learning_rate=learning_rate or chosen.learning_rate or 1e-3,
        revision=revision,
        seed=seed,
        threads=threads,
    )
    if weights is not None:
        settings = WeightSettings(column=weights, file=labels, rule=rule.value, temperature=temperature)
        config = replace(config, weights=settings)
    with progress_bars() as bars:
        bar = bars.add_task("finetune", total=steps, note="")
        folder = finetune(config, report=lambda step, loss: bars.update(bar, completed=step, note=f"loss {loss:.4f}"))
    typer.echo(f"{folder}: {(out / 'report.json').read_text('utf-8').strip()}")


@app.command()
def merge(
    adapter: Annotated[Path, typer.Option(help="Folder of an adapter.")],
    base: Annotated[str, typer.Option(help="Its base: checkpoint folder, or zoo:NAME.")],
    out: Annotated[Path, typer.Option(help="Folder that gets the checkpoint.")],
) -> None:
    """Write the checkpoint that an adapter makes of its base."""
    from finetune.lora.artefacts import merge_adapter

    typer.echo(f"checkpoint: {merge_adapter(adapter, base, out)}")


@app.command("compare")
def compare_ways(
    results: Annotated[Path, typer.Argument(help="Folder that gets table.md, cells.json and compare.png.")],
    *,
    base: Annotated[str, typer.Option(help="Checkpoint folder of a flow VLA, or zoo:NAME.")],
    data: Annotated[Path, typer.Option(help="LeRobot v3 dataset of a MetaWorld task that the base does not know.")],
    task: Annotated[str, typer.Option(help="That task.")],
    known: Annotated[str, typer.Option(help="Tasks that the base knows, between commas.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs; goes on where it was stopped.")],
    seeds: Annotated[int, typer.Option(help="Runs of each way.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Optimiser steps of a run.")] = 800,
    batch: Annotated[int, typer.Option(help="Observations in a step.")] = 64,
    episodes: Annotated[int, typer.Option(help="Scenes of the new task.")] = 50,
    known_episodes: Annotated[int, typer.Option(help="Scenes of each known task.")] = 10,
) -> None:
    """Teach one more task in full, by heads and by adapters of three ranks; see what is learned and what forgotten."""
    from finetune.bars import progress_bars
    from finetune.lora.compare import CompareConfig, compare, write

    config = CompareConfig(
        base=base,
        data=data,
        out=out,
        task=task,
        known=tuple(known.split(",")),
        seeds=tuple(range(seeds)),
        steps=steps,
        batch=batch,
        episodes=episodes,
        known_episodes=known_episodes,
    )
    with progress_bars() as bars:
        bar = bars.add_task("compare", total=1 + seeds * len(config.ways), note="")
        cells = compare(config, report=lambda done, note: bars.update(bar, completed=done, note=note))
    typer.echo(write(results, cells, title=f"{task} in {steps} steps"))


@app.command()
def presets() -> None:
    """List the presets with their sources."""
    from rich.console import Console
    from rich.table import Table

    from finetune.lora.presets import PRESETS

    table = Table("preset", "model", "targets", "r / alpha", "rate", "source", "note")
    for name, one in PRESETS.items():
        targets = one.targets if isinstance(one.targets, str) else ", ".join(one.targets)
        rate = "" if one.learning_rate is None else f"{one.learning_rate:g}"
        table.add_row(name, one.model, targets, f"{one.rank} / {one.alpha}", rate, one.source, one.note)
    Console().print(table)


def parse_targets(text: str) -> str | tuple[str, ...]:
    """Return targets as typed: names between commas, or one expression."""
    plain = text.replace(",", "").replace("_", "").replace(".", "").replace("-", "").isalnum()
    return tuple(text.split(",")) if plain and text != "all-linear" else text


if __name__ == "__main__":
    app()
