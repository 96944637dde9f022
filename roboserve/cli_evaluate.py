"""`roboserve evaluate` and `roboserve convert`. Each verb imports its own file when it runs."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads annotations
from typing import Annotated, Literal

import typer

from roboserve import cli_options as options  # noqa: TC001  typer reads annotations

evaluate_app = typer.Typer(help="How good a model is, beside a baseline: tables, plots and JSON.", no_args_is_help=True)
convert_app = typer.Typer(help="Published weights, made ready to be served and finetuned.", no_args_is_help=True)


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
    frame_policy: options.FramePolicyOption = None,
    every: Annotated[int, typer.Option(help="A value for every n-th frame only.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Most episodes of each task, for a quick look.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the pairs and of the intervals.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Output folder, where a killed run goes on; runs/evaluate-TIME when left out.")
    ] = None,
    api_key_file: options.KeyFileOption = None,
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
    protocol: options.ProtocolOption = None,
    order_swap: Annotated[
        bool, typer.Option("--order-swap/--one-order", help="Ask in both orders, which tells the order bias.")
    ] = True,
    votes: options.VotesOption = 1,
    tie_threshold: options.ThresholdOption = 0.0,
    audit: Annotated[bool, typer.Option("--audit", help="Keep the model's raw answers in the JSON.")] = False,
    adapter: options.AdapterOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the pairs.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Output folder; runs/evaluate-preference-TIME when left out.")
    ] = None,
    api_key_file: options.KeyFileOption = None,
) -> None:
    """Judge preference labels where the truth is known: accuracy by gap, ties, order bias, calibration."""
    from finetune.preference.judges import AskOptions
    from roboserve import evaluate_preference as verb

    asked = AskOptions(protocol=protocol, order_swap=order_swap, votes=votes, tie_threshold=tie_threshold, audit=audit)
    command = verb.PreferenceCommand(
        model=model,
        data=tuple(data or ()),
        pairs=pairs,
        count=count,
        split=split,
        camera=camera,
        adapter=adapter,
        options=asked,
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
