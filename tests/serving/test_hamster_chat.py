"""HAMSTER's own request shape, unchanged, and OpenAI's SDK, on a replica that serves paths."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import openai
import pytest

from models.hamster.answer import parse_answer
from tests.serving.asgi import http
from tests.serving.path_running import RunningPath
from tests.serving.paths import ANSWER, SayingEngine, path_server
from tests.serving.preferences import counter
from tests.serving.test_openai_chat import data_url, shown
from tests.vlms import picture

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO = {
    "model": "Hamster_dev",
    "messages": shown(data_url(picture(0), "jpeg"), text="<quest>put the mug down</quest> ..."),
    "max_tokens": 128,
    "temperature": 0.0,
    "top_p": 0.95,
    "use_cache": False,
    "num_beams": 1,
}
"""What its demo sends."""


@pytest.fixture(scope="module")
def running() -> Iterator[RunningPath]:
    with RunningPath.of(path_server(SayingEngine(), limits={"image_pixels": 256 * 256})) as server:
        yield server


@pytest.fixture
def engine(running: RunningPath) -> Any:
    found = running.server.engine
    found.asked.clear()
    return found


@pytest.mark.parametrize("route", ["/chat/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("model", ["HAMSTER_dev", "Hamster_dev", "mine"])
def test_the_demos_request_works_unchanged(running, engine, route: str, model: str) -> None:
    reply = httpx.post(running.http + route, json={**DEMO, "model": model}, timeout=30).json()
    [choice] = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    assert reply["object"] == "chat.completion"
    assert isinstance(reply["created"], float)
    assert int(reply["id"], 16)
    assert reply["model"] == model
    assert reply["usage"]["total_tokens"] == 80
    assert len(parse_answer(choice["message"]["content"][0]["text"]).path) == 2
    [asked] = engine.asked
    assert asked.messages[0].content[1] == "<quest>put the mug down</quest> ...", "its own wording, untouched"
    assert (asked.sampling.max_tokens, asked.sampling.temperature, asked.sampling.top_p) == (128, 0.0, 0.95)
    assert asked.constraint.kind == "regex"


def test_the_demo_asks_through_openais_sdk(running) -> None:
    sdk = openai.OpenAI(base_url=running.http, api_key="fake-key", max_retries=0, timeout=30)
    reply = sdk.chat.completions.create(
        model="Hamster_dev",
        messages=DEMO["messages"],
        max_tokens=128,
        temperature=0.0,
        top_p=0.95,
        extra_body={"num_beams": 1, "use_cache": False},
    )
    content: Any = reply.choices[0].message.content
    assert content[0]["text"] == ANSWER


def test_its_servers_defaults_hold_and_stream_changes_nothing(running, engine) -> None:
    body = {
        "model": "HAMSTER_dev",
        "messages": [{"role": "user", "content": "hello"}],
        "use_cache": True,
        "stream": True,
    }
    assert httpx.post(f"{running.http}/chat/completions", json=body, timeout=30).status_code == 200
    sampling = engine.asked[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (512, 0.2, 0.9)


def test_an_openai_client_gets_a_string_and_a_stream(running, engine) -> None:
    sdk = openai.OpenAI(base_url=f"{running.http}/v1", api_key="unused", max_retries=0, timeout=30)
    assert [model.id for model in sdk.models.list()] == ["mine", "HAMSTER_dev", "Hamster_dev"]
    asked: dict[str, Any] = {"model": "mine", "messages": DEMO["messages"], "max_tokens": 128}
    reply = sdk.chat.completions.create(**asked)
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    events = list(sdk.chat.completions.create(**asked, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in events) == ANSWER
    assert engine.asked[0].constraint is None, "an OpenAI client says itself what an answer must be"


def test_words_that_look_like_its_fields_are_only_words(running) -> None:
    body = {"model": "mine", "messages": shown(text='say {"use_cache": true, "num_beams": 1}')}
    reply = httpx.post(f"{running.http}/chat/completions", json=body, timeout=30).json()
    assert reply["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"model": "VILA1.5-3B"}, 404, "served are mine, HAMSTER_dev, Hamster_dev"),
        ({"messages": shown("http://127.0.0.1:9/x.png")}, 400, "images come inline"),
        ({"messages": shown("file:///etc/passwd")}, 400, "images come inline"),
        ({"messages": shown("data:image/gif;base64,AAAA")}, 400, "images come inline"),
        ({"messages": shown(*[data_url(picture(0))] * 50)}, 413, "50 images, limit 4"),
        ({"messages": shown(data_url(np.zeros((1, 300, 3), np.uint8)))}, 400, "200 times"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
        ({"max_tokens": 5000}, 413, "max_tokens: 5000, limit 1024"),
        ({"num_beams": 4}, 400, "num_beams"),
        ({"top_p": 0}, 400, "top_p"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"seed": 3}, 400, "seed"),
    ],
)
def test_a_wrong_request_is_refused_by_field_and_limit(running, engine, changes, status: int, text: str) -> None:
    reply = httpx.post(f"{running.http}/chat/completions", json={**DEMO, **changes}, timeout=30)
    assert reply.status_code == status, reply.text
    assert text in reply.json()["error"]["message"]
    assert engine.asked == []


async def test_an_unstructured_service_lets_the_model_think_first() -> None:
    engine = SayingEngine(f"First I grasp it. {ANSWER}")
    server = path_server(engine, structured=False)
    status, _, body = await http(server.app, "POST", "/chat/completions", json.dumps(DEMO).encode())
    assert status == 200
    assert json.loads(body)["choices"][0]["message"]["content"][0]["text"].startswith("First")
    assert engine.asked[0].constraint is None
    assert counter(server, "roboserve_path_tokens_total prompt") == 50


async def test_it_answers_where_the_service_has_the_root() -> None:
    server = path_server()
    for path in ("/chat/completions", "/v1/chat/completions"):
        assert (await http(server.app, "POST", path, json.dumps(DEMO).encode()))[0] == 200
