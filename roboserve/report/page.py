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
from roboserve.report.episodes import EpisodeData, notable_events, read_episodes
from roboserve.report.table import HEADINGS, cells

_VIDEOS_PER_TASK = 1
_VERSIONS = ("ray", "torch", "numpy", "mujoco", "metaworld", "websockets")


@dataclass(frozen=True, kw_only=True)
class Film:
    """A video on the page."""

    task: str
    instruction: str
    seed: int | None
    success: bool
    ended: str
    seconds: float
    data: str


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
        total=lines[-1] if lines else None,
        films=_films(episodes),
        model=_model(episodes),
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
    summary = item.summary
    return Film(
        task=item.task,
        instruction=summary["instruction"],
        seed=summary["seed"],
        success=item.success,
        ended=summary["ended"],
        seconds=summary["seconds"],
        data=base64.b64encode(video.read_bytes()).decode(),
    )


def _model(episodes: list[EpisodeData]) -> dict[str, str]:
    if not episodes:
        return {"name": "-", "revision": "-"}
    revisions = dict.fromkeys(revision for item in episodes for revision in item.summary["revisions"])
    return {"name": episodes[0].summary["model"], "revision": ", ".join(revisions) or "-"}


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
        holds = {reason: count for reason, count in item.summary["holds"].items() if reason != "waiting"}
        found += [
            {"episode": name, "kind": "hold", "time_s": None, "message": f"{count} ticks held: {reason}"}
            for reason, count in holds.items()
        ]
    return found
