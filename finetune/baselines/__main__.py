"""`python -m finetune.baselines train`: what OGPO is compared with, on the same job from the same cloned policy.

DSRL steers a frozen policy, as TMRL does: `python -m finetune.tmrl train --agent dsrl`.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads it
from typing import Annotated, Literal

import typer

from finetune.bars import progress_bars
from finetune.common.options import (  # noqa: TC001  typer reads them
    EveryOption,
    FormOption,
    LagOption,
    RewardOption,
    ServerOption,
)

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Baselines."""


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder; run again to go on where it stopped.")],
    policy: Annotated[str, typer.Option(help="The cloned policy: a checkpoint folder, or zoo:NAME.")],
    task: Annotated[str, typer.Option(help="NAME or NAME:key=value,key=value, as slot:shift=0.018.")],
    method: Annotated[Literal["dppo", "bptt", "residual", "distillation", "rlpd"], typer.Option()],
    *,
    steps: Annotated[int, typer.Option(help="Of the environment.")] = 10_000,
    updates: Annotated[float, typer.Option(help="For each step; 0 keeps the method's. DPPO has none.")] = 0.0,
    reward: RewardOption = "env",
    server: ServerOption = "127.0.0.1:8000",
    form: FormOption = "delta",
    reward_weight: Annotated[float, typer.Option(help="Factor of what a served model pays.")] = 1.0,
    every: EveryOption = 1,
    lag: LagOption = 32,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 1000,
    episodes: Annotated[int, typer.Option(help="Episodes of an evaluation.")] = 50,
    seed: Annotated[int, typer.Option(help="Of weights, chains and scenes.")] = 0,
) -> None:
    """Train one policy."""
    import torch

    from finetune.baselines.methods import baseline_job
    from finetune.common.learning import JobConfig
    from finetune.common.options import reward_config
    from models.folders import checkpoint_folder

    torch.set_num_threads(1)
    paid = reward_config(
        reward=reward, server=server, form=form, every=every, lag=lag, weight=reward_weight, gamma=0.99
    )
    config = JobConfig(out=out, steps=steps, evaluate_every=evaluate_every, episodes=episodes, seed=seed, reward=paid)
    job = baseline_job(config, method, checkpoint_folder(policy), task=task, updates=updates or None)
    with progress_bars() as bars:
        bar = bars.add_task(task, total=steps, note="")
        job.train(lambda step, note: bars.update(bar, completed=step, note=note))
    typer.echo(f"run: {out}")


if __name__ == "__main__":
    app()
