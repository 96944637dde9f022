"""`python -m finetune.csp pretrain | levels | compare`: teach a state policy, smoothed or not; see what levels do."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads it
from typing import Annotated, Literal

import typer

from finetune.bars import progress_bars
from finetune.common.options import DeviceOption  # noqa: TC001  typer reads it
from finetune.common.publish import (  # noqa: TC001  typer reads them
    AlwaysOption,
    OverOption,
    PublishOption,
)

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
TaskOption = Annotated[str, typer.Option(help="NAME or NAME:key=value,key=value; its expert shows how.")]
SeedOption = Annotated[int, typer.Option(help="Of demonstrations, weights and batches.")]


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Run folder; the policy comes to be in its `checkpoint`.")],
    task: TaskOption,
    *,
    demonstrations: Annotated[int, typer.Option(help="Episodes of the expert.")] = 400,
    noise: Annotated[
        float, typer.Option(help="On the actions that the expert plays, not on those that are kept.")
    ] = 0.0,
    context: Annotated[
        str, typer.Option(help="Columns of the state to smooth, FIRST:END; left out, plain behaviour cloning.")
    ] = "",
    schedule: Annotated[Literal["linear", "cosine"], typer.Option(help="Of the context's noise.")] = "linear",
    noise_levels: Annotated[int, typer.Option(help="Of the linear schedule.")] = 1000,
    conditioning: Annotated[Literal["joint", "quarters"], typer.Option(help="How the level is told.")] = "joint",
    denoiser: Annotated[Literal["flow", "ddpm"], typer.Option(help="What the network learns.")] = "flow",
    chunk: Annotated[int, typer.Option(help="Rows of a chunk.")] = 8,
    execute: Annotated[int, typer.Option(help="Rows of it that are played.")] = 8,
    denoising_steps: Annotated[int, typer.Option(help="Steps from noise to a chunk.")] = 5,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 8000,
    batch: Annotated[int, typer.Option(help="Windows in a step.")] = 256,
    width: Annotated[int, typer.Option(help="Of the network.")] = 128,
    seed: SeedOption = 0,
    publish: PublishOption = None,
    publish_always: AlwaysOption = False,
    publish_over: OverOption = None,
    episodes: Annotated[int, typer.Option(help="By which a policy that is to be published is judged.")] = 50,
    device: DeviceOption = "auto",
) -> None:
    """Let the task's expert play, and clone it; run again to go on where it stopped."""
    from functools import partial

    import torch

    from finetune.common.demonstrations import demonstrate
    from finetune.common.device import chosen
    from finetune.common.environments.registry import make_env
    from finetune.common.publish import considering, publisher
    from finetune.csp.levels import judge
    from finetune.csp.train import PretrainConfig
    from finetune.csp.train import pretrain as run
    from models.policies.context_noise import ContextSchedule
    from models.policies.denoising import DiffusionSteps, FlowSteps
    from models.revisions import copied

    torch.set_num_threads(1)
    to = publisher(publish, job=out, always=publish_always, over=publish_over)
    shown = demonstrate(make_env(task), episodes=demonstrations, chunk_length=chunk, seed=seed, noise=noise)
    typer.echo(f"{len(shown.states)} windows of {demonstrations} episodes, {shown.success:.0%} of which succeeded")
    config = PretrainConfig(
        out=out,
        policy=task.partition(":")[0],
        context=_columns(context) if context else None,
        schedule=ContextSchedule(kind=schedule, levels=noise_levels),
        conditioning=conditioning,
        denoising=FlowSteps(steps=denoising_steps) if denoiser == "flow" else DiffusionSteps(steps=denoising_steps),
        execute=execute,
        steps=steps,
        batch=batch,
        width=width,
        seed=seed,
    )
    with progress_bars() as bars:
        bar = bars.add_task(task, total=steps, note="")

        def report(step: int, loss: float) -> None:
            bars.update(bar, completed=step, note=f"loss {loss:.4f}")

        folder = run(config, shown, report, device=chosen(device))
    typer.echo(f"policy: {folder}")
    published = considering(to, copied(folder), say=typer.echo)
    if published is not None:
        published(judge(folder, partial(make_env, task), episodes=episodes, seed=seed))


def _columns(text: str) -> tuple[int, int]:
    first, colon, end = text.partition(":")
    if not (colon and first.isdigit() and end.isdigit()):
        raise typer.BadParameter(f"context: {text!r} is not FIRST:END, two numbers of columns")
    return int(first), int(end)


@app.command()
def levels(
    policy: Annotated[str, typer.Argument(help="Checkpoint folder, or zoo:NAME.")],
    task: TaskOption,
    *,
    at: Annotated[str, typer.Option(help="Levels, from 0 to 1.")] = "0,0.1,0.25,0.5,0.75,1",
    episodes: Annotated[int, typer.Option(help="At each level.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
) -> None:
    """Print how often the policy does as it is told at each context level, and how many ways it then knows."""
    from functools import partial

    from rich.console import Console
    from rich.table import Table

    from finetune.common.environments.registry import make_env
    from finetune.csp.levels import by_level
    from finetune.tmrl.base import LocalPolicy
    from models.folders import checkpoint_folder

    chosen = [float(part) for part in at.split(",")]
    with progress_bars() as bars:
        bar = bars.add_task(task, total=len(chosen) * episodes, note="")
        results = by_level(
            LocalPolicy(checkpoint_folder(policy)),
            partial(make_env, task),
            chosen,
            episodes=episodes,
            seed=seed,
            report=lambda done: bars.update(bar, completed=done),
        )
    table = Table("level", "as told", "95 %", "ways", "entropy, bits")
    for row in results:
        ways = ("-", "-") if row.modes is None or row.entropy is None else (str(row.modes), f"{row.entropy:.2f}")
        table.add_row(f"{row.level:g}", f"{row.success:.2f}", f"{row.low:.2f} to {row.high:.2f}", *ways)
    Console().print(table)


@app.command("compare")
def compare_kinds(
    out: Annotated[Path, typer.Argument(help="Folder that gets table.md, levels.json and levels.png.")],
    policies: Annotated[list[str], typer.Argument(help="NAME=FOLDER each; folders of one name are its seeds.")],
    task: TaskOption,
    *,
    at: Annotated[str, typer.Option(help="Levels, from 0 to 1.")] = "0,0.1,0.25,0.5,0.75,1",
    episodes: Annotated[int, typer.Option(help="At each level, of each policy.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
) -> None:
    """Put kinds of a policy side by side: as told, and how many ways they know, at every level, over their seeds."""
    from functools import partial

    from finetune.common.environments.registry import make_env
    from finetune.csp.compare import compare, write
    from models.folders import checkpoint_folder

    kinds: dict[str, list[Path]] = {}
    for one in policies:
        name, equals, folder = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"policies: {one!r} is not NAME=FOLDER")
        kinds.setdefault(name, []).append(checkpoint_folder(folder))
    levels = [float(part) for part in at.split(",")]
    with progress_bars() as bars:
        bar = bars.add_task(task, total=len(policies), note="policies")
        found = compare(
            kinds,
            partial(make_env, task),
            levels,
            episodes=episodes,
            seed=seed,
            report=lambda done: bars.update(bar, completed=done),
        )
    typer.echo(write(out, found, levels, title=task))


if __name__ == "__main__":
    app()
