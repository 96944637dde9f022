"""`python -m finetune.rlvlmf train`: RL-VLM-F with labels from a served labeller."""

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
    interval: Annotated[int | None, typer.Option(help="Decisions between sessions, instead of its own.")] = None,
    query_batch: Annotated[int | None, typer.Option(help="Pairs of a session, instead of its own.")] = None,
    max_labels: Annotated[int | None, typer.Option(help="Pairs in all, instead of its own.")] = None,
    batch: Annotated[int | None, typer.Option(help="Batch of SAC, instead of the schedule's.")] = None,
    hidden: Annotated[str | None, typer.Option(help="Widths of SAC's layers as 256,256, instead of its own.")] = None,
    protocol: Annotated[str | None, typer.Option(help="How the labeller is asked; its own first.")] = None,
    order_swap: Annotated[bool, typer.Option("--order-swap", help="Ask in both orders; not in the method.")] = False,
    tie_threshold: Annotated[float, typer.Option(help="Least certainty of a label; not in the method.")] = 0.0,
    audit: Annotated[bool, typer.Option("--audit", help="Keep the model's raw answers beside the labels.")] = False,
    job: Annotated[str | None, typer.Option(help="Whose budget the labels count in.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, exploration, scenes and pairs.")] = 0,
    evaluate_every: Annotated[int, typer.Option(help="Decisions between evaluations.")] = 5000,
) -> None:
    """Train one policy; a run that was killed begins anew, but asks for no label twice."""
    from dataclasses import replace

    from finetune.preference.judges import ServedLabeller
    from finetune.rlvlmf.config import RlVlmfConfig
    from finetune.rlvlmf.train import train as run

    given: dict[str, Any] = {
        "env_steps": steps,
        "interval": interval,
        "query_batch": query_batch,
        "max_labels": max_labels,
    }
    given["sac_batch"] = batch
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
    )
    judge = None if labeller is None else ServedLabeller(labeller, job=job)
    try:
        with progress_bars() as bars:
            bar = bars.add_task(f"{task}, {learn}", total=row.env_steps, note="")
            folder = run(config, judge, lambda step, note: bars.update(bar, completed=step, note=note), labels=labels)
    finally:
        if judge is not None:
            judge.close()
    typer.echo(f"run: {folder.path}")


if __name__ == "__main__":
    app()
