"""Verbs that make policies better: train here or on a cluster, and say which revision robots get."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from roboserve.cli_options import JsonOption, KeyFileOption  # noqa: TC001  typer reads annotations

app = typer.Typer()
policies_app = typer.Typer(help="Revisions of the served policies.", invoke_without_command=True)
jobs_app = typer.Typer(help="Jobs that `submit` gave to a cluster.", invoke_without_command=True)

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
MethodArgument = Annotated[
    str, typer.Argument(help="bc, csp, tmrl, ogpo or baselines, or a module as finetune.study with its command.")
]
PublishOption = Annotated[
    str | None, typer.Option(help="policy/NAME: each new best checkpoint becomes a revision of that served policy.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="Platform configuration; the running platform's when left out.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="http://HOST:8265 of Ray's dashboard; RAY_API_SERVER_ADDRESS when left out.")
]
NameArgument = Annotated[str, typer.Argument(help="The NAME of /policy/NAME.")]
JobArgument = Annotated[str, typer.Argument(help="The id that `submit` printed.")]


@app.command(context_settings=_PASSED_ON)
def train(
    context: typer.Context, method: MethodArgument, publish: PublishOption = None, config: ConfigOption = None
) -> None:
    """Run a finetuning job here; all other arguments are the method's own (python -m finetune.METHOD --help)."""
    from roboserve import train as verb

    raise typer.Exit(verb.run(method, context.args, publish=publish, config=config))


@app.command(context_settings=_PASSED_ON)
def submit(
    context: typer.Context,
    method: MethodArgument,
    *,
    publish: PublishOption = None,
    config: ConfigOption = None,
    address: AddressOption = None,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs that it asks Ray for, and threads of its libraries.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that it asks Ray for.")] = 0.0,
    ship: Annotated[
        bool, typer.Option("--ship", help="Send this checkout's code along instead of using the cluster's.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Print its log, and end with its status.")] = False,
) -> None:
    """Give a finetuning job to a Ray cluster; submitted again, it goes on from its run folder."""
    from roboserve import submit as verb

    request = verb.Submission(
        method=method,
        arguments=tuple(context.args),
        publish=publish,
        config=config,
        cpus=cpus,
        gpus=gpus,
        ship=ship,
    )
    raise typer.Exit(verb.run(request, address, follow=follow))


@jobs_app.callback()
def jobs(context: typer.Context, address: AddressOption = None) -> None:
    """List the jobs."""
    from roboserve import submit as verb

    context.obj = address
    if context.invoked_subcommand is None:
        raise typer.Exit(verb.list_jobs(address))


@jobs_app.command("logs")
def jobs_logs(context: typer.Context, job: JobArgument) -> None:
    """Print a job's log as it comes, and end with its status."""
    from roboserve import submit as verb

    raise typer.Exit(verb.follow_job(context.obj, job))


@jobs_app.command("stop")
def jobs_stop(context: typer.Context, job: JobArgument) -> None:
    """Stop a job; it goes on where it stopped when it is resumed."""
    from roboserve import submit as verb

    raise typer.Exit(verb.stop(context.obj, job))


@jobs_app.command("resume")
def jobs_resume(
    context: typer.Context,
    job: JobArgument,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Print its log, and end with its status.")] = False,
) -> None:
    """Submit a job that ended once more, with the same run folder: it goes on where it was lost."""
    from roboserve import submit as verb

    raise typer.Exit(verb.resume(context.obj, job, follow=follow))


@policies_app.callback()
def policies(
    context: typer.Context,
    config: ConfigOption = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="http://HOST:PORT; when left out, what `up` started, or one here at the configuration's port."
        ),
    ] = None,
    api_key_file: KeyFileOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List revisions: which is current, who gets the newest, sessions on each, success, parent."""
    from roboserve import policies as verb

    context.obj = config
    if context.invoked_subcommand is None:
        raise typer.Exit(verb.show(config, server, api_key_file, as_json=as_json))


@policies_app.command("rollback")
def policies_rollback(
    context: typer.Context,
    name: NameArgument,
    revision: Annotated[str | None, typer.Argument(help="The current one's parent when left out.")] = None,
) -> None:
    """Go back to an earlier revision, or to `base`, the configured checkpoint; sessions get it at their next reset."""
    from roboserve import policies as verb

    raise typer.Exit(verb.roll_back(name, revision, context.obj))


@policies_app.command("pin")
def policies_pin(
    context: typer.Context,
    name: NameArgument,
    revision: Annotated[str, typer.Argument(help="A revision, `base`, or `newest` for whichever is.")],
    canary: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of new sessions that get the newest all the same.")
    ] = None,
) -> None:
    """Keep sessions on one revision, whatever is published."""
    from roboserve import policies as verb

    chosen = None if revision == "newest" else revision
    raise typer.Exit(verb.pin(name, chosen, canary, context.obj))


@policies_app.command("publish")
def policies_publish(
    context: typer.Context,
    name: NameArgument,
    checkpoint: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A checkpoint folder.")],
    success: Annotated[str | None, typer.Option(help="SOLVED/EPISODES of its evaluation, as 41/50.")] = None,
) -> None:
    """Add a checkpoint folder as a revision, whatever its success."""
    from roboserve import policies as verb

    outcome = None
    if success is not None:
        written = re.fullmatch(r"(\d+)/([1-9]\d*)", success)
        if written is None or int(written[1]) > int(written[2]):
            raise typer.BadParameter(f"success: {success!r} is not SOLVED/EPISODES")
        outcome = (int(written[1]), int(written[2]))
    raise typer.Exit(verb.publish(name, checkpoint, outcome, context.obj))
