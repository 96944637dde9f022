"""Options of the command line that every job has, and what they come to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from finetune.bars import progress_bars
from finetune.common.publish import considering
from finetune.common.rewards import RewardConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from finetune.common.learning import LearningJob
    from finetune.common.publish import Publisher

_LANES, _ROBOTS_LANES = 50, 8
Form = Literal["progress", "delta", "potential", "success"]
OutOption = Annotated[Path, typer.Option(help="Run folder; run again to go on where it stopped.")]
TaskOption = Annotated[str, typer.Option(help="NAME or NAME:key=value,key=value, as slot:shift=0.018.")]
StepsOption = Annotated[int, typer.Option(help="Of the environment.")]
ExecuteOption = Annotated[int, typer.Option(help="Rows to play of a chunk; 0 keeps the policy's.", min=0)]
IntervalOption = Annotated[int, typer.Option(help="Steps between evaluations.")]
EpisodesOption = Annotated[int, typer.Option(help="Episodes of an evaluation.")]
LanesOption = Annotated[
    int, typer.Option(help="Of them side by side; 0 is 50, or 8 of a robot, each of which may have a renderer.", min=0)
]
SeedOption = Annotated[int, typer.Option(help="Of weights, draws and scenes.")]
WorkersOption = Annotated[
    int, typer.Option(help="Processes that play, as Ray actors; a dead one is replaced. 0 plays here.", min=0)
]
EnvsOption = Annotated[
    int,
    typer.Option(help="To learn in, side by side; with more than one, the learner hears of whole episodes.", min=1),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Where networks compute; auto takes CUDA where there is one. Environments play on the CPU."),
]
RewardOption = Annotated[
    str, typer.Option(help="Who pays: env, or served:NAME or served:ADDRESS of a reward model, which alone pays then.")
]
ServerOption = Annotated[str, typer.Option(help="Where a reward model that is given by its name answers.")]
FormOption = Annotated[Form, typer.Option(help="What a served model's word is paid as.")]
EveryOption = Annotated[int, typer.Option(help="Show the reward model every n-th step.", min=1)]
WeightOption = Annotated[float, typer.Option(help="Factor of what a served model pays.")]
CostOption = Annotated[
    float, typer.Option(help="Of every step, beside what a served model pays: a reason to succeed soon.", min=0)
]
LagOption = Annotated[int, typer.Option(help="Most steps whose reward may be under way.", min=0)]


def run_job(
    job: LearningJob, name: str, *, to: Publisher | None = None, export: Callable[[Path], object] | None = None
) -> None:
    """Train a job to its end with a bar on the terminal.

    Args:
        export: what writes a checkpoint; that of the best evaluation is kept as `best` in the run's folder. `to`: where
            better ones are published.
    """
    with progress_bars() as bars:
        bar = bars.add_task(name, total=job.config.steps, note="")
        consider = None if export is None else considering(to, export, say=bars.console.print)

        def evaluated(figures: Mapping[str, float]) -> None:
            if export is not None:
                keep_best(job, export, figures)
            if consider is not None:
                consider(figures)

        job.train(lambda step, note: bars.update(bar, completed=step, note=note), evaluated=evaluated)


def lanes_of(task: str, given: int) -> int:
    """Return the episodes that an evaluation plays side by side.

    Args:
        given: as the command line has it; 0 leaves it to the task. A simulated robot takes some 170 MB.
    """
    return given or (_ROBOTS_LANES if task.partition(":")[0] == "robot" else _LANES)


def keep_best(job: LearningJob, export: Callable[[Path], object], figures: Mapping[str, float]) -> None:
    """Write the checkpoint of an evaluation that beats all before it; a kill leaves the old one or the new one.

    All evaluations play the same scenes, so the best of many is better on them than on others.

    Args:
        figures: of the evaluation, which is the last that the run has logged.
    """
    if figures["success"] <= max((row["success"] for row in job.run.metrics()[:-1]), default=-1.0):
        return
    folder = job.config.out / "best"
    fresh = folder.with_name("best.new")
    shutil.rmtree(fresh, ignore_errors=True)
    export(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def reward_config(
    *,
    reward: str,
    server: str,
    form: Form,
    every: int,
    lag: int,
    weight: float,
    gamma: float,
    cost: float = 0.0,
) -> RewardConfig:
    """Return who pays what.

    "success" pays only where the model sees success, and ends the episode there.

    Args:
        weight: factor of what the model pays. `gamma`: the learner's discount, for "potential". `cost`: of a step.

    Raises:
        ValueError: `reward` is none of env, served:NAME, served:ADDRESS.
    """
    from clients.reward_shaping import RewardShape

    if form == "success":
        shape = RewardShape(form="progress", model_weight=0.0, success_bonus=weight, step_cost=cost, terminate=True)
    else:
        shape = RewardShape(form=form, model_weight=weight, gamma=gamma, step_cost=cost)
    return RewardConfig(source=reward, server=server, shape=shape, every=every, lag=lag)
