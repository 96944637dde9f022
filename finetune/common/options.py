"""Options of the command line that every job has, and what they come to."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from finetune.common.rewards import RewardConfig

Form = Literal["progress", "delta", "potential", "success"]
RewardOption = Annotated[
    str, typer.Option(help="Who pays: env, or served:NAME or served:ADDRESS of a reward model, which alone pays then.")
]
ServerOption = Annotated[str, typer.Option(help="Where a reward model that is given by its name answers.")]
FormOption = Annotated[Form, typer.Option(help="What a served model's word is paid as.")]
EveryOption = Annotated[int, typer.Option(help="Show the reward model every n-th step.", min=1)]
LagOption = Annotated[int, typer.Option(help="Most steps whose reward may be under way.", min=0)]


def reward_config(
    *, reward: str, server: str, form: Form, every: int, lag: int, weight: float, gamma: float
) -> RewardConfig:
    """Return who pays what.

    "success" pays only where the model sees success, and ends the episode there.

    Args:
        weight: factor of what the model pays. `gamma`: the learner's discount, for "potential".

    Raises:
        ValueError: `reward` is none of env, served:NAME, served:ADDRESS.
    """
    from clients.reward_shaping import RewardShape

    if form == "success":
        shape = RewardShape(form="progress", model_weight=0.0, success_bonus=weight, terminate=True)
    else:
        shape = RewardShape(form=form, model_weight=weight, gamma=gamma)
    return RewardConfig(source=reward, server=server, shape=shape, every=every, lag=lag)
