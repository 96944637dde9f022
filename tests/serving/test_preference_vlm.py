"""A real engine under the labeller: the tiny network of random weights, by transformers."""

from __future__ import annotations

import asyncio
import json
import threading

import numpy as np
import pytest

from clients.preference import LabelPair, PreferenceClient
from models.preference.prompt import LabelWords, OneTokenPrompt, PreferencePrompt, TwoStagePrompt
from serving.preference_server import PreferenceServer
from serving.preference_vlm import VlmLabeller, read_prompt
from tests.models.preference_contract import LabellerContract, noise
from tests.serving.asgi import http
from tests.serving.preference_running import RunningPreference
from tests.serving.preferences import preference_arguments
from tests.vlms import tiny_vlm

PROMPT = PreferencePrompt(
    version="tiny-1",
    image_size=(32, 32),
    one_token=OneTokenPrompt(
        template="{goal}? 0 {first} 1 {second}", labels=LabelWords(first="0", second="1", tie="2")
    ),
    two_stage=TwoStagePrompt(
        analysis="{goal}? {first} or {second}", label="{goal}: {analysis}", analysis_tokens=6, label_tokens=3
    ),
)
SETTINGS = {"kind": "transformers", "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tiny_vlm(tmp_path_factory.mktemp("vlm"))
    PROMPT.write(made)
    return made


@pytest.fixture(scope="module")
def running(folder):
    """The labeller behind a real socket, on a loop of its own that tests can run things on."""
    config = {"engine": {**SETTINGS, "checkpoint": str(folder)}}
    factory = {"factory": "serving.preference_vlm:VlmLabeller", "config": config}
    with RunningPreference(lambda: PreferenceServer.start(preference_arguments(labeller=factory))) as server:
        yield server


class _Elsewhere:
    """A labeller that lives on another thread's event loop."""

    def __init__(self, labeller: VlmLabeller, loop: asyncio.AbstractEventLoop) -> None:
        self._labeller, self._loop = labeller, loop

    @property
    def spec(self):
        return self._labeller.spec

    def check_health(self) -> None:
        self._labeller.check_health()

    async def label(self, pairs, options):
        future = asyncio.run_coroutine_threadsafe(self._labeller.label(pairs, options), self._loop)
        return await asyncio.wrap_future(future)


class TestTinyVlm(LabellerContract):
    @pytest.fixture
    def labeller(self, running):
        return _Elsewhere(running.server.labeller, running.loop)


def test_the_folders_own_wording_is_used(running, folder) -> None:
    assert running.server.contract.prompt_version == PROMPT.id
    assert running.server.contract.image_size == (32, 32)
    assert read_prompt(None, str(folder)) == PROMPT
    assert read_prompt(str(folder), None) == PROMPT
    with pytest.raises(FileNotFoundError):
        read_prompt(str(folder / "other"), None)


def test_both_protocols_and_votes_over_the_wire(running) -> None:
    asked = [LabelPair("open the drawer", noise(seed)[0], noise(seed + 1)[0]) for seed in range(3)]
    with PreferenceClient(running.url) as client:
        one = client.label(asked, audit=True)
        assert one.protocol == "one_token"
        for pair in one.pairs:
            said = json.loads(pair.replies[0].text)
            logs = np.array([said["0"], said["1"], said["2"]])
            np.testing.assert_allclose(pair.chances, np.exp(logs) / np.exp(logs).sum(), atol=1e-6)
            assert pair.mass == pytest.approx(np.exp(logs).sum(), abs=1e-6)
        two = client.label(asked, protocol="two_stage", votes=2, order_swap=True, audit=True)
        assert two.usage["calls"] == 3 * 2 * 2 * 2
        assert {(reply.swapped, reply.vote, reply.stage) for reply in two.pairs[0].replies} == {
            (swapped, vote, stage) for swapped in (False, True) for vote in (0, 1) for stage in ("analysis", "label")
        }
        assert client.label(asked, protocol="two_stage", votes=2, order_swap=True).counts["cached"] == 3


def test_many_callers_at_once_get_what_one_gets_alone(running) -> None:
    asked = [LabelPair("close it", noise(seed + 70)[0], noise(seed + 90)[0]) for seed in range(12)]
    got: dict[int, float] = {}
    with PreferenceClient(running.url) as client:

        def work(index: int) -> None:
            got[index] = client.label([asked[index]]).pairs[0].chances[0]

        threads = [threading.Thread(target=work, args=(index,)) for index in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        running.server.answers.cache._kept.clear()
        alone = [client.label([pair]).pairs[0].chances[0] for pair in asked]
    np.testing.assert_allclose([got[index] for index in range(12)], alone, atol=1e-4)


async def test_a_label_word_of_several_tokens_is_refused_at_the_start(folder, tmp_path) -> None:
    words = LabelWords(first="the first of them", second="1")
    wrong = PROMPT.model_copy(update={"one_token": OneTokenPrompt(template="{goal}{first}{second}", labels=words)})
    config = {"engine": {**SETTINGS, "checkpoint": str(folder)}, "prompt": str(wrong.write(tmp_path))}
    factory = {"factory": "serving.preference_vlm:VlmLabeller", "config": config}
    with pytest.raises(Exception, match="must be one"):
        await PreferenceServer.start(preference_arguments(labeller=factory))


async def test_health_is_told(running) -> None:
    future = asyncio.run_coroutine_threadsafe(http(running.server.app, "GET", "/healthz"), running.loop)
    status, _, _ = await asyncio.wrap_future(future)
    assert status == 200
