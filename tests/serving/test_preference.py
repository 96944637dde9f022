from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from clients.errors import RoboserveError
from clients.images import encode_image
from models.preference.prompt import GENERAL_PROMPT
from serving.preference_server import PreferenceServer
from tests.models.preference_contract import LabellerContract
from tests.serving.asgi import Session, http
from tests.serving.preferences import (
    GOAL,
    BrightEngine,
    ask,
    counter,
    grey,
    labels,
    pair,
    post,
    preference_arguments,
    preference_server,
    vlm_labeller,
)


class TestVlmLabeller(LabellerContract):
    @pytest.fixture(params=[0.0, 1.5], ids=["fair", "biased"])
    def labeller(self, request):
        return vlm_labeller(BrightEngine(bias=request.param))


@pytest.mark.parametrize("protocol", ["one_token", "two_stage"])
async def test_both_protocols_say_which_is_nearer(protocol: str) -> None:
    server = preference_server()
    assert await labels(server, pair(10, 200), pair(200, 10), protocol=protocol) == [1, 0]


async def test_one_token_costs_one_question_and_two_stage_two_the_second_without_pictures() -> None:
    engine = BrightEngine()
    server = preference_server(engine)
    await labels(server, pair(10, 200), protocol="one_token")
    assert [len(message.images) for messages in engine.asked for message in messages] == [2]
    engine.asked.clear()
    reply = await post(server, ask(pair(10, 200), protocol="two_stage", audit=True))
    assert [len(message.images) for messages in engine.asked for message in messages] == [2, 0]
    assert reply["usage"] == {"calls": 2, "prompt_tokens": 120, "answer_tokens": 24}
    replies = reply["pairs"][0]["replies"]
    assert [each["stage"] for each in replies] == ["analysis", "label"]
    assert replies[1]["text"] == "1\nthe second"


async def test_an_answer_says_how_it_came_about() -> None:
    server = preference_server()
    reply = await post(server, ask(pair(10, 200), request_id="r7"))
    assert reply["request_id"] == "r7"
    assert reply["protocol"] == "one_token"
    assert reply["model"]["prompt_version"] == GENERAL_PROMPT.id
    assert reply["model"]["id"] == "mine"
    assert reply["timings"]["total"] > 0
    [found] = reply["pairs"]
    assert found["source"] == "asked"
    assert "replies" not in found
    assert 0 < found["mass"] < 1
    assert len(set(found["keys"])) == 2


async def test_what_is_no_label_is_a_tie_and_counted() -> None:
    engine = BrightEngine()
    engine.says = ["I cannot tell", "1"]
    server = preference_server(engine)
    reply = await post(server, ask(pair(10, 200), protocol="two_stage"))
    assert reply["pairs"][0]["label"] == -1
    assert not reply["pairs"][0]["abstained"]
    assert reply["counts"]["unparsed"] == 1
    assert counter(server, "roboserve_preference_unparsed_total") == 1
    assert await labels(server, pair(10, 201), protocol="two_stage") == [1]


async def test_a_label_that_the_engine_did_not_show_is_an_abstention_never_zero() -> None:
    engine = BrightEngine()
    engine.hidden = {1}
    reply = await post(preference_server(engine), ask(pair(200, 10)))
    [found] = reply["pairs"]
    assert found["abstained"]
    assert found["label"] == -1
    assert found["chances"] == pytest.approx([1 / 3] * 3)
    assert reply["counts"]["abstained"] == 1


async def test_the_order_that_pictures_are_shown_in_is_told_and_averaged_out() -> None:
    engine = BrightEngine(bias=3.0)
    server = preference_server(engine)
    assert await labels(server, pair(100, 110)) == [0], "the first shown wins, wrongly"
    reply = await post(server, ask(pair(100, 110), order_swap=True))
    [found] = reply["pairs"]
    assert found["label"] == 1
    assert found["given"][0] > 0.9
    assert found["swapped"][1] > 0.9
    assert found["order_gap"] > 0.8
    assert found["towards_first_shown"] > 0.8
    assert counter(server, "roboserve_preference_order_disagreements_total") == 1
    assert await labels(server, pair(100, 110), order_swap=True, tie_threshold=0.5) == [-1]


async def test_votes_are_drawn_each_with_its_own_seed() -> None:
    engine = BrightEngine()
    engine.says = ["0", "1", "1"]
    reply = await post(preference_server(engine), ask(pair(10, 200), protocol="two_stage", votes=3, audit=True))
    [found] = reply["pairs"]
    assert found["chances"] == pytest.approx([1 / 3, 2 / 3, 0.0])
    assert found["label"] == 1
    texts = [each["text"] for each in found["replies"] if each["stage"] == "analysis"]
    assert [text.rpartition(" ")[2] for text in texts] == ["0", "1", "2"]


async def test_equal_pictures_are_ties_and_nobody_is_asked() -> None:
    engine = BrightEngine()
    server = preference_server(engine)
    nudged = grey(90)
    nudged[0, 0, 0] += 1
    reply = await post(server, ask(pair(90, 90), {"goal": GOAL, "first": [grey(90)], "second": [nudged]}))
    assert [found["label"] for found in reply["pairs"]] == [-1, -1]
    assert [found["source"] for found in reply["pairs"]] == ["alike", "alike"]
    assert not engine.asked
    assert reply["counts"]["alike"] == 2


async def test_a_label_is_remembered_by_pixels_goal_protocol_and_options() -> None:
    engine = BrightEngine()
    server = preference_server(engine)
    jpeg = [encode_image(grey(10), "png")], [encode_image(grey(200), "png")]
    same = {"goal": GOAL, "first": jpeg[0], "second": jpeg[1]}
    first = await post(server, ask(pair(10, 200), audit=True))
    again = await post(server, ask(same, audit=True))
    assert again["pairs"][0]["source"] == "cached"
    assert again["pairs"][0]["replies"] == first["pairs"][0]["replies"]
    assert again["usage"]["calls"] == 0
    assert len(engine.asked) == 1
    for changed in (
        ask(pair(10, 201)),
        ask(pair(200, 10)),
        ask(pair(10, 200, goal="the lamp is off")),
        ask(pair(10, 200), protocol="two_stage"),
        ask(pair(10, 200), order_swap=True),
        ask(pair(10, 200), protocol="two_stage", votes=2),
    ):
        reply = await post(server, changed)
        assert reply["pairs"][0]["source"] == "asked"
    assert counter(server, 'roboserve_preference_sources_total source="cached"') == 1
    assert counter(server, 'roboserve_preference_sources_total source="asked"') == 7


async def test_a_threshold_decides_about_a_remembered_label_too() -> None:
    engine = BrightEngine()
    server = preference_server(engine)
    assert await labels(server, pair(100, 104)) == [1]
    assert await labels(server, pair(100, 104), tie_threshold=0.9) == [-1]
    assert len(engine.asked) == 1


async def test_another_adapter_under_the_same_name_forgets_what_the_old_one_said(tmp_path) -> None:
    engine = BrightEngine()
    engine.adapters["preference"] = "first"
    server = preference_server(engine, config={"adapter": "preference"})
    one = await post(server, ask(pair(10, 200)))
    before = server.contract
    assert before.content_hash == one["model"]["content_hash"]
    await engine.load_adapter("preference", tmp_path / "second")
    other = await post(server, ask(pair(10, 200)))
    assert other["pairs"][0]["source"] == "asked"
    assert one["model"]["content_hash"] != other["model"]["content_hash"]
    session = await Session().open(server.app)
    assert (await session.hear())["content_hash"] == other["model"]["content_hash"]
    await session.end()


async def test_what_many_ask_at_once_is_asked_once() -> None:
    engine = BrightEngine(delay_s=0.05)
    server = preference_server(engine)
    replies = await asyncio.gather(*(post(server, ask(pair(10, 200), pair(10, 200))) for _ in range(5)))
    assert len(engine.asked) == 1
    sources = [found["source"] for reply in replies for found in reply["pairs"]]
    assert sources.count("asked") == 1
    assert sources.count("joined") == 9
    assert sum(reply["usage"]["calls"] for reply in replies) == 1


async def test_whoever_asked_first_may_leave_and_the_others_get_their_label() -> None:
    engine = BrightEngine(delay_s=0.2)
    server = preference_server(engine)
    first = asyncio.create_task(post(server, ask(pair(10, 200), deadline_ms=50.0)))
    await asyncio.sleep(0.02)
    second = await post(server, ask(pair(10, 200)))
    assert (await first)["code"] == "deadline_exceeded"
    assert second["pairs"][0]["label"] == 1
    assert len(engine.asked) == 1


async def test_when_all_have_left_the_question_is_withdrawn() -> None:
    engine = BrightEngine(delay_s=5.0)
    server = preference_server(engine)
    reply = await post(server, ask(pair(10, 200), deadline_ms=50.0))
    assert reply["code"] == "deadline_exceeded"
    await asyncio.sleep(0.05)
    assert engine.at_once == 0
    engine.delay_s = 0.0
    assert await labels(server, pair(10, 200)) == [1]


async def test_memory_is_bounded_and_the_least_used_goes_first() -> None:
    engine = BrightEngine()
    server = preference_server(engine, preferences={"cache_bytes": 4096})
    for level in range(20):
        await labels(server, pair(level, 200))
    assert 0 < server.answers.cache.bytes <= 4096
    assert await labels(server, pair(19, 200)) == [1]
    assert len(engine.asked) == 20
    await labels(server, pair(0, 200))
    assert len(engine.asked) == 21


async def test_a_budget_counts_what_is_asked_for_and_refuses_all_or_nothing() -> None:
    engine = BrightEngine()
    server = preference_server(engine, preferences={"budget": {"labels": 5, "job_labels": 3}})
    reply = await post(server, ask(pair(90, 90), pair(10, 200), job="a"))
    assert reply["left"] == {"labels": 3, "job_labels": 1}, "ties count too"
    refused = await post(server, ask(pair(10, 200), pair(11, 200), job="a", request_id="r1"))
    assert refused["code"] == "budget_exhausted"
    assert "job_labels" in refused["message"]
    assert "1 left of 3" in refused["message"]
    assert not refused["retryable"]
    assert refused["request_id"] == "r1"
    assert (await post(server, ask(pair(10, 200), pair(11, 200), pair(12, 200), job="b")))["type"] == "labels"
    refused = await post(server, ask(pair(10, 200), job="c"))
    assert refused["code"] == "budget_exhausted"
    assert "budget.labels" in refused["message"]
    status, _, _ = await http(server.app, "POST", "/label", b"", headers=[])
    assert status == 400


async def test_what_fails_is_given_back() -> None:
    engine = BrightEngine()
    engine.failing = RoboserveError("unavailable", "vlm: the engine stopped")
    server = preference_server(engine, preferences={"budget": {"labels": 2}})
    for _ in range(3):
        assert (await post(server, ask(pair(10, 200), pair(11, 200))))["code"] == "unavailable"
    engine.failing = None
    assert await labels(server, pair(10, 200), pair(11, 200)) == [1, 1]


async def test_tokens_have_a_budget_and_remembered_labels_cost_none() -> None:
    server = preference_server(preferences={"budget": {"tokens": 70}})
    await labels(server, pair(10, 200))
    await labels(server, pair(10, 200))
    reply = await post(server, ask(pair(11, 200)))
    assert reply["left"] == {"tokens": 0}
    assert (await post(server, ask(pair(12, 200))))["code"] == "budget_exhausted"


async def test_labels_come_one_by_one_over_the_websocket() -> None:
    engine = BrightEngine(delay_s=0.02)
    server = preference_server(engine, config={"concurrency": 1})
    session = await Session().open(server.app)
    contract = await session.hear()
    assert contract["family"] == "preference"
    assert contract["protocols"] == ["one_token", "two_stage"]
    pairs = [pair(10, 200), pair(200, 10), pair(5, 5)]
    session.say({"type": "label", **ask(*pairs, stream=True), "request_id": "s"})
    heard = [await session.hear() for _ in range(4)]
    assert [part["type"] for part in heard] == ["label"] * 3 + ["labels"]
    assert {part["index"]: part["pair"]["label"] for part in heard[:3]} == {0: 1, 1: 0, 2: -1}
    assert heard[0]["index"] == 2, "what needs no answer comes first"
    assert heard[3]["counts"]["asked"] == 2
    assert {part["request_id"] for part in heard} == {"s"}
    assert (await session.ask({"type": "ping", "request_id": "p"}))["type"] == "pong"
    await session.end()


async def test_a_stream_whose_peer_leaves_ends_what_it_asked() -> None:
    engine = BrightEngine(delay_s=5.0)
    server = preference_server(engine, preferences={"budget": {"labels": 1}})
    session = await Session().open(server.app)
    await session.hear()
    session.say({"type": "label", **ask(pair(10, 200), stream=True)})
    await asyncio.wait_for(engine.first.wait(), 5)
    await session.end()
    await asyncio.sleep(0.05)
    assert engine.at_once == 0
    engine.delay_s = 0.0
    assert await labels(server, pair(10, 200)) == [1], "its budget was given back"


async def test_a_stream_over_http_is_refused() -> None:
    reply = await post(preference_server(), ask(pair(1, 2), stream=True))
    assert reply["code"] == "invalid_request"
    assert "stream" in reply["message"]


async def test_clips_show_their_frames_in_order() -> None:
    engine = BrightEngine()
    clip = {"goal": GOAL, "first": np.stack([grey(10), grey(20)]), "second": [grey(200), grey(210), grey(220)]}
    assert await labels(preference_server(engine), {**clip, "second": [grey(200), grey(210)]}) == [1]
    [message] = engine.asked[0]
    assert [int(image[0, 0, 0]) for image in message.images] == [10, 20, 200, 210]


async def test_pictures_are_brought_to_the_size_that_the_model_was_taught_on() -> None:
    engine = BrightEngine()
    wording = GENERAL_PROMPT.model_copy(update={"image_size": (16, 24)})
    server = preference_server(engine, config={"wording": wording})
    assert server.contract.image_size == (16, 24)
    await labels(server, pair(10, 200))
    assert [image.shape for image in engine.asked[0][0].images] == [(16, 24, 3)] * 2


async def test_an_engine_gets_no_more_questions_at_once_than_configured() -> None:
    engine = BrightEngine(delay_s=0.01)
    server = preference_server(engine, config={"concurrency": 3})
    await labels(server, *(pair(level, 200) for level in range(12)), order_swap=True)
    assert engine.most_at_once == 3


async def test_an_oracle_is_told_the_truth_and_a_model_is_not() -> None:
    oracle = await PreferenceServer.start(preference_arguments())
    assert oracle.contract.supports == ("clips", "values")
    assert await labels(oracle, pair(1, 2, values=[0.0, 1.0]), pair(2, 1, values=[3.0, 1.0])) == [1, 0]
    assert (await post(oracle, ask(pair(1, 2))))["code"] == "invalid_request"
    reply = await post(preference_server(), ask(pair(1, 2, values=[0.0, 1.0])))
    assert reply["code"] == "invalid_request"
    assert "not told the truth" in reply["message"]
    await oracle.close()


async def test_health_follows_the_engine() -> None:
    engine = BrightEngine()
    server = preference_server(engine)
    assert (await http(server.app, "GET", "/healthz"))[0] == 200
    await engine.close()
    assert (await http(server.app, "GET", "/healthz"))[0] == 503


async def test_the_contract_can_be_read_over_http() -> None:
    status, _, body = await http(preference_server().app, "GET", "/preference/mine/contract")
    assert status == 200
    assert json.loads(body)["limits"]["pairs"] == 64


async def test_a_fault_of_the_model_is_told_without_its_text() -> None:
    engine = BrightEngine()
    engine.failing = RuntimeError("/secret/path")
    reply = await post(preference_server(engine), ask(pair(1, 2)))
    assert reply["code"] == "policy_failed"
    assert "secret" not in reply["message"]


@pytest.mark.parametrize("config", [{"adapter": None, "protocol": "two_stage"}, {"max_frames": 1}])
async def test_the_configuration_decides_what_holds_without_a_choice(config) -> None:
    server = preference_server(config=config)
    reply = await post(server, ask(pair(10, 200)))
    assert reply["protocol"] == config.get("protocol", "one_token")
    assert server.contract.limits["clip_frames"] == config.get("max_frames", 4)


def test_a_configuration_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="images"):
        vlm_labeller(BrightEngine(images=1))
    with pytest.raises(ValueError, match="protocol"):
        vlm_labeller(
            BrightEngine(), wording=GENERAL_PROMPT.model_copy(update={"two_stage": None}), protocol="two_stage"
        )
    with pytest.raises(ValueError, match="under_way"):
        preference_arguments(preferences={"pairs": 64, "under_way": 10})
