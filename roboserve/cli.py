"""The `roboserve` command. Each verb imports its own file when it runs, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="roboserve",
    help="Foundation models for robots, served and finetuned.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = typer.Typer(help="API keys: made once, stored as a hash.", no_args_is_help=True)
k8s_app = typer.Typer(help="Kubernetes manifests, made from the same configuration.", no_args_is_help=True)
evaluate_app = typer.Typer(help="How good a model is, beside a baseline: tables, plots and JSON.", no_args_is_help=True)
convert_app = typer.Typer(help="Published weights, made ready to be served and finetuned.", no_args_is_help=True)
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
KeyFileOption = Annotated[
    Path | None, typer.Option(help="File that holds an API key; ROBOSERVE_API_KEY is used when left out.")
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


@app.command()
def relabel(
    dataset: Annotated[Path, typer.Argument(help="LeRobot v3 dataset, or a folder of mp4 files.")],
    *,
    server: Annotated[
        str | None,
        typer.Option(help="ws://HOST:PORT, or .../reward/NAME; the platform that `up` started when left out."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="zoo:NAME or a checkpoint's folder to run it in the workers; else a served model's name."),
    ] = None,
    camera: Annotated[
        list[str] | None, typer.Option(help="Camera to judge by; several give their mean; needed unless there is one.")
    ] = None,
    mode: Annotated[Literal["prefix", "single_pass", "final"], typer.Option(help="Progress mode.")] = "prefix",
    frame_policy: Annotated[
        str | None, typer.Option(help="Frames shown, as linspace-8; the model's own when left out.")
    ] = None,
    every: Annotated[int, typer.Option(help="Ask for every n-th frame only; the rest is interpolated.")] = 1,
    task: Annotated[str | None, typer.Option(help="Instruction for all episodes instead of their own.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that decode, send and wait at once.")] = 2,
    out: Annotated[Path | None, typer.Option(help="DATASET/MODEL_progress.parquet when left out.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Labels by content; in ~/.cache when left out.")] = None,
    codec: Annotated[Literal["png", "jpeg", "raw"], typer.Option(help="How frames travel.")] = "png",
    api_key_file: KeyFileOption = None,
) -> None:
    """Label every frame of a dataset with a reward model; killed at any time, the same command goes on."""
    from roboserve import relabel as verb

    command = verb.RelabelCommand(
        dataset=dataset,
        server=server,
        model=model,
        cameras=tuple(camera or ()),
        mode=mode,
        frame_policy=frame_policy,
        every=every,
        task=task,
        workers=workers,
        out=out,
        cache=cache,
        codec=codec,
    )
    raise typer.Exit(verb.run(command, api_key_file))


@app.command()
def score(
    video: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An mp4 file.")],
    *,
    task: Annotated[str, typer.Option(help="What is to be done in it, in words.")],
    model: Annotated[
        str | None, typer.Option(help="zoo:NAME or a checkpoint's folder to run it here; else a served model's name.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="ws://HOST:PORT, or .../reward/NAME; the platform that `up` started when left out."),
    ] = None,
    fps: Annotated[float | None, typer.Option(min=0.01, help="Frames a second; all when left out.")] = None,
    mode: Annotated[Literal["prefix", "single_pass", "final"], typer.Option(help="Progress mode.")] = "prefix",
    frame_policy: Annotated[
        str | None, typer.Option(help="Frames shown, as linspace-8; the model's own when left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; runs/score-TIME when left out.")] = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Ask a reward model how far a video gets at a task: values, a plot, and a film with the curve beside it."""
    from roboserve import score as verb

    command = verb.ScoreCommand(
        video=video, task=task, model=model, server=server, fps=fps, mode=mode, frame_policy=frame_policy, out=out
    )
    raise typer.Exit(verb.run(command, api_key_file))


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
    str | None, typer.Option(help="Adapter of a checkpoint run here; `preference` where it has one, when left out.")
]


@app.command()
def prefer(
    first: Annotated[str, typer.Argument(help="A picture (JPEG or PNG), or FILM.mp4#N for a film's frame N.")],
    second: Annotated[str, typer.Argument(help="Another; #-1 is a film's last frame.")],
    *,
    goal: Annotated[str, typer.Option(help="What is to be reached, in words.")],
    model: Annotated[
        str | None,
        typer.Option(help="zoo:NAME or a checkpoint's folder to run it here; else a served labeller's name."),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="ws://HOST:PORT, or .../preference/NAME; the platform that `up` started when left out."),
    ] = None,
    protocol: ProtocolOption = None,
    order_swap: SwapOption = False,
    votes: VotesOption = 1,
    tie_threshold: ThresholdOption = 0.0,
    audit: Annotated[bool, typer.Option("--audit", help="Print the model's raw answers too.")] = False,
    adapter: AdapterOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    api_key_file: KeyFileOption = None,
) -> None:
    """Ask which of two pictures is nearer to a goal."""
    from finetune.preference.judges import AskOptions
    from roboserve import prefer as verb

    options = AskOptions(
        protocol=protocol, order_swap=order_swap, votes=votes, tie_threshold=tie_threshold, audit=audit
    )
    command = verb.PreferCommand(
        first=first,
        second=second,
        goal=goal,
        model=model,
        server=server,
        adapter=adapter,
        options=options,
        as_json=as_json,
    )
    raise typer.Exit(verb.run(command, api_key_file))


@app.command()
def path(
    image: Annotated[str, typer.Argument(help="A picture (JPEG or PNG), or FILM.mp4#N for a film's frame N.")],
    *,
    task: Annotated[str, typer.Option(help="What is to be done in it, in words.")],
    out: Annotated[Path, typer.Option(help="Picture to write, with the path on it.")],
    model: Annotated[
        str | None,
        typer.Option(help="zoo:NAME or a checkpoint's folder to run it here; else a served predictor's name."),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="ws://HOST:PORT, or .../path/NAME; the platform that `up` started when left out."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Adapter of a checkpoint run here; `path` where it has one, when left out.")
    ] = None,
    view: Annotated[
        Literal["none", "center_crop", "pad", "stretch"] | None,
        typer.Option(help="How the model sees the picture; the server's own when left out."),
    ] = None,
    max_points: Annotated[int | None, typer.Option(min=1, help="Most points of the answer.")] = None,
    style: Annotated[Literal["demo", "policy"], typer.Option(help="How the path is drawn.")] = "demo",
    structured: Annotated[
        bool | None, typer.Option("--structured/--free", help="Allow only answers that are paths, or any.")
    ] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Print the model's raw answer too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    api_key_file: KeyFileOption = None,
) -> None:
    """Ask for the path that a gripper is to take through a picture, and draw it."""
    from clients.path import PathAsk
    from roboserve import path as verb

    ask = PathAsk(view=view, structured=structured, max_points=max_points, draw=style, audit=audit)
    command = verb.PathCommand(
        image=image, task=task, out=out, server=server, model=model, adapter=adapter, ask=ask, as_json=as_json
    )
    raise typer.Exit(verb.run(command, api_key_file))


@evaluate_app.callback()
def evaluate() -> None:
    """How good a model is, beside a baseline: tables, plots and JSON."""


@evaluate_app.command("reward")
def evaluate_reward(
    model: Annotated[str, typer.Argument(help="zoo:NAME, a checkpoint's folder, or ws://HOST:PORT/reward/NAME.")],
    *,
    data: Annotated[
        list[Path], typer.Option(help="LeRobot v3 dataset with the quality of its episodes, or a folder of such.")
    ],
    against: Annotated[str | None, typer.Option(help="A second model, shown beside the first.")] = None,
    quantization: Annotated[
        Literal["int8", "nf4"] | None, typer.Option(help="Show a Robometer beside itself quantised, and their drift.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="NAME=TASK,TASK; trained and held-out MetaWorld tasks when left out.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which episodes, where the dataset has splits.")] = "validation",
    camera: Annotated[str | None, typer.Option(help="Camera to judge by; needed unless there is one.")] = None,
    frame_policy: Annotated[
        str | None, typer.Option(help="Frames shown, as linspace-8; the model's own when left out.")
    ] = None,
    every: Annotated[int, typer.Option(help="A value for every n-th frame only.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Most episodes of each task, for a quick look.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the pairs and of the intervals.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Output folder, where a killed run goes on; runs/evaluate-TIME when left out.")
    ] = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Judge rollouts of known quality: progress, ranking, instructions, preference; a clock always stands beside."""
    from roboserve import evaluate as verb

    command = verb.RewardCommand(
        model=model,
        against=against,
        quantization=quantization,
        data=tuple(data),
        groups=tuple(group or ()),
        split=split,
        camera=camera,
        frame_policy=frame_policy,
        every=every,
        limit=limit,
        seed=seed,
        out=out,
    )
    raise typer.Exit(verb.reward(command, api_key_file))


@evaluate_app.command("preference")
def evaluate_preference(
    model: Annotated[
        str, typer.Argument(help="zoo:NAME, a checkpoint's folder, ws://HOST:PORT/preference/NAME, or `oracle`.")
    ],
    *,
    data: Annotated[
        list[Path] | None, typer.Option(help="LeRobot v3 dataset with successful episodes, or a folder of such.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="JSON lines with goal, first, second (picture files), first_value, second_value."),
    ] = None,
    count: Annotated[int, typer.Option(min=3, help="Pairs drawn from --data.")] = 300,
    split: Annotated[str, typer.Option(help="Which episodes, where the dataset has splits.")] = "validation",
    camera: Annotated[str | None, typer.Option(help="Camera to judge by; needed unless there is one.")] = None,
    protocol: ProtocolOption = None,
    order_swap: Annotated[
        bool, typer.Option("--order-swap/--one-order", help="Ask in both orders, which tells the order bias.")
    ] = True,
    votes: VotesOption = 1,
    tie_threshold: ThresholdOption = 0.0,
    audit: Annotated[bool, typer.Option("--audit", help="Keep the model's raw answers in the JSON.")] = False,
    adapter: AdapterOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the pairs.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Output folder; runs/evaluate-preference-TIME when left out.")
    ] = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Judge preference labels where the truth is known: accuracy by gap, ties, order bias, calibration."""
    from finetune.preference.judges import AskOptions
    from roboserve import evaluate_preference as verb

    options = AskOptions(
        protocol=protocol, order_swap=order_swap, votes=votes, tie_threshold=tie_threshold, audit=audit
    )
    command = verb.PreferenceCommand(
        model=model,
        data=tuple(data or ()),
        pairs=pairs,
        count=count,
        split=split,
        camera=camera,
        adapter=adapter,
        options=options,
        seed=seed,
        out=out,
    )
    raise typer.Exit(verb.run(command, api_key_file))


@convert_app.callback()
def convert() -> None:
    """Published weights, made ready to be served and finetuned."""


@convert_app.command("robometer")
def convert_robometer(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder as robometer/Robometer-4B.")],
    *,
    python: Annotated[
        Path, typer.Option(help="Interpreter of an environment that has the package `robometer`, or LeRobot.")
    ],
    package: Annotated[
        Literal["any", "robometer", "lerobot"], typer.Option(help="Which package renders the prompts.")
    ] = "any",
    out: Annotated[Path | None, typer.Option(help="Folder to make; FOLDER itself when left out.")] = None,
    model_id: Annotated[str | None, typer.Option(help="Name of the model; the folder's when left out.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit of the weights; the Hub download's when left out.")
    ] = None,
) -> None:
    """Check published Robometer weights and write their prompt, read off the upstream package, into robometer.json."""
    from finetune.robometer.conversion.convert import ConvertConfig
    from finetune.robometer.conversion.upstream import PACKAGES
    from roboserve import convert as verb

    packages = PACKAGES if package == "any" else (package,)
    config = ConvertConfig(folder=folder, python=python, packages=packages, out=out, id=model_id, revision=revision)
    raise typer.Exit(verb.robometer(config))


@convert_app.command("hamster")
def convert_hamster(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the published weights.")],
    *,
    demo: Annotated[
        Path, typer.Option(exists=True, help="A checkout of HAMSTER_beta, or its gradio_server_example.py.")
    ],
) -> None:
    """Write the prompt of published HAMSTER weights, read off your own copy of the upstream demo, which is not run."""
    from roboserve import convert as verb

    raise typer.Exit(verb.hamster(folder, demo))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[
        Literal["overhead", "fleet", "client_cost", "control_loop", "relabel", "relabel_kill", "rewards", "vlm"],
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


def main() -> None:
    """Run the command line."""
    app()
