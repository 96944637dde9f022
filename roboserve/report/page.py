"""Builds the page: everything inside one file, so that it can be mailed, archived and opened anywhere."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from roboserve.report.charts import batch_chart, latency_chart, lateness_chart, timeline_chart
from roboserve.report.curves import Curve, curve_of, film_curve, small_curves
from roboserve.report.episodes import EpisodeData, notable_events, read_episodes, reward_faults
from roboserve.report.paths import film_path
from roboserve.report.table import HEADINGS, cells

_VIDEOS_PER_TASK = 1
_VERSIONS = ("ray", "torch", "numpy", "mujoco", "metaworld", "websockets")


@dataclass(frozen=True, kw_only=True)
class Film:
    """A video on the page, and the reward model's curve; None where it has none."""

    task: str
    instruction: str
    seed: int | None
    success: bool
    ended: str
    seconds: float
    data: str
    curve: Curve | None
    drawn: Markup | None
    plan: Markup | None


@dataclass(frozen=True, kw_only=True)
class TaskCurves:
    """The curves of all episodes of a task."""

    task: str
    successes: int
    episodes: int
    drawn: Markup


def write_report(folder: Path) -> Path:
    """Write `report.html` for a run folder and return its path.

    Raises:
        FileNotFoundError: the folder has no `demo.json`.
    """
    about: dict[str, Any] = json.loads((folder / "demo.json").read_text("utf-8"))
    episodes = read_episodes(folder)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    lines = cells(folder)
    html = environment.get_template("page.html.j2").render(
        about=about,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(about["started_unix"])),
        episodes=episodes,
        successes=sum(item.success for item in episodes),
        headings=HEADINGS,
        rows=lines[:-1],
        total=dict(zip(HEADINGS, lines[-1], strict=True)) if lines else None,
        films=_films(episodes),
        curves=_task_curves(episodes),
        model=_model(episodes),
        reward=_reward(episodes),
        planner=_planner(episodes),
        reward_faults=reward_faults(episodes),
        machine=f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}",
        versions=_versions(),
        events=_events(episodes),
        charts=_charts(episodes),
    )
    path = folder / "report.html"
    path.write_text(html, "utf-8")
    return path


def _charts(episodes: list[EpisodeData]) -> dict[str, Markup]:
    if not episodes:
        return {}
    drawn = {
        "latency": latency_chart(episodes),
        "timeline": timeline_chart(episodes),
        "lateness": lateness_chart(episodes),
        "batch": batch_chart(episodes),
    }
    return {name: Markup(svg) for name, svg in drawn.items()}  # noqa: S704  drawn here, from numbers


def _films(episodes: list[EpisodeData]) -> list[Film]:
    """Choose one success of each task, and every failure."""
    chosen: list[EpisodeData] = []
    for task in dict.fromkeys(item.task for item in episodes):
        own = [item for item in episodes if item.task == task]
        good = [item for item in own if item.success][:_VIDEOS_PER_TASK]
        chosen += [*good, *(item for item in own if not item.success)]
    return [_film(item, item.video) for item in chosen if item.video is not None]


def _film(item: EpisodeData, video: Path) -> Film:
    summary, curve = item.summary, curve_of(item)
    return Film(
        task=item.task,
        instruction=summary["instruction"],
        seed=summary["seed"],
        success=item.success,
        ended=summary["ended"],
        seconds=summary["seconds"],
        data=base64.b64encode(video.read_bytes()).decode(),
        curve=curve,
        drawn=film_curve(curve) if curve is not None and curve.times else None,
        plan=film_path(item.path) if item.path and "points" in item.path else None,
    )


def _task_curves(episodes: list[EpisodeData]) -> list[TaskCurves]:
    found = []
    for task in dict.fromkeys(item.task for item in episodes):
        own = [(curve, item.success) for item in episodes if item.task == task and (curve := curve_of(item))]
        curves = [(curve, success) for curve, success in own if curve.times]
        if curves:
            won = sum(success for _, success in curves)
            found.append(TaskCurves(task=task, successes=won, episodes=len(curves), drawn=small_curves(curves)))
    return found


def _model(episodes: list[EpisodeData]) -> dict[str, str]:
    if not episodes:
        return {"name": "-", "revision": "-"}
    revisions = dict.fromkeys(revision for item in episodes for revision in item.summary["revisions"])
    return {"name": episodes[0].summary["model"], "revision": ", ".join(revisions) or "-"}


def _reward(episodes: list[EpisodeData]) -> str | None:
    """Return the reward models that judged, and the revision of each."""
    judges = [item.reward for item in episodes if item.reward and item.reward["model"]]
    return ", ".join(dict.fromkeys(f"{judge['model']}, revision {judge['revision']}" for judge in judges)) or None


def _planner(episodes: list[EpisodeData]) -> str | None:
    """Return the path predictors that were asked, and the revision of each."""
    asked = [item.path for item in episodes if item.path and "points" in item.path]
    return ", ".join(dict.fromkeys(f"{path['model']}, revision {path['revision']}" for path in asked)) or None


def _versions() -> str:
    found = []
    for name in _VERSIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _events(episodes: list[EpisodeData]) -> list[dict[str, Any]]:
    """Return what happened besides commands: connections lost and made, holds by reason, slow answers."""
    found = []
    for item in episodes:
        name = f"{item.task}, scene {item.summary['seed']}"
        found += [{"episode": name, **event} for event in notable_events(item)]
        found += _reward_events(name, item)
        if item.path and "fault" in item.path:
            found.append({"episode": name, "kind": "path", "time_s": None, "message": item.path["fault"]})
        holds = {reason: count for reason, count in item.summary["holds"].items() if reason != "waiting"}
        found += [
            {"episode": name, "kind": "hold", "time_s": None, "message": f"{count} ticks held: {reason}"}
            for reason, count in holds.items()
        ]
    return found


def _reward_events(name: str, item: EpisodeData) -> list[dict[str, Any]]:
    reward = item.reward
    if reward is None:
        return []
    found = []
    if reward["dropped"]:
        text = f"{reward['dropped']} of {reward['offered']} frames were dropped: too many waited for a value"
        found.append({"episode": name, "kind": "reward", "time_s": None, "message": text})
    if reward["fault"]:
        found.append({"episode": name, "kind": "reward", "time_s": None, "message": reward["fault"]})
    return found
