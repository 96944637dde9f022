"""The evaluation server's routes, spoken to in the bytes that its own client sends."""

from __future__ import annotations

import asyncio
import io
import json

import httpx
import numpy as np
import pytest
import yaml

from serving.auth import make_key
from tests.serving.asgi import http
from tests.serving.rewards import bright, grey, reward_server
from tests.serving.test_reward_score import npy

LEVELS = (10, 40, 70, 100, 130, 160, 190, 220, 250, 30)
FACTS = {"id", "revision", "content_hash", "architecture", "dtype", "prompt_version"}


@pytest.fixture
async def served():
    server = reward_server({"max_frames": 12}, rewards={"clips": 4})
    yield server
    await server.close()


def trajectory(frames, task="lift it", **more):
    return {"frames": frames, "task": task, "id": "0", "video_embeddings": None, **more}


def progress(frames, **more):
    return {"sample_type": "progress", "trajectory": trajectory(frames, **more)}


def preference(chosen, rejected):
    return {
        "sample_type": "preference",
        "chosen_trajectory": trajectory(chosen),
        "rejected_trajectory": trajectory(rejected),
    }


def form(samples, **fields):
    """The request of scripts/example_inference.py: arrays in .npy parts, and references to them in JSON fields."""
    files, data = {}, dict(fields)
    for index, given in enumerate(samples):
        sample = {name: dict(value) if isinstance(value, dict) else value for name, value in given.items()}
        for name, value in sample.items():
            if isinstance(value, dict) and isinstance(value.get("frames"), np.ndarray):
                key = f"sample_{index}_{name}_frames"
                files[key] = (f"{key}.npy", npy(value["frames"]), "application/octet-stream")
                value |= {"frames": {"__numpy_file__": key}, "frames_shape": list(value["frames"].shape)}
        data[f"sample_{index}"] = json.dumps(sample)
    return httpx.Request("POST", "http://server/", data=data, files=files or {"none": ("none.txt", b"")})


async def post(server, request, route="/evaluate_batch_npy", **where):
    headers = [("Content-Type", request.headers["content-type"]), *where.pop("headers", [])]
    status, _, body = await http(server.app, "POST", route, request.read(), headers=headers, **where)
    return status, json.loads(body)


async def ask(server, samples, **fields):
    status, answer = await post(server, form(samples, **fields))
    assert status == 200, answer
    return answer


async def test_the_clients_form_gives_a_value_for_every_frame(served):
    answer = await ask(served, [progress(grey(*LEVELS), metadata={"subsequence_length": 10})], use_frame_steps="false")
    np.testing.assert_allclose(answer["outputs_progress"]["progress_pred"], [bright(*LEVELS)], atol=1e-6)
    np.testing.assert_array_equal(answer["outputs_success"]["success_probs"], [bright(*LEVELS) > 0.5])
    assert answer["outputs_preference"] is None
    facts = answer["served"]
    assert set(facts["model"]) == FACTS
    assert (facts["mode"], facts["frame_policy"]) == ("single_pass", "all")
    assert facts["shown"] == [[list(range(10))]]


async def test_with_frame_steps_every_frame_is_read_from_four_floored_ones_up_to_it(served):
    answer = await ask(served, [progress(grey(*LEVELS))], use_frame_steps="true")
    np.testing.assert_allclose(answer["outputs_progress"]["progress_pred"], [bright(*LEVELS)], atol=1e-6)
    assert (answer["served"]["mode"], answer["served"]["frame_policy"]) == ("prefix", "floor-4")
    [shown] = answer["served"]["shown"]
    assert shown == [np.linspace(0, last, 4, dtype=int).tolist() for last in range(10)]


async def test_one_frame_gives_one_value(served):
    for switch in ("true", "false"):
        answer = await ask(served, [progress(grey(51))], use_frame_steps=switch)
        np.testing.assert_allclose(answer["outputs_progress"]["progress_pred"], [[0.2]], atol=1e-6)
        assert len(answer["outputs_success"]["success_probs"][0]) == 1


@pytest.mark.parametrize(
    ("switch", "mode"),
    [("1", "prefix"), ("True", "prefix"), ("TRUE", "prefix"), ("0", "single_pass"), ("False", "single_pass")],
)
async def test_a_switch_in_any_spelling(served, switch, mode):
    answer = await ask(served, [progress(grey(1, 2))], use_frame_steps=switch)
    assert answer["served"]["mode"] == mode


@pytest.mark.parametrize("switch", ["true", "false"])
async def test_kinds_and_lengths_may_be_mixed(served, switch):
    samples = [
        progress(grey(10, 20, 30)),
        preference(grey(10, 200), grey(10, 20)),
        progress(grey(40)),
        preference(grey(9), grey(90)),
    ]
    answer = await ask(served, samples, use_frame_steps=switch)
    first, second = answer["outputs_progress"]["progress_pred"]
    np.testing.assert_allclose(first, bright(10, 20, 30), atol=1e-6)
    np.testing.assert_allclose(second, bright(40), atol=1e-6)
    assert answer["outputs_preference"]["predictions"] == [1, 0]
    assert answer["outputs_preference"]["preference_labels"] == [1.0, 1.0]
    better, worse = answer["outputs_preference"]["prediction_probs"]
    assert better > 0.99
    assert worse < 0.1


async def test_preferences_alone_leave_the_other_groups_null(served):
    answer = await ask(served, [preference(grey(1), grey(2))])
    assert answer["outputs_progress"] is None
    assert answer["outputs_success"] is None


@pytest.mark.parametrize("switch", [True, False, "1", 0, None])
async def test_json_takes_nested_lists_and_gives_the_same(served, switch):
    body = json.dumps({"samples": [progress(grey(*LEVELS[:3], size=4).tolist())], "use_frame_steps": switch}).encode()
    status, _, reply = await http(served.app, "POST", "/evaluate_batch", body)
    assert status == 200
    np.testing.assert_allclose(json.loads(reply)["outputs_progress"]["progress_pred"], [bright(*LEVELS[:3])], atol=1e-6)


async def test_health_and_descriptions(served):
    await ask(served, [progress(grey(1, 2))])
    seen = {}
    for route in ("/health", "/gpu_status", "/model_info"):
        status, headers, body = await http(served.app, "GET", route)
        assert (status, headers[b"content-type"]) == (200, b"application/json")
        seen[route] = json.loads(body)
    assert seen["/health"] == {"status": "healthy", "available_gpus": 1, "total_gpus": 1}
    assert seen["/gpu_status"]["gpu_stats"]["0"]["total_requests"] == 1
    assert seen["/gpu_status"]["gpu_stats"]["0"]["status"] == "ready"
    assert set(seen["/model_info"]) == {"model_path", "num_gpus", "experiment_config", "model_architecture"}
    assert seen["/model_info"]["experiment_config"]["data"]["max_frames"] == 12


async def test_keys_hold_for_all_but_health(tmp_path):
    key = make_key("job", "job")
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": [key.record.model_dump(mode="json")]}), "utf-8")
    server = reward_server(auth={"keys_file": str(tmp_path / "keys.yaml")})
    request = form([progress(grey(1, 2))])
    status, error = await post(server, request)
    assert (status, error["code"]) == (401, "unauthenticated")
    status, _ = await post(server, request, headers=[("Authorization", f"Bearer {key.secret}")])
    assert status == 200
    assert [(await http(server.app, "GET", route))[0] for route in ("/health", "/gpu_status", "/model_info")] == [
        200,
        401,
        401,
    ]
    await server.close()


async def test_callers_of_both_dialects_ride_together():
    server = reward_server({"seconds_per_frame": 0.002})
    before = server.model.forwards
    rng = np.random.default_rng(0)
    requests = [form([progress(grey(*rng.integers(0, 256, 8)))]) for _ in range(12)]
    replies = await asyncio.gather(*(post(server, request) for request in requests))
    assert [status for status, _ in replies] == [200] * 12
    assert server.model.forwards - before < 8
    await server.close()


def pickled():
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


def with_file(data):
    sample = json.dumps(progress({"__numpy_file__": "f"}))
    return httpx.Request("POST", "http://server/", data={"sample_0": sample}, files={"f": ("f.npy", data)})


BAD = [
    (form([]), 400, "samples: none"),
    (form([progress(grey(1))] * 5), 413, "samples: 5, limit 4"),
    (form([progress(grey(*range(13)))]), 413, "all shows 13 frames of sample_0.trajectory, limit 12"),
    (form([progress(np.zeros((0, 4, 4, 3), np.uint8))]), 400, "sample_0.trajectory.frames: has no frames"),
    (form([progress(np.zeros((10_000, 1, 1, 3), np.uint8))]), 413, "10000 frames, limit 1024"),
    (form([progress(np.full((2, 4, 4, 3), np.nan, np.float32))]), 400, "dtype float32, needs uint8"),
    (form([progress(grey(1), task="x" * 100_000)]), 413, "sample_0.trajectory.task: 100000 characters, limit 512"),
    (form([progress(grey(1), task=None)]), 400, "sample_0.trajectory.task: must be text"),
    (form([progress(None)]), 400, "sample_0.trajectory.frames: must be a .npy file or nested lists"),
    (form([progress(["/etc/passwd"])]), 400, "names files, which this server does not open"),
    (form([progress({"__numpy_file__": "elsewhere"})]), 400, "no part of the form is named 'elsewhere'"),
    (form([preference(grey(1, 2), grey(1))]), 400, "first shows 2 frames, second 1"),
    (form([{"sample_type": "similarity"}]), 400, "sample_0.sample_type: 'similarity', must be"),
    (form([{**progress(grey(1)), "trajectory": 3}]), 400, "sample_0.trajectory: must be a map"),
    (form([progress(grey(1))], use_frame_steps="maybe"), 400, "use_frame_steps: 'maybe', must be true or false"),
    (form([progress(grey(1))], use_frame_step="true"), 400, "fields use_frame_step; known are"),
    (form([progress(grey(1))], sample_2="{}"), 400, "fields sample_2; known are"),
    (form([], sample_0="{"), 400, "sample_0: is not JSON"),
    (form([], sample_0="[" * 100_000), 400, "sample_0: is not JSON"),
    (form([], sample_0="[" * 4_000_001), 413, "4000001 values in JSON, limit 4000000"),
    (with_file(pickled()), 400, "needs numbers"),
    (with_file(b"MZ\x00 no array"), 400, "is no .npy file"),
    (httpx.Request("POST", "http://server/", files=[(f"f{i}", b"") for i in range(40)]), 413, "more than 37 parts"),
    (httpx.Request("POST", "http://server/", files=[("f", b""), ("f", b"")]), 400, "two parts are named 'f'"),
    (httpx.Request("POST", "http://server/", files=[("f" * 200, b"")]), 413, "name of 200 characters, limit 128"),
    (httpx.Request("POST", "http://server/", json={}), 400, "must be multipart/form-data"),
]


@pytest.mark.parametrize(("request_", "status", "text"), BAD, ids=[text for _, _, text in BAD])
async def test_a_bad_form_is_a_typed_error_and_the_next_is_answered(served, request_, status, text):
    given, error = await post(served, request_)
    assert (given, error["type"]) == (status, "error")
    assert text in error["message"]
    await ask(served, [progress(grey(1))])


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"[]", "body: must be a map"),
        (b"{}", "samples: must be a list"),
        (b'{"samples": [NaN]}', "samples[0].sample_type"),
        (json.dumps({"samples": [progress([[[[1, 2, 300]]]])]}).encode(), "whole numbers from 0 to 255"),
        (json.dumps({"samples": [progress([[[[0.5, 1, 2]]]])]}).encode(), "whole numbers from 0 to 255"),
        (json.dumps({"samples": [progress([[[[float("nan")] * 3]]])]}).encode(), "whole numbers from 0 to 255"),
        (json.dumps({"samples": [progress([[[[1, 2, 3]]], [[[1, 2]]]])]}).encode(), "nested lists of equal lengths"),
        (json.dumps({"samples": [progress([[[["a", "b", "c"]]]])]}).encode(), "nested lists of equal lengths"),
    ],
)
async def test_bad_json_is_a_typed_error(served, body, text):
    status, _, reply = await http(served.app, "POST", "/evaluate_batch", body)
    assert status == 400
    assert text in json.loads(reply)["message"]


async def test_a_form_that_breaks_off_is_refused(served):
    request = form([progress(grey(1, 2))])
    headers = [("Content-Type", request.headers["content-type"])]
    whole = request.read()
    for length in (0, 40, len(whole) // 2, len(whole) - 5):
        status, _, body = await http(served.app, "POST", "/evaluate_batch_npy", whole[:length], headers=headers)
        assert (status, json.loads(body)["code"]) == (400, "malformed")


async def test_a_form_may_be_larger_than_a_message_and_all_bodies_together_may_not():
    small = {"message_bytes": 20_000, "http_requests": 3}
    server = reward_server(limits=small, rewards={"upload_bytes": 50_000})
    assert (await post(server, form([progress(grey(*LEVELS))])))[0] == 200  # 30 kB
    status, error = await post(server, form([progress(grey(*LEVELS, *LEVELS))]))
    assert (status, error["code"]) == (413, "too_large")
    status, _, _ = await http(server.app, "POST", "/evaluate_batch", b" " * 30_000)
    assert status == 413
    slow = reward_server({"seconds_per_frame": 0.02}, limits=small, rewards={"upload_bytes": 50_000})
    replies = await asyncio.gather(*(post(slow, form([progress(grey(*LEVELS))])) for _ in range(3)))
    assert [status for status, _ in replies] == [200, 429, 429]
    assert "bytes of bodies under way, limit 60000" in replies[1][1]["message"]
    assert (await post(slow, form([progress(grey(*LEVELS))])))[0] == 200
    await server.close()
    await slow.close()
