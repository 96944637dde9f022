"""A real engine under the path service: the tiny network of random weights, by transformers."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from typer.testing import CliRunner

from clients.path import PathAsk, PathClient, PathFailure, PathQuery
from models.hamster.prompt import Decoding, PathPrompt, Writing, write_prompt
from roboserve.cli import app
from serving.path_server import PathServer
from tests.serving.path_running import RunningPath
from tests.serving.paths import path_arguments
from tests.vlms import picture, tiny_adapter, tiny_vlm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROMPT = PathPrompt(
    template="path {quest}",
    version="tiny-1",
    decoding=Decoding(max_tokens=130, temperature=1.0),
    answer=Writing(max_points=4),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")
    write_prompt(made, PROMPT)
    tiny_adapter(made, made / "adapters" / "path", seed=1)
    return made


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[RunningPath]:
    engine = {"kind": "transformers", "checkpoint": str(folder), "device": "cpu"}
    args = path_arguments(engine=engine, adapter="path", tolerance=None)
    with RunningPath(lambda: PathServer.start(args)) as server:
        yield server


def test_random_weights_answer_with_paths_where_answers_are_structured(running: RunningPath) -> None:
    queries = [PathQuery(picture(seed), f"do {seed}") for seed in range(5)]
    with PathClient(running.url) as client:
        replies = [client.paths(queries, PathAsk(audit=True)), client.paths(queries, PathAsk(max_points=2))]
        free = client.paths(queries[:2], PathAsk(structured=False))
    found = [path for reply in replies for path in reply.paths]
    assert not [path for path in found if isinstance(path, PathFailure)]
    assert len({path.points.tobytes() for path in found}) > 1
    assert all(len(path.points) <= most for path, most in zip(found, [4] * 5 + [2] * 5, strict=True))
    assert all(isinstance(path, PathFailure) for path in free.paths)
    assert replies[0].adapter == "path"
    assert replies[0].usage["answer_tokens"] > 8


def test_many_callers_ride_together(running: RunningPath) -> None:
    got: list[int] = []
    with PathClient(running.url) as client:

        def work(seed: int) -> None:
            got.append(len(client.path(picture(seed), "go", PathAsk(max_points=1)).points))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert got == [1] * 6


async def test_an_adapter_that_is_not_there_is_refused_at_the_start(folder: Path) -> None:
    engine = {"kind": "transformers", "checkpoint": str(folder), "device": "cpu"}
    with pytest.raises(Exception, match="other"):
        await PathServer.start(path_arguments(engine=engine, adapter="other"))


async def test_a_folder_without_its_wording_is_refused(tmp_path: Path) -> None:
    engine = {"kind": "transformers", "checkpoint": str(tmp_path)}
    with pytest.raises(FileNotFoundError, match=r"path_prompt\.json"):
        await PathServer.start(path_arguments(engine=engine))


def test_the_verb_runs_a_folder_here(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(3)).save(tmp_path / "image.png")
    out = tmp_path / "drawn.png"
    arguments = [
        "path",
        str(tmp_path / "image.png"),
        "--task",
        "go",
        "--out",
        str(out),
        "--model",
        str(folder),
        "--json",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["model"]["adapter"] == "path"
    assert 1 <= len(told["points"]) <= 4
    assert Image.open(out).size == (96, 64)
