"""`python -m finetune.rlvlmf train | results | cartpole-pairs`: RL-VLM-F with labels from a served labeller."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads it
from typing import Annotated, Any, Literal

import typer

from finetune.bars import progress_bars
from finetune.rlvlmf.config import SCHEDULES

app = typer.Typer(help="A reward from preferences.", no_args_is_help=True, pretty_exceptions_enable=False)
ScheduleName = Literal["drawer", "sweep", "soccer", "rope", "water", "cartpole", "cloth"]


@app.callback()
def main() -> None:
    """A reward from preferences, and a policy from the reward."""


@app.command("cartpole-pairs")
def cartpole_pairs(
    out: Annotated[Path, typer.Argument(help="Folder of pictures and pairs.")],
    pictures: Annotated[int, typer.Option(help="Pictures to learn from.")] = 6000,
    pairs: Annotated[int, typer.Option(help="Pairs of them.")] = 20_000,
    held_out: Annotated[int, typer.Option(help="Pairs to be judged by.")] = 600,
    seed: Annotated[int, typer.Option(help="Of states and pairs.")] = 0,
) -> None:
    """Draw pairs that teach a vision-language model to compare pictures of the cart and the pole."""
    from finetune.rlvlmf.cartpole_pairs import PairsConfig, make_pairs

    typer.echo(make_pairs(PairsConfig(out=out, pictures=pictures, pairs=pairs, held_out=held_out, seed=seed)))


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder.")],
    *,
    task: Annotated[str, typer.Option(help="cartpole, or a MetaWorld task.")] = "cartpole",
    labeller: Annotated[
        str | None, typer.Option(help="ws://HOST:PORT/preference/NAME; left out, known labels are replayed.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="File of known labels, and for new ones; the run's own.")] = None,
    learn: Annotated[
        Literal["preferences", "true", "none"], typer.Option(help="What is learned from; the others are baselines.")
    ] = "preferences",
    schedule: Annotated[ScheduleName, typer.Option(help="Row of the method's table.")] = "cartpole",
    goal: Annotated[str, typer.Option(help="What the labeller is asked; the task's own wording when left out.")] = "",
    steps: Annotated[int | None, typer.Option(help="Decisions in all, instead of the schedule's.")] = None,
    seed_steps: Annotated[int | None, typer.Option(help="Random decisions first, instead of its own.")] = None,
    unsup: Annotated[int | None, typer.Option(help="Decisions of pre-training then, instead of its own.")] = None,
    interval: Annotated[int | None, typer.Option(help="Decisions between sessions, instead of its own.")] = None,
    query_batch: Annotated[int | None, typer.Option(help="Pairs of a session, instead of its own.")] = None,
    max_labels: Annotated[int | None, typer.Option(help="Pairs in all, instead of its own.")] = None,
    reward_epochs: Annotated[int | None, typer.Option(help="Most passes after a session, instead of its own.")] = None,
    reward_rate: Annotated[float | None, typer.Option(help="Of the ensemble, instead of the schedule's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of SAC, instead of the schedule's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Batch of SAC, instead of the schedule's.")] = None,
    hidden: Annotated[str | None, typer.Option(help="Widths of SAC's layers as 256,256, instead of its own.")] = None,
    protocol: Annotated[str | None, typer.Option(help="How the labeller is asked; its own first.")] = None,
    order_swap: Annotated[bool, typer.Option("--order-swap", help="Ask in both orders; not in the method.")] = False,
    tie_threshold: Annotated[float, typer.Option(help="Least certainty of a label; not in the method.")] = 0.0,
    audit: Annotated[bool, typer.Option("--audit", help="Keep the model's raw answers beside the labels.")] = False,
    job: Annotated[str | None, typer.Option(help="Whose budget the labels count in.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, exploration, scenes and pairs.")] = 0,
    evaluate_every: Annotated[int, typer.Option(help="Decisions between evaluations.")] = 5000,
    episodes: Annotated[int, typer.Option(help="Of each evaluation.")] = 10,
    repeat: Annotated[int, typer.Option(help="Control steps of a decision, on MetaWorld.")] = 2,
    horizon: Annotated[int, typer.Option(help="Decisions of an episode.")] = 100,
) -> None:
    """Train one policy; a run that was killed begins anew, but asks for no label twice."""
    from dataclasses import replace

    from finetune.preference.judges import ServedLabeller
    from finetune.rlvlmf.config import RlVlmfConfig
    from finetune.rlvlmf.train import train as run

    given: dict[str, Any] = {
        "env_steps": steps,
        "seed_steps": seed_steps,
        "unsup": unsup,
        "reward_epochs": reward_epochs,
        "reward_rate": reward_rate,
        "interval": interval,
        "query_batch": query_batch,
        "max_labels": max_labels,
    }
    given["sac_rate"], given["sac_batch"] = learning_rate, batch
    given["hidden"] = None if hidden is None else tuple(int(width) for width in hidden.split(","))
    row = replace(SCHEDULES[schedule], **{name: value for name, value in given.items() if value is not None})
    config = RlVlmfConfig(
        out=out,
        task=task,
        goal=goal,
        schedule=row,
        learn=learn,
        protocol=protocol,
        order_swap=order_swap,
        tie_threshold=tie_threshold,
        audit=audit,
        seed=seed,
        evaluate_every=evaluate_every,
        episodes=episodes,
        repeat=repeat,
        horizon=horizon,
    )
    judge = None if labeller is None else ServedLabeller(labeller, job=job)
    try:
        with progress_bars() as bars:
            bar = bars.add_task(f"{task}, {learn}", total=row.env_steps, note="")
            counts = run(config, judge, lambda step, note: bars.update(bar, completed=step, note=note), labels=labels)
    finally:
        if judge is not None:
            judge.close()
    typer.echo(f"run: {out}; labels: {counts.asked} asked, {counts.replayed} replayed, {counts.ties} of them ties")


@app.command()
def results(
    studies: Annotated[list[Path], typer.Argument(help="Studies of this method, as `finetune.study` runs them.")],
    out: Annotated[Path, typer.Option(help="Folder of table, curves and plot.")],
) -> None:
    """Write what the runs of studies found, those that are done: return, and Spearman with the true reward."""
    from finetune.rlvlmf.results import write
    from finetune.study.config import read_study

    typer.echo(write([read_study(study) for study in studies], out))


if __name__ == "__main__":
    app()
