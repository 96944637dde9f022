"""`roboserve evaluate preference`: how good a labeller is, against pairs whose truth is known."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from clients.errors import RoboserveError
from finetune.bars import counting, progress_bars
from finetune.preference.evaluate import evaluate, write
from finetune.preference.material import drawn_pairs, listed_pairs
from finetune.rewards.material import load_material
from models.preference.metrics import THIRDS
from roboserve.credentials import api_key
from roboserve.labellers import open_labeller
from roboserve.model_choice import PREFERENCE, chosen_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune.preference.evaluate import PreferenceEvaluation
    from finetune.preference.judges import AskOptions
    from finetune.preference.material import TruePair
    from models.preference.metrics import Calibration


@dataclass(frozen=True, kw_only=True)
class PreferenceCommand:
    """An evaluation of a labeller as the command line gives it."""

    model: str
    data: tuple[Path, ...]
    pairs: Path | None
    count: int
    split: str
    camera: str | None
    adapter: str | None
    options: AskOptions
    seed: int
    out: Path | None


def run(command: PreferenceCommand, key_file: Path | None) -> int:
    """Evaluate, print the table and write the files; return the exit code."""
    console = Console()
    try:
        if bool(command.data) == (command.pairs is not None):
            raise RoboserveError("invalid_request", "say either --data or --pairs")
        judge = open_labeller(
            chosen_model(command.model, None, PREFERENCE), api_key=api_key(key_file), adapter=command.adapter
        )
        with closing(judge), progress_bars() as bars:
            found = evaluate(
                judge,
                _pairs(command, counting(bars, "rollouts read", "")),
                command.options,
                report=counting(bars, "pairs asked", ""),
            )
        out = command.out or Path("runs") / time.strftime("evaluate-preference-%Y%m%d-%H%M%S")
        files = write(found, out)
    except (RoboserveError, ImportError, OSError, ValueError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        return 1
    print_evaluation(console, found)
    console.print(f"{out}: {', '.join(file.name for file in files)}", highlight=False, soft_wrap=True)
    return 0


def print_evaluation(console: Console, found: PreferenceEvaluation) -> None:
    """Print who was asked, and what the labels are worth by the gap between both sides."""
    model, whole = found.model, found.whole
    console.print(f"{model.id} {model.revision} ({model.content_hash[:12]}), prompt {model.prompt_version}")
    columns = [Column(heading, justify="right") for heading in ("gap", "pairs", "right", "right, forced", "ties")]
    table = Table(Column("pairs by true gap", no_wrap=True), *columns)
    for name, third in zip(THIRDS, whole.thirds, strict=True):
        figures = (_percent(third.accuracy), _percent(third.forced), _percent(third.tie_rate))
        table.add_row(f"{name} third", f"{third.low:.2g} to {third.high:.2g}", str(third.pairs), *figures)
    table.add_section()
    table.add_row("all", "", str(whole.pairs), *_figures(whole))
    for name, group in found.groups.items():
        table.add_row(name, "", str(group.pairs), *_figures(group))
    console.print(table)
    console.print(
        f"order bias {_number(whole.order_bias)} (1: the first shown always wins), orders differ by "
        f"{_number(whole.order_gap)}, calibration error {_number(whole.ece)}, {found.abstained} abstentions, "
        f"{found.unparsed} answers that were no label"
        + ("" if found.least_mass is None else f", least probability of any label {found.least_mass:.3f}"),
        highlight=False,
    )


def _pairs(command: PreferenceCommand, report: Callable[[int, int], None]) -> list[TruePair]:
    if command.pairs is not None:
        return listed_pairs(command.pairs)
    material = load_material(command.data, split=command.split, camera=command.camera)
    return drawn_pairs(material, count=command.count, seed=command.seed, report=report)


def _figures(found: Calibration) -> tuple[str, str, str]:
    return _percent(found.accuracy), _percent(found.forced), _percent(found.tie_rate)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def _number(value: float) -> str:
    return "not asked" if math.isnan(value) else f"{value:.3f}"
