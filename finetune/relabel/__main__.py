"""`python -m finetune.relabel DATASET`: what `roboserve relabel` does, and models of one's own by `MODULE:CLASS`."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003  typer reads it
from typing import Annotated

import typer
from rich.console import Console

from clients.errors import RoboserveError
from finetune.relabel.config import RelabelConfig, default_cache, parse_codec
from finetune.relabel.terminal import run


def main(
    dataset: Annotated[Path, typer.Argument(help="LeRobot v3 dataset, or a folder of mp4 files.")],
    *,
    model: Annotated[str | None, typer.Option(help="Served name, else zoo:NAME, folder or MODULE:CLASS.")] = None,
    server: Annotated[str | None, typer.Option(help="ws://HOST:PORT or .../reward/NAME.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Camera to judge by; several give their mean.")] = None,
    mode: Annotated[str, typer.Option(help="prefix, single_pass or final.")] = "prefix",
    frame_policy: Annotated[str | None, typer.Option(help="The model's own when left out.")] = None,
    every: Annotated[int, typer.Option(help="Ask for every n-th frame.")] = 1,
    task: Annotated[str | None, typer.Option(help="Instruction of all episodes.")] = None,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Parquet file.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of labels by content.")] = None,
    codec: Annotated[str, typer.Option(help="How frames travel: png, jpeg or raw.")] = "png",
    model_config: Annotated[str, typer.Option(help="JSON: fields of CLASS.Config.")] = "{}",
) -> None:
    """Label every frame of a dataset; killed at any time, the same command goes on."""
    try:
        config = RelabelConfig(
            dataset=dataset,
            server=server,
            model=model,
            model_config=json.loads(model_config),
            out=out,
            cache=cache or default_cache(),
            cameras=tuple(camera or ()),
            mode=mode,
            frame_policy=frame_policy,
            every=every,
            task=task,
            workers=workers,
            codec=parse_codec(codec),
        )
    except RoboserveError as error:
        Console().print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(1) from error
    raise typer.Exit(run(config))


typer.run(main)
