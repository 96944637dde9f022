"""The vision-language services on a real platform: Ray Serve, HAProxy, an engine that dies and comes back."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from serving.ports import free_port
from tests.serving.platforms import Platform, configuration, start, stop
from tests.serving.test_openai_chat import data_url, shown
from tests.vlms import picture, tiny_adapter, tiny_vlm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUESTION = shown(data_url(picture(0)))
PATIENCE_S = 90.0


def vlm(folder: Path) -> dict[str, Any]:
    engine = {"kind": "transformers", "checkpoint": str(folder), "context": 512}
    return {
        "name": "vlm",
        "route_prefix": "/v1",
        "import_path": "serving.vlm.app:build",
        "args": {"name": "tiny", "engine": engine},
        "deployments": [{"name": "VlmService", "ray_actor_options": {"num_cpus": 0.5}}],
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("vlm-platform")
    base = tiny_vlm(folder / "tiny")
    tiny_adapter(base, base / "adapters" / "one", seed=1)
    port = free_port()
    running = start(folder, configuration(port, [vlm(base)]), port)
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
