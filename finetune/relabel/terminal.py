"""A relabelling job on a terminal: a progress bar, what failed, what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from clients.errors import RoboserveError
from finetune.relabel.job import Watch, report_path
from finetune.relabel.job import run as run_job
from finetune.relabel.labeller import StopJobError

if TYPE_CHECKING:
    from finetune.relabel.config import RelabelConfig
    from finetune.relabel.job import RelabelReport
    from finetune.relabel.worker import Outcome


def run(config: RelabelConfig, console: Console | None = None) -> int:
    """Run a job and return the exit code: 0, 1 where something failed, 130 after Ctrl-C."""
    console = console or Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            bar = progress.add_task("episodes", total=None)

            def finished(outcome: Outcome) -> None:
                progress.advance(bar)
                if outcome.status == "failed":
                    console.print(f"[red]episode {outcome.episode}: {escape(outcome.error)}[/red]", highlight=False)

            watch = Watch(
                begin=lambda episodes: progress.update(bar, total=episodes),
                finished=finished,
                warn=lambda text: console.print(f"[bold yellow]WARNING: {escape(text)}[/bold yellow]", highlight=False),
            )
            report = run_job(config, watch)
    except (RoboserveError, StopJobError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where it was")
        return 130
    _print(console, report)
    return 1 if report.failed else 0


def _print(console: Console, report: RelabelReport) -> None:
    model = report.model
    console.print(f"{model.id} revision {model.revision} ({model.content_hash[:12]}), {model.dtype}", highlight=False)
    parts = (
        f"{report.labelled} labelled",
        f"{report.cached} from the cache",
        f"{report.kept} kept of an interrupted run",
        f"{len(report.failed)} failed",
    )
    console.print(f"{report.episodes} episodes: {', '.join(parts)}; {report.asked} values asked for", highlight=False)
    if report.out is None:
        console.print("[red]no episode could be labelled; nothing was written[/red]")
        return
    console.print(f"{report.rows} rows: {report.out}", highlight=False, soft_wrap=True)
    console.print(f"report: {report_path(report.out)}", highlight=False, soft_wrap=True)
