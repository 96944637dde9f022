"""`roboserve relabel`: a reward model's values for every frame of a dataset, in one parquet file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from clients.errors import RoboserveError
from finetune.relabel.config import RelabelConfig, default_cache, parse_codec
from finetune.relabel.terminal import run as run_job
from roboserve.credentials import api_key
from roboserve.model_choice import REWARD, chosen_model

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RelabelCommand:
    """One job as the command line gives it."""

    dataset: Path
    server: str | None
    model: str | None
    cameras: tuple[str, ...]
    mode: str
    frame_policy: str | None
    every: int
    task: str | None
    workers: int
    out: Path | None
    cache: Path | None
    codec: str


def run(command: RelabelCommand, key_file: Path | None) -> int:
    """Run the job; return the exit code."""
    console = Console()
    try:
        chosen = chosen_model(command.model, command.server, REWARD)
        served = chosen.startswith(("ws://", "wss://"))
        config = RelabelConfig(
            dataset=command.dataset,
            server=chosen if served else None,
            model=None if served else chosen,
            api_key=api_key(key_file),
            cameras=command.cameras,
            mode=command.mode,
            frame_policy=command.frame_policy,
            every=command.every,
            task=command.task,
            workers=command.workers,
            out=command.out,
            cache=command.cache or default_cache(),
            codec=parse_codec(command.codec),
        )
    except (RoboserveError, OSError, ValueError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        return 1
    return run_job(config, console)
