"""`python -m finetune.baselines train`: what OGPO is compared with, on the same job from the same cloned policy.

DSRL steers a frozen policy, as TMRL does: `python -m finetune.tmrl train --agent dsrl`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from finetune.common import options

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Baselines."""


@app.command()
def train(
    out: options.OutOption,
    policy: Annotated[str, typer.Option(help="The cloned policy: a checkpoint folder, or zoo:NAME.")],
    task: options.TaskOption,
    method: Annotated[Literal["dppo", "bptt", "residual", "distillation", "rlpd"], typer.Option()],
    *,
    steps: options.StepsOption = 10_000,
    execute: options.ExecuteOption = 0,
    updates: Annotated[float, typer.Option(help="For each step; 0 keeps the method's. DPPO has none.")] = 0.0,
    reward: options.RewardOption = "env",
    server: options.ServerOption = "127.0.0.1:8000",
    form: options.FormOption = "delta",
    reward_weight: options.WeightOption = 1.0,
    step_cost: options.CostOption = 0.0,
    every: options.EveryOption = 1,
    lag: options.LagOption = 32,
    evaluate_every: options.IntervalOption = 1000,
    episodes: options.EpisodesOption = 50,
    lanes: options.LanesOption = 0,
    seed: options.SeedOption = 0,
    workers: options.WorkersOption = 0,
    envs: options.EnvsOption = 1,
    device: options.DeviceOption = "auto",
) -> None:
    """Train one policy."""
    import torch

    from finetune.baselines.methods import baseline_job
    from finetune.common.device import chosen
    from finetune.common.learning import JobConfig
    from models.folders import checkpoint_folder

    torch.set_num_threads(1)
    where = chosen(device)
    paid = options.reward_config(
        reward=reward,
        server=server,
        form=form,
        every=every,
        lag=lag,
        weight=reward_weight,
        gamma=0.99,
        cost=step_cost,
    )
    config = JobConfig(
        out=out,
        steps=steps,
        evaluate_every=evaluate_every,
        episodes=episodes,
        seed=seed,
        reward=paid,
        workers=workers,
        envs=envs,
        lanes=options.lanes_of(task, lanes),
    )
    job = baseline_job(
        config,
        method,
        checkpoint_folder(policy),
        task=task,
        updates=updates or None,
        execute=execute or None,
        device=where,
    )
    options.run_job(job, f"{task}, {method}")
    typer.echo(f"run: {out}")


if __name__ == "__main__":
    app()
