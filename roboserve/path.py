"""`roboserve path`: the path that a gripper is to take through a picture, drawn."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clients.errors import RoboserveError
from clients.path import PathAsk, PathClient
from clients.path_messages import PathQuery, PathReply, read_paths
from models.folders import checkpoint_folder
from roboserve.credentials import api_key
from roboserve.model_choice import PATH, chosen_model
from roboserve.pictures import read_picture

if TYPE_CHECKING:
    from clients.path_messages import PathReplies

_ADAPTER = "path"


@dataclass(frozen=True, kw_only=True)
class PathCommand:
    """A picture as the command line names it; `adapter`: of a checkpoint that is run here."""

    image: str
    task: str
    out: Path
    server: str | None
    model: str | None
    adapter: str | None
    ask: PathAsk
    as_json: bool


def run(command: PathCommand, key_file: Path | None) -> int:
    """Ask, draw and print; return the exit code."""
    console = Console()
    try:
        if not command.task.strip():
            raise RoboserveError("invalid_request", "task: empty")
        image = read_picture(command.image)
        name = chosen_model(command.model, command.server, PATH)
        with console.status("asking the model"):
            replies = _ask(command, name, PathQuery(image, command.task), api_key(key_file))
        [path] = replies.paths
        if not isinstance(path, PathReply):
            raise path.error()
        Image.fromarray(np.asarray(path.drawing)).save(command.out)
    except (RoboserveError, ImportError, OSError, ValueError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        return 1
    if command.as_json:
        print(json.dumps(_map(command, replies, path), indent=2))
    else:
        _print(console, command, replies, path)
    return 0


def _ask(command: PathCommand, name: str, query: PathQuery, key: str | None) -> PathReplies:
    if "://" in name:
        with closing(PathClient(name, api_key=key)) as client:
            return client.paths([query], command.ask)
    return asyncio.run(_ask_here(command, name, query))


async def _ask_here(command: PathCommand, name: str, query: PathQuery) -> PathReplies:
    """Run a checkpoint in this process, behind the same checks and answers as a served one."""
    from models.vlm.checkpoint import shipped_adapters
    from serving.dialects.path_messages import PathMessages
    from serving.path_config import PathArgs
    from serving.path_server import PathServer
    from serving.vlm.engines import TransformersSettings

    own = _ADAPTER if _ADAPTER in shipped_adapters(checkpoint_folder(name)) else None
    args = PathArgs(name="local", engine=TransformersSettings(checkpoint=name), adapter=command.adapter or own)
    server = await PathServer.start(args)
    try:
        message = command.ask.path([query], server.contract, "png")
        return read_paths(await PathMessages(server).path(message, time.perf_counter()), queries=1)
    finally:
        await server.close()


def _map(command: PathCommand, replies: PathReplies, path: PathReply) -> dict[str, Any]:
    return {
        "image": Path(command.image).name,
        "task": command.task,
        "model": {**asdict(replies.model), "adapter": replies.adapter},
        "points": [[round(float(value), 6) for value in point] for point in path.points],
        "gripper_open": path.gripper_open.tolist(),
        "issues": [asdict(issue) for issue in path.issues],
        "finish": path.finish,
        "answer": path.answer,
        "usage": dict(replies.usage),
        "drawn": str(command.out),
    }


def _print(console: Console, command: PathCommand, replies: PathReplies, path: PathReply) -> None:
    table = Table("point", "x", "y", "gripper")
    for index, ((x, y), is_open) in enumerate(zip(path.points, path.gripper_open, strict=True)):
        table.add_row(str(index), f"{x:.3f}", f"{y:.3f}", "open" if is_open else "closed")
    console.print(table)
    for issue in path.issues:
        where = f" (points {', '.join(map(str, issue.points))})" if issue.points else ""
        console.print(f"[yellow]{issue.code}{where}[/yellow]", highlight=False)
    if path.answer is not None:
        console.print(f"[dim]answer:[/dim] {escape(path.answer)}", highlight=False)
    model = replies.model
    adapter = f" with adapter {replies.adapter}" if replies.adapter else ""
    console.print(
        f"{model.id} {model.revision} ({model.content_hash[:12]}){adapter}, prompt {model.prompt_version}", style="dim"
    )
    console.print(f"{command.out}: the path drawn", highlight=False, soft_wrap=True)
