"""`python -m finetune.ogpo train`: improve a cloned policy by the likelihood of its own chains."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from finetune.common import options
from finetune.common.publish import (  # noqa: TC001  typer reads them
    AlwaysOption,
    OverOption,
    PublishOption,
)

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Off-policy generative policy optimisation."""


@app.command()
def train(
    out: options.OutOption,
    policy: Annotated[str, typer.Option(help="The cloned policy: a checkpoint folder, or zoo:NAME.")],
    task: options.TaskOption,
    *,
    variant: Annotated[
        Literal["ogpo", "ogpo+", "ogpo+ca", "ogpo+chi2"],
        typer.Option(help="Plain; with the success buffer; that with conservative advantage, or with chi-squared."),
    ] = "ogpo+ca",
    settings: Annotated[
        Literal["small", "paper"], typer.Option(help="For toys and two cores, or the released scripts'.")
    ] = "small",
    steps: options.StepsOption = 10_000,
    denoising_noise: Annotated[float, typer.Option(help="Of a flow's steps; 0 keeps the checkpoint's.")] = 0.0,
    correction: Annotated[
        Literal["matched", "reference"], typer.Option(help="Of a flow's drift; reference is the released form.")
    ] = "matched",
    last: Annotated[int, typer.Option(help="Steps from the end that are scored; 0 is all.")] = 0,
    updates: Annotated[float, typer.Option(help="For each step; 0 keeps the settings'.")] = 0.0,
    capacity: Annotated[
        int, typer.Option(help="Steps that are kept, the oldest forgotten first; 0 keeps the settings'.", min=0)
    ] = 0,
    execute: options.ExecuteOption = 0,
    learning_rate: Annotated[
        float, typer.Option(help="Of the policy; 0 keeps the settings', which is much for the head of a VLA.", min=0)
    ] = 0.0,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Activation checkpointing: less memory, a second forward.")
    ] = False,
    best_of: Annotated[int, typer.Option(help="Chains from which a chunk to play is chosen.")] = 1,
    next_actions: Annotated[int, typer.Option(help="Draws at the next state; 8 for Q-variance reduction.")] = 1,
    reward: options.RewardOption = "env",
    server: options.ServerOption = "127.0.0.1:8000",
    form: options.FormOption = "delta",
    reward_weight: options.WeightOption = 1.0,
    step_cost: options.CostOption = 0.0,
    every: options.EveryOption = 1,
    lag: options.LagOption = 32,
    aggregate: Annotated[Literal["mean", "min"], typer.Option(help="Of the critics in their target.")] = "mean",
    standardise: Annotated[bool, typer.Option("--standardise", help="Advantages by their group's deviation.")] = False,
    evaluate_every: options.IntervalOption = 1000,
    episodes: options.EpisodesOption = 50,
    lanes: options.LanesOption = 0,
    seed: options.SeedOption = 0,
    workers: options.WorkersOption = 0,
    envs: options.EnvsOption = 1,
    device: options.DeviceOption = "auto",
    publish: PublishOption = None,
    publish_always: AlwaysOption = False,
    publish_over: OverOption = None,
) -> None:
    """Train one policy, from an empty replay."""
    from dataclasses import replace

    import torch

    from finetune.common.device import chosen
    from finetune.common.learning import JobConfig
    from finetune.common.publish import publisher
    from finetune.ogpo.config import OgpoConfig, small
    from finetune.ogpo.config import variant as as_variant
    from finetune.ogpo.train import OgpoJob, denoising
    from models.folders import checkpoint_folder

    torch.set_num_threads(1)
    where = chosen(device)
    method = as_variant(small() if settings == "small" else OgpoConfig(), variant)
    method = replace(method, best_of=best_of, next_actions=next_actions, aggregate=aggregate, standardise=standardise)
    if learning_rate:
        method = replace(method, learning_rate=learning_rate)
    if updates:
        method = replace(method, experience=replace(method.experience, updates=updates))
    if capacity:
        method = replace(method, experience=replace(method.experience, capacity=capacity))
    paid = options.reward_config(
        reward=reward,
        server=server,
        form=form,
        every=every,
        lag=lag,
        weight=reward_weight,
        cost=step_cost,
        gamma=method.experience.discount,
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
    folder = checkpoint_folder(policy)
    chain = denoising(folder, noise=denoising_noise or None, correction=correction, last=last or None)
    to = publisher(publish, job=out, always=publish_always, over=publish_over)
    rows = execute or None
    job = OgpoJob(config, method, folder, task=task, steps=chain, execute=rows, recompute=recompute, device=where)
    options.run_job(job, task, to=to, export=job.export)
    job.export(out / "checkpoint")
    typer.echo(f"run: {out}; policy: {out / 'checkpoint'}")


if __name__ == "__main__":
    app()
