"""`python -m finetune.study run FILE`: methods x tasks x seeds, and what they found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.bars import progress_bars

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
FileArgument = Annotated[Path, typer.Argument(help="The study, YAML.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder of table and plot; the study's own folder by default.")]


@app.command()
def run(
    file: FileArgument,
    *,
    jobs: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 1,
    out: OutOption = None,
) -> None:
    """Run what is not done, then write table and plot; stop it and run it again as you like."""
    import signal

    from finetune.study.config import read_study
    from finetune.study.results import write
    from finetune.study.run import run_study

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a study stops its runs
    study = read_study(file)
    with progress_bars() as bars:
        bar = bars.add_task(study.title, total=len(study.cells()), note="")
        run_study(study, jobs=jobs, report=lambda done, _, note: bars.update(bar, completed=done, note=note))
    typer.echo(write(study, out or file.parent))


@app.command()
def results(file: FileArgument, *, out: OutOption = None) -> None:
    """Write table and plot of the runs that are done."""
    from finetune.study.config import read_study
    from finetune.study.results import write

    typer.echo(write(read_study(file), out or file.parent))


if __name__ == "__main__":
    app()
