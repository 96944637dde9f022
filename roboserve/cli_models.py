"""Verbs that ask a model: label, score, compare, draw. Each imports its own file when it runs."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads annotations
from typing import Annotated, Literal

import typer

from roboserve import cli_options as options  # noqa: TC001  typer reads annotations

app = typer.Typer()


@app.command()
def relabel(
    dataset: Annotated[Path, typer.Argument(help="LeRobot v3 dataset, or a folder of mp4 files.")],
    *,
    server: options.RewardServerOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="zoo:NAME or a checkpoint's folder to run it in the workers; else a served model's name."),
    ] = None,
    camera: Annotated[
        list[str] | None, typer.Option(help="Camera to judge by; several give their mean; needed unless there is one.")
    ] = None,
    mode: options.ModeOption = "prefix",
    frame_policy: options.FramePolicyOption = None,
    every: Annotated[int, typer.Option(help="Ask for every n-th frame only; the rest is interpolated.")] = 1,
    task: Annotated[str | None, typer.Option(help="Instruction for all episodes instead of their own.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that decode, send and wait at once.")] = 2,
    out: Annotated[Path | None, typer.Option(help="DATASET/MODEL_progress.parquet when left out.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Labels by content; in ~/.cache when left out.")] = None,
    codec: Annotated[Literal["png", "jpeg", "raw"], typer.Option(help="How frames travel.")] = "png",
    api_key_file: options.KeyFileOption = None,
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
    model: options.ModelOption = None,
    server: options.RewardServerOption = None,
    fps: Annotated[float | None, typer.Option(min=0.01, help="Frames a second; all when left out.")] = None,
    mode: options.ModeOption = "prefix",
    frame_policy: options.FramePolicyOption = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; runs/score-TIME when left out.")] = None,
    api_key_file: options.KeyFileOption = None,
) -> None:
    """Ask a reward model how far a video gets at a task: values, a plot, and a film with the curve beside it."""
    from roboserve import score as verb

    command = verb.ScoreCommand(
        video=video, task=task, model=model, server=server, fps=fps, mode=mode, frame_policy=frame_policy, out=out
    )
    raise typer.Exit(verb.run(command, api_key_file))


@app.command()
def prefer(
    first: Annotated[str, typer.Argument(help="A picture (JPEG or PNG), or FILM.mp4#N for a film's frame N.")],
    second: Annotated[str, typer.Argument(help="Another; #-1 is a film's last frame.")],
    *,
    goal: Annotated[str, typer.Option(help="What is to be reached, in words.")],
    model: options.ModelOption = None,
    server: Annotated[
        str | None,
        typer.Option(help="ws://HOST:PORT, or .../preference/NAME; the platform that `up` started when left out."),
    ] = None,
    protocol: options.ProtocolOption = None,
    order_swap: options.SwapOption = False,
    votes: options.VotesOption = 1,
    tie_threshold: options.ThresholdOption = 0.0,
    audit: Annotated[bool, typer.Option("--audit", help="Print the model's raw answers too.")] = False,
    adapter: options.AdapterOption = None,
    as_json: options.JsonOption = False,
    api_key_file: options.KeyFileOption = None,
) -> None:
    """Ask which of two pictures is nearer to a goal."""
    from finetune.preference.judges import AskOptions
    from roboserve import prefer as verb

    asked = AskOptions(protocol=protocol, order_swap=order_swap, votes=votes, tie_threshold=tie_threshold, audit=audit)
    command = verb.PreferCommand(
        first=first,
        second=second,
        goal=goal,
        model=model,
        server=server,
        adapter=adapter,
        options=asked,
        as_json=as_json,
    )
    raise typer.Exit(verb.run(command, api_key_file))


@app.command()
def path(
    image: Annotated[str, typer.Argument(help="A picture (JPEG or PNG), or FILM.mp4#N for a film's frame N.")],
    *,
    task: Annotated[str, typer.Option(help="What is to be done in it, in words.")],
    out: Annotated[Path, typer.Option(help="Picture to write, with the path on it.")],
    model: options.ModelOption = None,
    server: Annotated[
        str | None,
        typer.Option(help="ws://HOST:PORT, or .../path/NAME; the platform that `up` started when left out."),
    ] = None,
    adapter: options.AdapterOption = None,
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
    as_json: options.JsonOption = False,
    api_key_file: options.KeyFileOption = None,
) -> None:
    """Ask for the path that a gripper is to take through a picture, and draw it."""
    from clients.path import PathAsk
    from roboserve import path as verb

    ask = PathAsk(view=view, structured=structured, max_points=max_points, draw=style, audit=audit)
    command = verb.PathCommand(
        image=image, task=task, out=out, server=server, model=model, adapter=adapter, ask=ask, as_json=as_json
    )
    raise typer.Exit(verb.run(command, api_key_file))
