"""The vision-language services on a real platform: Ray Serve, HAProxy, an engine that dies and comes back."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from clients.errors import RoboserveError
from clients.path import PathAsk, PathClient, PathQuery, PathReply
from clients.preference import LabelPair, PreferenceClient
from models.hamster.prompt import Decoding, PathPrompt, Writing, write_prompt
from serving.ports import free_port
from tests.serving.platforms import Platform, configuration, start, stop
from tests.serving.test_openai_chat import data_url, shown
from tests.serving.test_preference_vlm import PROMPT as LABELS
from tests.vlms import picture, tiny_adapter, tiny_vlm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUESTION = shown(data_url(picture(0)))
PATIENCE_S = 90.0
PROMPT = PathPrompt(
    template="path {quest}", version="tiny-1", decoding=Decoding(max_tokens=120), answer=Writing(max_points=3)
)


def vlm(folder: Path) -> dict[str, Any]:
    engine = {"kind": "transformers", "checkpoint": str(folder), "context": 512}
    return {
        "name": "vlm",
        "route_prefix": "/v1",
        "import_path": "serving.vlm.app:build",
        "args": {"name": "tiny", "engine": engine},
        "deployments": [{"name": "VlmService", "ray_actor_options": {"num_cpus": 0.5}}],
    }


def paths(folder: Path) -> dict[str, Any]:
    """A path service without an engine of its own: it asks the VLM application's."""
    return {
        "name": "path",
        "route_prefix": "/path/drawn",
        "import_path": "serving.path:build",
        "args": {
            "name": "drawn",
            "engine": {"kind": "app", "application": "vlm"},
            "adapter": "one",
            "prompt": str(folder),
        },
        "deployments": [{"name": "PathService", "ray_actor_options": {"num_cpus": 0.2}}],
    }


def preferences(folder: Path) -> dict[str, Any]:
    """A labeller that asks the same engine."""
    config = {"engine": {"kind": "app", "application": "vlm"}, "prompt": str(folder)}
    return {
        "name": "preference",
        "route_prefix": "/preference/nearer",
        "import_path": "serving.preference:build",
        "args": {
            "name": "nearer",
            "labeller": {"factory": "serving.preference_vlm:VlmLabeller", "config": config},
        },
        "deployments": [{"name": "PreferenceService", "ray_actor_options": {"num_cpus": 0.2}}],
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("vlm-platform")
    base = tiny_vlm(folder / "tiny")
    tiny_adapter(base, base / "adapters" / "one", seed=1)
    write_prompt(base, PROMPT)
    LABELS.write(base)
    port = free_port()
    running = start(folder, configuration(port, [vlm(base), paths(base), preferences(base)]), port)
    yield running
    assert stop(running) == [], "processes of the platform outlived it"


def sdk(served: Platform, *, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url("/v1"), api_key="unused", max_retries=retries, timeout=30)


def test_the_sdk_finds_models_and_streams_through_the_proxy(served: Platform) -> None:
    client = sdk(served)
    assert [model.id for model in client.models.list()] == ["tiny", "one"]
    asked: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    pieces = [event.choices[0].delta.content or "" for event in client.chat.completions.create(**asked, stream=True)]
    assert "".join(pieces) == whole
    assert sum(map(bool, pieces)) > 1


def test_only_the_named_routes_exist(served: Platform) -> None:
    for path in ("/v1/load_lora_adapter", "/v1/tokenize", "/v1/completions", "/v1/../metrics", "/pooling"):
        assert httpx.post(served.url(path), json={}, timeout=10).status_code == 404


def test_paths_come_from_the_engine_of_another_application(served: Platform) -> None:
    with PathClient(served.websocket("/path/drawn"), timeout_s=PATIENCE_S) as client:
        assert client.contract.adapter == "one"
        queries = [PathQuery(picture(seed), "go") for seed in range(4)]
        replies = client.paths(queries, PathAsk(audit=True))
        found = [path for path in replies.paths if isinstance(path, PathReply)]
        assert len(found) == 4
        assert all(str(path.answer).startswith("<ans>[(") for path in found)
        with client.open(picture(0), "go", session="robot") as kept:
            assert kept.get().queries == 1
        with pytest.raises(RoboserveError, match="instruction: 600 characters"):
            client.path(picture(0), "x" * 600)
    demo = {"model": "Hamster_dev", "messages": QUESTION, "max_tokens": 64, "num_beams": 1, "use_cache": False}
    reply = httpx.post(served.url("/path/drawn/chat/completions"), json=demo, timeout=PATIENCE_S).json()
    assert reply["choices"][0]["message"]["content"][0]["text"].startswith("<ans>[(")


def test_an_engines_refusal_keeps_its_kind_across_applications(served: Platform) -> None:
    long = {"model": "Hamster_dev", "messages": shown(text="x " * 1000), "max_tokens": 64, "num_beams": 1}
    reply = httpx.post(served.url("/path/drawn/chat/completions"), json=long, timeout=PATIENCE_S)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


def test_labels_come_from_the_same_engine(served: Platform) -> None:
    with PreferenceClient(served.websocket("/preference/nearer"), timeout_s=PATIENCE_S) as client:
        answer = client.label([LabelPair("go", picture(0), picture(1)), LabelPair("go", picture(2), picture(3))])
        assert all(pair.source == "asked" and sum(pair.chances) == pytest.approx(1.0) for pair in answer.pairs)


def test_a_killed_engine_is_replaced_and_callers_may_ask_again(served: Platform) -> None:
    [victim] = served.processes("ray::ServeReplica:vlm:")
    os.kill(victim.pid, signal.SIGKILL)
    statuses = set()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            reply = httpx.get(served.url("/v1/models"), timeout=10)
        except httpx.HTTPError:
            continue
        statuses.add(reply.status_code)
        if reply.status_code == 200 and served.processes("ray::ServeReplica:vlm:") != [victim]:
            break
        time.sleep(0.2)
    assert 200 in statuses
    assert statuses <= {200, 404, 500, 502, 503, 504}
    assert sdk(served).chat.completions.create(model="one", messages=QUESTION, max_tokens=2).choices
    with PathClient(served.websocket("/path/drawn"), timeout_s=PATIENCE_S) as client:
        assert len(client.path(picture(0), "go").points) > 0
