"""The stock client of the field, from PyPI, unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.serving.speaking import flat, image

websocket_client_policy = pytest.importorskip(
    "openpi_client.websocket_client_policy", reason="pip install --no-deps openpi-client==0.1.2"
)
action_chunk_broker = pytest.importorskip("openpi_client.action_chunk_broker")
image_tools = pytest.importorskip("openpi_client.image_tools")


def client(host: str, port: int | None = None, **arguments):
    return websocket_client_policy.WebsocketClientPolicy(host, port, **arguments)


def test_it_drives_the_default_policy_at_a_bare_host_and_port(platform):
    policy = client("127.0.0.1", platform.port)
    metadata = policy.get_server_metadata()
    assert metadata["model"] == "zero"
    assert metadata["control_hz"] == 20.0
    assert metadata["openpi_keys"]["images"] == {"observation/front": "front"}
    first = policy.infer(flat())
    assert first["actions"].shape == (16, 4)
    assert first["actions"].dtype == np.float32
    np.testing.assert_array_equal(first["state"], np.zeros(8, np.float32))
    assert first["policy_timing"]["infer_ms"] >= 0
    assert first["server_timing"].keys() == {"infer_ms"}
    for _ in range(5):
        later = policy.infer(flat())
        assert later["server_timing"].keys() == {"infer_ms", "prev_total_ms"}
        assert later["server_timing"]["prev_total_ms"] > 0
        assert later["server_timing"]["infer_ms"] >= later["policy_timing"]["infer_ms"]


@pytest.mark.parametrize("path", ["", "/", "/policy/zero", "/any/path"])
def test_it_drives_a_policy_at_a_full_address(platform, path):
    policy = client(f"ws://127.0.0.1:{platform.port}{path}")
    assert policy.infer(flat())["actions"].shape == (16, 4)


def test_its_nested_observations_and_its_own_image_tools_fit(platform):
    policy = client("127.0.0.1", platform.port)
    big = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    nested = {"observation": {"front": big, "state": np.zeros(8)}, "prompt": "go"}
    assert policy.infer(nested)["actions"].shape == (16, 4)
    padded = image_tools.resize_with_pad(big, 32, 32)
    assert policy.infer(flat(**{"observation/front": padded}))["actions"].shape == (16, 4)
    channels_first = np.moveaxis(image(), 2, 0)
    assert policy.infer(flat(**{"observation/front": channels_first}))["actions"].shape == (16, 4)


def test_an_error_is_what_it_takes_for_one_and_the_next_connection_works(platform):
    policy = client("127.0.0.1", platform.port)
    state = np.zeros(8)
    state[3] = np.nan
    with pytest.raises(RuntimeError, match="invalid_state: observation/state: 's3' is nan") as caught:
        policy.infer(flat(**{"observation/state": state}))
    assert "Traceback" not in str(caught.value)
    with pytest.raises(ConnectionClosed) as closed:
        policy.infer(flat())
    assert closed.value.rcvd.code == 1011
    assert client("127.0.0.1", platform.port).infer(flat())["actions"].shape == (16, 4)


def test_its_api_key_is_accepted_and_needed(platform):
    address = f"ws://127.0.0.1:{platform.port}/policy/locked"
    assert client(address, api_key=platform.keys["robot"]).infer(flat())["actions"].shape == (16, 4)
    for key in (None, "wrong", platform.keys["other robot"]):
        with pytest.raises(InvalidStatus) as refused:
            client(address, api_key=key)
        assert refused.value.response.status_code in (401, 403)


def test_its_chunk_broker_plays_a_chunk_row_by_row(platform):
    policy = client(f"ws://127.0.0.1:{platform.port}/policy/replay")
    whole = client(f"ws://127.0.0.1:{platform.port}/policy/replay")
    broker = action_chunk_broker.ActionChunkBroker(policy, action_horizon=8)
    chunks = [whole.infer(flat())["actions"] for _ in range(2)]
    for index in range(16):
        row = broker.infer(flat())["actions"]
        np.testing.assert_array_equal(row, chunks[index // 8][index % 8])
    broker.reset()
