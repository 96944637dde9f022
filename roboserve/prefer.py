"""`roboserve prefer`: which of two pictures is nearer to a goal."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clients.errors import RoboserveError
from clients.preference_messages import LabelPair
from roboserve.credentials import api_key
from roboserve.labellers import open_labeller
from roboserve.model_choice import PREFERENCE, chosen_model
from roboserve.pictures import read_picture

if TYPE_CHECKING:
    from clients.preference_messages import PreferenceLabel
    from clients.reward_messages import ModelIdentity
    from finetune.preference.judges import AskOptions


@dataclass(frozen=True, kw_only=True)
class PreferCommand:
    """Two pictures as the command line gives them."""

    first: str
    second: str
    goal: str
    model: str | None
    server: str | None
    adapter: str | None
    options: AskOptions
    as_json: bool


def run(command: PreferCommand, key_file: Path | None) -> int:
    """Ask and print the label; return the exit code."""
    console = Console()
    try:
        if not command.goal.strip():
            raise RoboserveError("invalid_request", "goal: empty")
        pair = LabelPair(command.goal, read_picture(command.first), read_picture(command.second))
        name = chosen_model(command.model, command.server, PREFERENCE)
        with console.status("asking the model"):
            judge = open_labeller(name, api_key=api_key(key_file), adapter=command.adapter)
            with closing(judge):
                [label] = judge.label([pair], command.options)
                model = judge.model
    except (RoboserveError, ImportError, OSError, ValueError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        return 1
    if command.as_json:
        print(json.dumps({"model": asdict(model), **asdict(label)}, indent=2))
    else:
        _print(console, command, model, label)
    return 0


def _print(console: Console, command: PreferCommand, model: ModelIdentity, label: PreferenceLabel) -> None:
    names = {0: Path(command.first).name, 1: Path(command.second).name, -1: "neither"}
    verdict = "the model told nothing" if label.abstained else names[label.label]
    console.print(f"nearer to {command.goal!r}: [bold]{escape(verdict)}[/bold] (label {label.label})", highlight=False)
    table = Table("", Path(command.first).name, Path(command.second).name, "tie")
    rows = {"probability": label.chances, "as given": label.given, "swapped": label.swapped}
    for name, chances in rows.items():
        if chances is not None and (name == "probability" or label.swapped is not None):
            table.add_row(name, *(f"{share:.3f}" for share in chances))
    console.print(table)
    if label.order_gap is not None:
        console.print(f"the two orders differ by {label.order_gap:.3f}", highlight=False)
    if label.source == "alike":
        console.print("the pictures are the same, so nobody was asked", highlight=False)
    if label.unparsed:
        console.print(f"{label.unparsed} answers were no label and count as ties", highlight=False)
    for reply in label.replies:
        order = ", swapped" if reply.swapped else ""
        console.print(f"[dim]{reply.stage}, vote {reply.vote}{order}:[/dim] {escape(reply.text)}", highlight=False)
    console.print(
        f"{model.id} {model.revision} ({model.content_hash[:12]}), prompt {model.prompt_version}", style="dim"
    )
