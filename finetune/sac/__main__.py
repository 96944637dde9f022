"""`python -m finetune.sac train | plot`: reinforcement learning of a simulated task from a served reward."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.bars import progress_bars

app = typer.Typer(help="Soft actor-critic from a served reward.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def train(
    task: Annotated[str, typer.Option(help="MetaWorld task.")],
    reward: Annotated[str, typer.Option(help="served:ws://HOST:PORT/reward/NAME, sparse, or env.")],
    out: Annotated[Path, typer.Option(help="Run folder; goes on where it was stopped.")],
    *,
    seed: Annotated[int, typer.Option(help="Seed of weights, exploration and scenes.")] = 0,
    steps: Annotated[int, typer.Option(help="Decisions in all.")] = 20_000,
    form: Annotated[str, typer.Option(help="What the served model is paid for: progress, delta or potential.")] = (
        "progress"
    ),
    bonus: Annotated[float, typer.Option(help="For every step at which the served model sees success.")] = 0.0,
    weight: Annotated[float, typer.Option(help="Factor of every reward.")] = 1.0,
    repeat: Annotated[int, typer.Option(help="Control steps that an action is held for.")] = 2,
    horizon: Annotated[int, typer.Option(help="Decisions of an episode.")] = 75,
    evaluate_every: Annotated[int, typer.Option(help="Decisions between evaluations.")] = 1000,
    episodes: Annotated[int, typer.Option(help="Fresh scenes of an evaluation.")] = 10,
) -> None:
    """Train one policy from the simulator's state; run again to go on where it stopped."""
    from clients.reward_shaping import RewardShape
    from finetune.sac.train import SacConfig
    from finetune.sac.train import train as run

    shape = RewardShape(form=form, success_bonus=bonus)
    config = SacConfig(
        out=out,
        task=task,
        reward=reward,
        shape=shape,
        weight=weight,
        seed=seed,
        steps=steps,
        repeat=repeat,
        horizon=horizon,
        evaluate_every=evaluate_every,
        episodes=episodes,
    )
    with progress_bars() as bars:
        bar = bars.add_task(f"{task}, {reward.partition(':')[0]}", total=steps, note="")

        def report(step: int, success: float | None) -> None:
            bars.update(bar, completed=step, note="" if success is None else f"success {success:.2f}")

        folder = run(config, report)
    typer.echo(f"run: {folder.path}")


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of one task; a line for each reward.")],
    out: Annotated[Path, typer.Option(help="Folder for success.png and curves.json.")] = Path("runs/sac"),
) -> None:
    """Draw success over steps: mean and range over seeds, a line for each reward."""
    from finetune.sac.curves import draw, gather, save, table

    curves = gather(runs)
    save(curves, out)
    draw(curves).savefig(out / "success.png", dpi=110)
    typer.echo(table(curves))


if __name__ == "__main__":
    app()
