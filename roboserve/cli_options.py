"""Options that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

KeyFileOption = Annotated[
    Path | None, typer.Option(help="File that holds an API key; ROBOSERVE_API_KEY is used when left out.")
]
ModelOption = Annotated[
    str | None, typer.Option(help="zoo:NAME or a checkpoint's folder to run it here; else a served model's name.")
]
RewardServerOption = Annotated[
    str | None, typer.Option(help="ws://HOST:PORT, or .../reward/NAME; the platform that `up` started when left out.")
]
ModeOption = Annotated[Literal["prefix", "single_pass", "final"], typer.Option(help="Progress mode.")]
FramePolicyOption = Annotated[
    str | None, typer.Option(help="Frames shown, as linspace-8; the model's own when left out.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ProtocolOption = Annotated[
    Literal["one_token", "two_stage", "direct"] | None,
    typer.Option(help="How the model is asked; its own first protocol when left out."),
]
SwapOption = Annotated[bool, typer.Option("--order-swap", help="Ask in both orders and take the mean.")]
VotesOption = Annotated[int, typer.Option(min=1, max=64, help="Times each is asked; with two_stage only.")]
ThresholdOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Least difference of both probabilities that is no tie.")
]
AdapterOption = Annotated[
    str | None, typer.Option(help="Adapter of a checkpoint run here; the job's own where it has one, when left out.")
]
