"""Every engine keeps one contract: same request, same weights, same answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from clients.errors import RoboserveError
from models.vlm.checkpoint import load_checkpoint
from models.vlm.decoding import label_logprobs
from models.vlm.messages import Message, user
from serving.vlm.contract import Constraint, Sampling, VlmEngine, VlmRequest
from serving.vlm.engines import RemoteSettings, TransformersSettings, VllmSettings, make_engine, vllm_is_installed
from tests.serving.vlm_running import RunningVlm, vlm_arguments
from tests.vlms import picture, tiny_adapter, tiny_vlm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

LABELS = ("0", "1", "2")
TOLERANCE = 1e-3
"""Of a label's log-probability, between engines in float32."""
KINDS = [
    "transformers",
    "openai",
    pytest.param("vllm", marks=pytest.mark.skipif(not vllm_is_installed(), reason="vLLM is not installed")),
]
QUESTIONS: tuple[tuple[Message, ...], ...] = (
    (user(picture(0), "which?"),),
    (Message(role="system", content=("be brief",)), user("hi ", picture(1), picture(2, height=32), "what")),
    (user("text only"),),
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")
    tiny_adapter(base, base / "adapters" / "one", seed=1)
    return base


@pytest.fixture(scope="module")
def remote(folder: Path) -> Iterator[str]:
    with RunningVlm(vlm_arguments(folder)) as running:
        yield running.url


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def engine(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[VlmEngine]:
    if request.param == "openai":
        url = request.getfixturevalue("remote")
        made = await make_engine(
            RemoteSettings(base_url=url, model="mine", adapters=("one",), context=512, structured="vllm")
        )
    elif request.param == "vllm":
        made = await make_engine(VllmSettings(checkpoint=str(folder), context=512, kv_cache_bytes=64 << 20))
    else:
        made = await make_engine(TransformersSettings(checkpoint=str(folder), context=512))
    yield made
    await made.close()


async def ask(engine: VlmEngine, messages: tuple[Message, ...], **changes: Any) -> tuple[str, list[Any], Any]:
    text, tokens, last = "", [], None
    async for chunk in engine.stream(VlmRequest(messages=messages, **changes)):
        text, last = text + chunk.text, chunk
        tokens += chunk.tokens
    return text, tokens, last


async def refused(engine: VlmEngine, messages: tuple[Message, ...], **changes: Any) -> str:
    with pytest.raises(RoboserveError) as caught:
        await ask(engine, messages, **changes)
    return caught.value.code


async def test_label_probabilities_are_those_of_the_network(engine: VlmEngine, folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    ids = checkpoint.tokenizer.convert_tokens_to_ids(list(LABELS))
    prompts = [checkpoint.composer.compose(messages) for messages in QUESTIONS]
    expected = label_logprobs(checkpoint, prompts, [ids] * len(QUESTIONS))
    readings = await asyncio.gather(*(engine.labels(messages, LABELS) for messages in QUESTIONS))
    for reading, values in zip(readings, expected, strict=True):
        for told, value in zip(reading.logprobs, values, strict=True):
            # a remote server tells the likeliest 20 tokens only
            assert told is None if told is None and engine.spec.engine == "openai" else abs(told - value) < TOLERANCE


async def test_an_adapter_answers_by_its_name_and_rides_beside_the_base(engine: VlmEngine) -> None:
    assert "one" in engine.adapters
    sampling = Sampling(max_tokens=8)
    base, adapted, again = await asyncio.gather(
        ask(engine, QUESTIONS[0], sampling=sampling),
        ask(engine, QUESTIONS[0], sampling=sampling, adapter="one"),
        ask(engine, QUESTIONS[0], sampling=sampling),
    )
    assert base[0] == again[0] != adapted[0]


async def test_the_likeliest_answer_is_the_same_alone_and_among_others(engine: VlmEngine) -> None:
    sampling = Sampling(max_tokens=10)
    alone = [(await ask(engine, messages, sampling=sampling))[0] for messages in QUESTIONS]
    among = await asyncio.gather(*(ask(engine, messages, sampling=sampling) for messages in QUESTIONS * 2))
    assert [text for text, _, _ in among] == alone * 2
    for _, _, last in among:
        assert (last.finish, last.answer_tokens) == ("length", 10)
        assert last.prompt_tokens > 20


async def test_log_probabilities_come_with_the_likeliest_tokens(engine: VlmEngine) -> None:
    _, tokens, _ = await ask(engine, QUESTIONS[0], sampling=Sampling(max_tokens=3, logprobs=2))
    assert len(tokens) == 3
    for token in tokens:
        assert len(token.top) == 2
        assert token.top[0] == (token.text, pytest.approx(token.logprob))  # it was drawn as the likeliest
        assert token.logprob >= token.top[1][1]


@pytest.mark.parametrize(
    ("kind", "value", "pattern"),
    [
        ("regex", r"\(0\.[0-9]{2}, 0\.[0-9]{2}\)", r"\(0\.\d\d, 0\.\d\d\)"),
        ("choice", ("yes", "no"), "yes|no"),
        ("json", {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                  "additionalProperties": False}, r'\{"a":(true|false)\}'),
    ],
)  # fmt: skip
async def test_a_constrained_answer_has_its_form(engine: VlmEngine, kind: Any, value: Any, pattern: str) -> None:
    import re

    text, _, last = await ask(engine, QUESTIONS[0], constraint=Constraint(kind=kind, value=value))
    assert re.fullmatch(pattern, text), text
    assert last.finish == "stop"


async def test_what_cannot_be_answered_is_refused_and_the_next_is_answered(engine: VlmEngine) -> None:
    long = (user("x " * 600),)
    assert await refused(engine, long, sampling=Sampling(max_tokens=4)) in ("too_large", "invalid_request")
    assert await refused(engine, QUESTIONS[0], adapter="nobody") == "not_found"
    assert await refused(engine, QUESTIONS[0], constraint=Constraint(kind="regex", value="(a")) == "invalid_request"
    assert await refused(engine, (user(*[picture(0)] * 9),)) == "too_large"
    assert (await ask(engine, QUESTIONS[2], sampling=Sampling(max_tokens=2)))[0]


async def test_a_cancelled_answer_frees_its_place(engine: VlmEngine) -> None:
    asked = VlmRequest(messages=QUESTIONS[0], sampling=Sampling(max_tokens=400))
    for _ in range(4):
        stream = engine.stream(asked)
        await anext(stream)
        await stream.aclose()
    texts = await asyncio.gather(*(ask(engine, QUESTIONS[2], sampling=Sampling(max_tokens=2)) for _ in range(8)))
    assert len({text for text, _, _ in texts}) == 1


async def test_an_adapter_is_exchanged_while_it_answers(engine: VlmEngine, folder: Path, tmp_path: Path) -> None:
    if engine.spec.engine == "openai":
        with pytest.raises(RoboserveError, match="remote server"):
            await engine.load_adapter("two", tmp_path)
        return
    first, second = (tiny_adapter(folder, tmp_path / str(seed), seed=seed) for seed in (5, 6))
    await engine.load_adapter("two", first)
    before = await ask(engine, QUESTIONS[0], sampling=Sampling(max_tokens=24), adapter="two")
    stream = engine.stream(VlmRequest(messages=QUESTIONS[0], sampling=Sampling(max_tokens=24), adapter="two"))
    text = (await anext(stream)).text
    await engine.load_adapter("two", second)
    async for chunk in stream:
        text += chunk.text
    assert text == before[0], "an answer ends with the weights that it began with"
    after = await ask(engine, QUESTIONS[0], sampling=Sampling(max_tokens=24), adapter="two")
    assert after[0] != before[0]
    await engine.unload_adapter("two")
    assert await refused(engine, QUESTIONS[0], adapter="two") == "not_found"
    for bad in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RoboserveError, match="adapter"):
            await engine.load_adapter("three", bad)


async def test_a_sampled_answer_is_repeated_by_its_seed(engine: VlmEngine) -> None:
    sampling = Sampling(max_tokens=12, temperature=1.0, seed=7)
    first, second = [await ask(engine, QUESTIONS[2], sampling=sampling) for _ in range(2)]
    other = await ask(engine, QUESTIONS[2], sampling=Sampling(max_tokens=12, temperature=1.0, seed=8))
    assert first[0] == second[0] != other[0]


async def test_healthy_until_closed(folder: Path) -> None:
    engine = await make_engine(TransformersSettings(checkpoint=str(folder), context=512))
    engine.check_health()
    going = asyncio.create_task(ask(engine, QUESTIONS[0], sampling=Sampling(max_tokens=400)))
    await asyncio.sleep(0.2)
    await engine.close()
    with pytest.raises(RoboserveError, match="unavailable"):
        await going
    with pytest.raises(RuntimeError):
        engine.check_health()
    assert await refused(engine, QUESTIONS[0]) == "unavailable"


async def test_a_remote_server_that_is_not_there_is_unavailable() -> None:
    engine = await make_engine(RemoteSettings(base_url="http://127.0.0.1:9/v1", model="x", retries=1, timeout_s=1))
    assert await refused(engine, QUESTIONS[2]) == "unavailable"
    await engine.close()
