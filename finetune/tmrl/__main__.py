"""`python -m finetune.tmrl train`: steer a frozen policy to a task that it was not trained for."""

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
    """A high-level agent over a frozen policy."""


@app.command()
def train(
    out: options.OutOption,
    policy: Annotated[
        str,
        typer.Option(help="The frozen policy: a checkpoint folder, zoo:NAME, or ws://... of a served one."),
    ],
    task: options.TaskOption,
    *,
    agent: Annotated[
        Literal["tmrl", "dsrl"], typer.Option(help="dsrl chooses the noise alone, and needs both bounds at 0.")
    ] = "tmrl",
    steps: options.StepsOption = 10_000,
    warmup: Annotated[int, typer.Option(help="Decisions, the first, that are drawn uniformly.")] = 100,
    updates: Annotated[int, typer.Option(help="Updates after each decision.")] = 4,
    batch: Annotated[int, typer.Option(help="Decisions of an update.")] = 256,
    hidden: Annotated[int, typer.Option(help="Width of actor and critics.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="Of all optimisers.")] = 3e-4,
    temperature: Annotated[float, typer.Option(help="At the start; 0.01 to 0.1 for short runs.")] = 1.0,
    fixed_temperature: Annotated[bool, typer.Option("--fixed-temperature", help="Keep it as it is.")] = False,
    noise_bound: Annotated[float, typer.Option(help="Largest initial action noise.")] = 1.0,
    level_bound: Annotated[float, typer.Option(help="Largest context level; 0, with context bound 0, is DSRL.")] = 1.0,
    level_least: Annotated[float, typer.Option(help="Smallest; as large as the bound, the level is fixed.")] = 0.0,
    context_bound: Annotated[float, typer.Option(help="Largest context noise; 0 draws it instead.")] = 1.0,
    context_rank: Annotated[
        int, typer.Option(help="Numbers from which all context noise is made; 0 chooses each.", min=0)
    ] = 0,
    whole_chunk: Annotated[bool, typer.Option("--whole-chunk", help="A noise for every row of the chunk.")] = False,
    half_solved: Annotated[bool, typer.Option("--half-solved", help="Half of a batch from successes.")] = False,
    discount: Annotated[float, typer.Option(help="Once a decision.")] = 0.995,
    playing: Annotated[
        Literal["likeliest", "drawn"], typer.Option(help="Choices by which the agent is judged, and which it serves.")
    ] = "likeliest",
    reward: options.RewardOption = "env",
    server: options.ServerOption = "127.0.0.1:8000",
    form: options.FormOption = "delta",
    reward_weight: options.WeightOption = 1.0,
    step_cost: options.CostOption = 0.0,
    every: options.EveryOption = 1,
    lag: options.LagOption = 32,
    evaluate_every: options.IntervalOption = 1000,
    episodes: options.EpisodesOption = 25,
    lanes: options.LanesOption = 0,
    seed: options.SeedOption = 0,
    workers: options.WorkersOption = 0,
    envs: options.EnvsOption = 1,
    device: options.DeviceOption = "auto",
    publish: PublishOption = None,
    publish_always: AlwaysOption = False,
    publish_over: OverOption = None,
) -> None:
    """Train one agent."""
    from functools import partial

    import torch

    from finetune.baselines.dsrl import DsrlAgent
    from finetune.common.device import chosen
    from finetune.common.learning import JobConfig
    from finetune.common.publish import publisher
    from finetune.tmrl.agent import TmrlAgent
    from finetune.tmrl.base import LocalPolicy, ServedPolicy
    from finetune.tmrl.config import AgentConfig, TmrlConfig
    from finetune.tmrl.train import TmrlJob
    from models.folders import checkpoint_folder

    torch.set_num_threads(1)
    where = chosen(device)
    method = TmrlConfig(
        agent=AgentConfig(
            noise_bound=noise_bound,
            level_bound=level_bound,
            level_least=level_least,
            context_bound=context_bound,
            context_rank=context_rank,
            whole_chunk=whole_chunk,
            hidden=hidden,
            learning_rate=learning_rate,
            discount=discount,
            temperature=temperature,
            learn_temperature=not fixed_temperature,
        ),
        warmup=warmup,
        updates=updates,
        batch=batch,
        half_solved=half_solved,
        playing=playing,
    )
    paid = options.reward_config(
        reward=reward,
        server=server,
        form=form,
        every=every,
        lag=lag,
        weight=reward_weight,
        gamma=discount,
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
    frozen = ServedPolicy(policy) if "://" in policy else LocalPolicy(checkpoint_folder(policy), device=where)
    chooses = DsrlAgent if agent == "dsrl" else TmrlAgent
    to = publisher(publish, job=out, always=publish_always, over=publish_over)
    exports = agent == "tmrl" and isinstance(frozen, LocalPolicy)
    if to is not None and not exports:
        raise typer.BadParameter("publish: needs the agent tmrl, and a frozen policy that is here")
    job = TmrlJob(config, method, frozen, task=task, agent=chooses, device=where)
    export = partial(job.export, name=f"{task.partition(':')[0]}-steered", revision=str(seed))
    options.run_job(job, task, to=to, export=export if exports else None)
    if exports:
        export(out / "checkpoint")
    typer.echo(f"run: {out}")


if __name__ == "__main__":
    app()
