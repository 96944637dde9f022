from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from clients.errors import RoboserveError
from clients.preference import LabelPair, PreferenceClient
from clients.preference_async import AsyncPreferenceClient
from clients.reward import RewardClient
from tests.serving.preference_running import RunningPreference
from tests.serving.preferences import GOAL, BrightEngine, grey, preference_server


@pytest.fixture
def running():
    with RunningPreference.of(preference_server(BrightEngine(), preferences={"budget": {"job_labels": 6}})) as server:
        yield server


def pairs(*levels: tuple[int, int]) -> list[LabelPair]:
    return [LabelPair(GOAL, grey(first), grey(second), values=(first, second)) for first, second in levels]


def test_pairs_get_labels_whatever_form_their_pictures_have(running) -> None:
    with PreferenceClient(running.url) as client:
        answer = client.label(
            [
                *pairs((10, 200)),
                LabelPair(GOAL, np.stack([grey(200), grey(210)]), [grey(10), grey(20)]),
                LabelPair(GOAL, grey(7), grey(7)),
            ],
            order_swap=True,
            audit=True,
        )
        assert [pair.label for pair in answer.pairs] == [1, 0, -1]
        assert answer.counts["alike"] == 1
        assert answer.usage["calls"] == 4
        assert answer.model.architecture == "vlm"
        assert len(answer.pairs[0].replies) == 2
        assert answer.pairs[0].order_gap == pytest.approx(0.0, abs=1e-6)
        assert answer.pairs[0].chances[1] > 0.9
        assert len(answer.pairs[0].keys[0]) == 32


def test_labels_are_given_as_they_come(running) -> None:
    with PreferenceClient(running.url) as client:
        found = dict(client.stream(pairs((10, 200), (200, 10), (5, 5))))
        assert {index: label.label for index, label in found.items()} == {0: 1, 1: 0, 2: -1}
        for _ in client.stream(pairs((11, 200), (12, 200))):
            break  # the rest is not wanted
        assert client.label(pairs((10, 200))).pairs[0].source == "cached"


def test_threads_share_a_client(running) -> None:
    with PreferenceClient(running.url) as client:
        got: list[int] = []

        def work(level: int) -> None:
            got.extend(label.label for _, label in client.stream(pairs((level, 200), (200, level)), job=str(level)))

        threads = [threading.Thread(target=work, args=(level,)) for level in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(got) == [0] * 4 + [1] * 4


def test_a_used_up_budget_is_told_at_once_and_not_tried_again(running) -> None:
    with PreferenceClient(running.url) as client:
        assert client.label(pairs((10, 200), (11, 200), (12, 200)), job="run").left == {"job_labels": 3}
        with pytest.raises(RoboserveError) as caught:
            client.label(pairs((10, 200), (11, 200), (12, 200), (13, 200)), job="run", timeout_s=30)
        assert caught.value.code == "budget_exhausted"
        assert not caught.value.retryable


def test_what_does_not_fit_the_contract_is_not_sent(running) -> None:
    with PreferenceClient(running.url) as client:
        with pytest.raises(RoboserveError, match="pairs: 65, limit 64"):
            client.label(pairs(*[(1, 2)] * 65))
        with pytest.raises(RoboserveError, match=r"pairs\[0\].first: 5 frames, limit 4"):
            client.label([LabelPair(GOAL, [grey(1)] * 5, grey(2))])
        with pytest.raises(RoboserveError, match=r"pairs\[0\].second\[0\]: float64"):
            client.label([LabelPair(GOAL, grey(1), grey(2) / 2.0)])


def test_another_familys_client_is_refused_in_a_sentence(running) -> None:
    with pytest.raises(RoboserveError, match="family 'preference'"):
        RewardClient(running.url)


def test_a_restart_is_waited_for(running) -> None:
    with PreferenceClient(running.url) as client:
        assert client.label(pairs((10, 200))).pairs[0].label == 1
        running.stop()
        restarted = threading.Timer(0.5, running.start)
        running._make = _server
        restarted.start()
        assert client.label(pairs((10, 200)), timeout_s=30).pairs[0].label == 1
        restarted.join()


async def _server():
    return preference_server(BrightEngine())


async def test_the_asyncio_client_does_the_same(running) -> None:
    async with await AsyncPreferenceClient.open(running.url) as client:
        answers = await asyncio.gather(*(client.label(pairs((level, 200)), job=str(level)) for level in range(20)))
        assert [answer.pairs[0].label for answer in answers] == [1] * 20
        found = [(index, label.label) async for index, label in client.stream(pairs((10, 250), (250, 10)))]
        assert sorted(found) == [(0, 1), (1, 0)]
        with pytest.raises(RoboserveError, match="budget"):
            async for _ in client.stream(pairs(*[(level, 9) for level in range(7)]), job="x"):
                pass
        running.server.labeller._engine.delay_s = 5.0
        with pytest.raises(RoboserveError, match="no answer within"):
            await client.label(pairs((77, 78)), timeout_s=0.3)
