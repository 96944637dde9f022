"""The `roboserve` command. Each verb imports its own file when it runs, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from roboserve.cli_evaluate import convert_app, evaluate_app
from roboserve.cli_models import app as models_app
from roboserve.cli_options import KeyFileOption  # noqa: TC001  typer reads annotations
from roboserve.cli_training import (
    MethodArgument,
    PublishOption,
    jobs_app,
    policies_app,
)
from roboserve.cli_training import app as training_app

app = typer.Typer(
    name="roboserve",
    help="Foundation models for robots, served and finetuned.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = typer.Typer(help="API keys: made once, stored as a hash.", no_args_is_help=True)
k8s_app = typer.Typer(help="Kubernetes manifests, made from the same configuration.", no_args_is_help=True)
app.add_typer(models_app)
app.add_typer(training_app)
app.add_typer(policies_app, name="policies")
app.add_typer(jobs_app, name="jobs")
app.add_typer(convert_app, name="convert")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(keys_app, name="keys")
app.add_typer(k8s_app, name="k8s")

EMBEDDED = Path(__file__).parent.parent / "serving" / "configs" / "embedded.yaml"
CLUSTER = EMBEDDED.with_name("cluster.yaml")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="Platform configuration (a Ray Serve YAML).")]
ServerOption = Annotated[
    str | None, typer.Option(help="ws://HOST:PORT, or .../policy/NAME; the platform that `up` started when left out.")
]


@app.command()
def up(
    config: ConfigOption = EMBEDDED,
    port: Annotated[int | None, typer.Option(help="Bind this port instead of the configuration's.")] = None,
    *,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay in this terminal until Ctrl-C.")] = False,
) -> None:
    """Start the platform on this machine and wait until every model answers."""
    from roboserve import up as verb

    raise typer.Exit(verb.run_foreground(config, port) if foreground else verb.run_background(config, port))


@app.command()
def down() -> None:
    """Stop the platform that `up` started."""
    from roboserve import down as verb

    raise typer.Exit(verb.run())


@app.command()
def status(
    server: Annotated[
        str | None, typer.Option(help="http://HOST:PORT; the platform that `up` started when left out.")
    ] = None,
    api_key_file: KeyFileOption = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the served models: revision, sessions, queue, batches, latency, errors."""
    from roboserve import status as verb

    raise typer.Exit(verb.run(server, api_key_file, as_json=as_json))


@app.command()
def preflight(config: ConfigOption = EMBEDDED) -> None:
    """Check versions, configuration, keys, port and limits before a start; each failure comes with its mend."""
    from roboserve import preflight as verb

    raise typer.Exit(verb.run(config))


@app.command()
def act(
    instruction: Annotated[str, typer.Argument(help="What to do, in words.")],
    server: ServerOption = None,
    image: Annotated[list[str] | None, typer.Option(help="CAMERA=FILE (JPEG or PNG); black when left out.")] = None,
    state: Annotated[str | None, typer.Option(help="Comma-separated numbers; zeros when left out.")] = None,
    seed: Annotated[int, typer.Option(help="Noise seed: the same request gives the same chunk.")] = 0,
    api_key_file: KeyFileOption = None,
) -> None:
    """Ask a served policy for one action chunk and print it, with where the time went."""
    from roboserve import act as verb

    request = verb.ActCommand(instruction=instruction, server=server, images=tuple(image or ()), state=state, seed=seed)
    raise typer.Exit(verb.run(request, api_key_file))


@app.command()
def demo(
    config: ConfigOption = EMBEDDED,
    episodes: Annotated[int, typer.Option(help="Episodes of each task.")] = 3,
    tasks: Annotated[str | None, typer.Option(help="Comma-separated task names; all when left out.")] = None,
    robots: Annotated[int, typer.Option(help="Simulated robots that run at once.")] = 2,
    server: Annotated[str | None, typer.Option(help="Use a running platform at ws://HOST:PORT.")] = None,
    out: Annotated[Path | None, typer.Option(help="Report folder; runs/demo-TIME when left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first scene.")] = 10_000,
    *,
    reward: Annotated[str, typer.Option(help="Served reward model that watches, or none.")] = "robometer",
    path: Annotated[str, typer.Option(help="Served path predictor that sees first frames, or none.")] = "metaworld",
) -> None:
    """Start the platform, let simulated robots do their tasks through it, and write a report with videos."""
    from roboserve.demo import DemoSettings, run_demo
    from robot_client.robots.metaworld_tasks import TASKS

    chosen = tuple(tasks.split(",")) if tasks else tuple(TASKS)
    settings = DemoSettings(
        config=config,
        server=server,
        tasks=chosen,
        episodes=episodes,
        robots=robots,
        reward=None if reward == "none" else reward,
        path=None if path == "none" else path,
        seed=seed,
        out=out,
    )
    raise typer.Exit(run_demo(settings))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[
        Literal[
            "overhead",
            "adapters",
            "fleet",
            "client_cost",
            "control_loop",
            "ogpo",
            "relabel",
            "relabel_kill",
            "rewards",
            "tmrl",
            "vlm",
        ],
        typer.Argument(help="Which benchmark."),
    ],
) -> None:
    """Run a benchmark; every figure comes with its ratio to a baseline of the same run."""
    import importlib

    raise typer.Exit(importlib.import_module(f"benchmarks.{name}").main(context.args))


@keys_app.command("new")
def keys_new(
    key_id: Annotated[str, typer.Argument(help="Whose key it is, for logs.")],
    role: Annotated[Literal["robot", "job", "admin"], typer.Option(help="What it may do.")],
    file: Annotated[Path, typer.Option(help="Key file to add it to; made when absent.")] = Path("keys.yaml"),
    policy: Annotated[str | None, typer.Option(help="The one policy of a robot key.")] = None,
    days: Annotated[int | None, typer.Option(help="Days until it expires.")] = None,
) -> None:
    """Make a key: the secret is printed once, its hash goes to the key file."""
    from roboserve import keys as verb

    raise typer.Exit(verb.new(key_id, role, file, policy=policy, days=days))


@k8s_app.command("render")
def k8s_render(
    config: ConfigOption = CLUSTER,
    settings: Annotated[Path | None, typer.Option(help="Settings of your cluster; k8s/settings.py lists them.")] = None,
) -> None:
    """Print the manifests for a cluster: RayService, NetworkPolicy, PodDisruptionBudget and the rest."""
    from roboserve import k8s as verb

    raise typer.Exit(verb.render(config, settings))


@k8s_app.command("job", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def k8s_job(
    context: typer.Context,
    method: MethodArgument,
    *,
    name: Annotated[str, typer.Option(help="Of the job in the cluster.")],
    publish: PublishOption = None,
    config: ConfigOption = CLUSTER,
    cluster: Annotated[Path | None, typer.Option(help="Settings of your cluster; k8s/settings.py lists them.")] = None,
    runs_claim: Annotated[str | None, typer.Option(help="Volume claim of run folders; else the settings'.")] = None,
    cpus: Annotated[int, typer.Option(min=1, help="Of the pod, and threads of its libraries.")] = 4,
    memory: Annotated[str, typer.Option(help="As Kubernetes writes it.")] = "16Gi",
    gpus: Annotated[int, typer.Option(min=0)] = 0,
    api_key_secret: Annotated[str | None, typer.Option(help="Secret whose `key` asks served models.")] = None,
) -> None:
    """Print the RayJob of a finetuning command; all other arguments are the method's own."""
    from roboserve import k8s as verb

    raise typer.Exit(
        verb.job(
            method,
            context.args,
            publish=publish,
            config=config,
            settings=cluster,
            name=name,
            runs_claim=runs_claim,
            cpu=str(cpus),
            memory=memory,
            gpus=gpus,
            threads=cpus,
            api_key_secret=api_key_secret,
        )
    )


def main() -> None:
    """Run the command line."""
    app()
