from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import inspect
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from clients import wire
from clients.connection import parse_address
from clients.contract import PROTOCOL, Camera
from clients.errors import RoboserveError
from clients.images import decode_image, fitted_size, resize_with_pad
from clients.policy import ActOptions, AsyncPolicyClient, PolicyClient, fit_images
from tests.robot_client.fake_server import FakeServer, make_contract


def ask(client, **options):
    return client.act(images={}, state=np.zeros(4), instruction="go", **options)


@pytest.fixture
def server():
    with FakeServer(contract=make_contract(cameras=())) as running:
        yield running


@pytest.fixture
def client(server):
    with PolicyClient(server.url, timeout_s=5.0) as connected:
        yield connected


def run(work):
    return asyncio.run(asyncio.wait_for(work, 20.0))


def test_an_answer_carries_actions_model_timings_and_batch(client, server):
    server.plan = lambda message: np.full((16, 2), 0.5)
    reply = ask(client, options=ActOptions(return_model_actions=True))
    assert reply.actions.dtype == np.float32
    assert reply.actions.flags.writeable
    np.testing.assert_array_equal(reply.actions, np.full((16, 2), 0.5))
    np.testing.assert_array_equal(reply.model_actions, np.full((16, 2), 1.0))
    assert (reply.model.id, reply.model.revision, reply.batch_size) == ("fake", "1", 1)
    assert set(reply.timings) == {"queue", "batch_wait", "decode", "forward", "encode", "total"}
    assert reply.round_trip_ms > 0


def test_only_options_that_are_set_travel(client, server):
    ask(client)
    ask(client, session="s", deadline_ms=50.0, options=ActOptions(seed=3, leftover=np.ones((2, 2))))
    plain, full = server.acts()
    assert plain["options"] == {}
    assert (full["session"], full["deadline_ms"], full["options"]["seed"]) == ("s", 50.0, 3)
    assert full["options"]["leftover"].dtype == np.float32


def test_threads_share_one_connection_and_each_gets_its_own_answer(client, server):
    def plan(message):
        value = float(message["observation"]["state"][0])
        time.sleep(0.002 * (7 - value % 7))
        return np.full((16, 2), value / 100)

    server.plan = plan
    with ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(
                lambda number: client.act(images={}, state=np.full(4, number), instruction="").actions[0, 0], range(64)
            )
        )
    assert replies == pytest.approx([number / 100 for number in range(64)])
    assert len(server.connections) == 1


def test_no_answer_in_time_is_a_typed_error_and_the_late_answer_disturbs_nobody(client, server):
    server.faults.delay_s = 0.3
    with pytest.raises(RoboserveError) as caught:
        ask(client, timeout_s=0.05)
    assert caught.value.code == "deadline_exceeded"
    assert caught.value.request_id == server.acts()[0]["request_id"]
    server.faults.delay_s = 0.0
    time.sleep(0.3)
    server.plan = lambda message: np.full((16, 2), 0.25)
    assert ask(client).actions[0, 0] == 0.25


def test_a_typed_error_keeps_its_code_and_the_connection(client, server):
    server.faults.error = RoboserveError("invalid_state", "observation.state: NaN at 2")
    with pytest.raises(RoboserveError, match="NaN at 2") as caught:
        ask(client)
    assert (caught.value.code, caught.value.retryable) == ("invalid_state", False)
    server.faults.error = None
    assert ask(client).batch_size == 1


@pytest.mark.parametrize(
    "actions",
    [
        np.full((16, 2), np.nan),
        np.full((16, 2), np.inf),
        np.zeros((15, 2)),
        np.zeros((16, 3)),
        np.zeros(16),
    ],
)
def test_an_answer_that_no_robot_may_play_is_refused(client, server, actions):
    server.plan = lambda message: actions
    with pytest.raises(RoboserveError) as caught:
        ask(client)
    assert caught.value.code == "invalid_output"


def test_garbage_ends_the_connection_with_a_typed_error(client, server):
    server.faults.garbage = True
    for _ in range(2):
        with pytest.raises(RoboserveError) as caught:
            ask(client)
        assert caught.value.code == "malformed"


def test_a_lost_connection_wakes_every_waiting_thread(client, server):
    server.faults.silent = True
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(ask, client, timeout_s=10.0) for _ in range(4)]
        while len(server.acts()) < 4:
            time.sleep(0.005)
        server.kill()
        codes = {call.exception(timeout=5.0).code for call in calls}
    assert codes == {"unavailable"}


def test_closing_wakes_who_waits(client, server):
    server.faults.silent = True
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(ask, client, timeout_s=10.0)
        while not server.acts():
            time.sleep(0.005)
        client.close()
        assert call.exception(timeout=5.0).code == "unavailable"


def test_reset_and_ping_and_notices(client, server):
    client.reset("s")
    assert server.messages[-1]["type"] == "reset"
    assert client.ping() > 0
    assert not client.draining
    server.notify({"type": "draining"})
    give_up = time.monotonic() + 5.0
    while not client.draining and time.monotonic() < give_up:
        client.poll()
    assert client.draining
    assert ask(client).batch_size == 1


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (b"\x80", "contract_mismatch"),  # the empty map that a stock openpi server greets with
        (b"\xc1", "malformed"),
        ("hello", "malformed"),
        (wire.encode([1, 2]), "contract_mismatch"),
        (wire.encode(RoboserveError("unavailable", "loading").to_map()), "unavailable"),
        (wire.encode({**make_contract().to_map(), "protocol": "roboserve.v9"}), "contract_mismatch"),
    ],
)
def test_a_server_that_greets_otherwise_is_refused(first, code):
    with FakeServer(first_frame=first) as server:
        with pytest.raises(RoboserveError) as caught:
            PolicyClient(server.url)
        assert caught.value.code == code
        with pytest.raises(RoboserveError) as caught:
            run(AsyncPolicyClient.open(server.url))
        assert caught.value.code == code


def test_a_wrong_key_is_unauthenticated_and_one_that_breaks_the_header_is_not_sent():
    with FakeServer(api_key="sesame") as server:
        for key, code in (("guess", "unauthenticated"), (None, "unauthenticated"), ("a\r\nb", "unauthenticated")):
            with pytest.raises(RoboserveError) as caught:
                PolicyClient(server.url, api_key=key)
            assert caught.value.code == code
        with PolicyClient(server.url, api_key="sesame") as client:
            assert client.contract.model == "fake"


@contextlib.contextmanager
def listening():
    """A socket that accepts and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server, f"ws://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_accepts_and_says_nothing_is_given_up():
    with listening() as (_, url):
        for connect in (lambda: PolicyClient(url, connect_timeout_s=0.3), lambda: run(open_async(url))):
            started = time.monotonic()
            with pytest.raises(RoboserveError) as caught:
                connect()
            assert caught.value.code == "unavailable"
            assert time.monotonic() - started < 8.0


async def open_async(url):
    return await AsyncPolicyClient.open(url, connect_timeout_s=0.3)


def upgrade(peer: socket.socket, greeting: bytes) -> None:
    """Answer a websocket handshake by hand, and send one binary frame."""
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        request += peer.recv(4096)
    headers = dict(line.split(": ", 1) for line in request.decode().split("\r\n")[1:] if ": " in line)
    digest = hashlib.sha1(
        headers["Sec-WebSocket-Key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False
    ).digest()
    answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    answer += f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
    frame = b"\x82\x7e" + len(greeting).to_bytes(2, "big") + greeting if greeting else b""
    peer.sendall(answer.encode() + frame)


@contextlib.contextmanager
def upgraded(greeting: bytes):
    """A server that takes one connection, greets, and neither reads nor says anything more."""
    peers = []
    with listening() as (server, url):

        def serve() -> None:
            peers.append(server.accept()[0])
            upgrade(peers[0], greeting)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield url
        finally:
            thread.join(10.0)
            for peer in peers:
                peer.close()


def test_a_server_that_upgrades_and_then_says_nothing_is_given_up():
    with upgraded(b"") as url, pytest.raises(RoboserveError) as caught:
        PolicyClient(url, connect_timeout_s=0.3)
    assert caught.value.code == "unavailable"


def test_sending_to_a_peer_that_reads_nothing_ends_in_time():
    large = {"top": np.zeros((2000, 2000, 3), np.uint8)}
    with upgraded(wire.encode(make_contract(cameras=()).to_map())) as url, PolicyClient(url, timeout_s=0.5) as client:
        started = time.monotonic()
        with pytest.raises(RoboserveError) as caught:
            client.act(images=large, state=np.zeros(4), instruction="")
        assert caught.value.code == "unavailable"
        assert time.monotonic() - started < 10.0


def test_nothing_listens():
    with listening() as (server, url):
        server.close()
        for connect in (lambda: PolicyClient(url), lambda: run(AsyncPolicyClient.open(url))):
            with pytest.raises(RoboserveError, match="cannot connect") as caught:
                connect()
            assert caught.value.code == "unavailable"


@pytest.mark.parametrize(
    ("given", "policy", "uri"),
    [
        ("robot-server", None, "ws://robot-server:8000/"),
        ("10.0.0.1:9000", "arm", "ws://10.0.0.1:9000/policy/arm"),
        ("wss://lab.example", "a b", "wss://lab.example:443/policy/a%20b"),
        ("ws://lab.example/policy/arm", None, "ws://lab.example:80/policy/arm"),
        ("https://lab.example:8443", None, "wss://lab.example:8443/"),
        ("ws://[::1]:8000", None, "ws://[::1]:8000/"),
    ],
)
def test_addresses(given, policy, uri):
    assert parse_address(given, policy).uri == uri


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ("ftp://lab", None),
        ("ws://", None),
        ("ws://user:secret@lab", None),
        ("ws://lab/?key=secret", None),
        ("ws://lab:notaport", None),
        ("ws://lab/policy/a", "b"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(given, policy):
    with pytest.raises(RoboserveError) as caught:
        parse_address(given, policy)
    assert caught.value.code == "invalid_request"
    assert "secret" not in caught.value.message


def test_asyncio_many_calls_are_under_way_at_once(server):
    server.faults.delay_s = 0.3
    server.plan = lambda message: np.full((16, 2), float(message["observation"]["state"][0]) / 100)

    async def work():
        async with await AsyncPolicyClient.open(server.url) as client:
            replies = await asyncio.gather(
                *(client.act(images={}, state=np.full(4, number), instruction="") for number in range(20))
            )
            await client.reset("s")
            assert await client.ping() > 0
            return [reply.actions[0, 0] for reply in replies]

    assert run(work()) == pytest.approx([number / 100 for number in range(20)])
    assert server.most_under_way == 20


def test_asyncio_deadlines_errors_and_a_lost_connection_are_typed(server):
    async def work():
        codes = []
        async with await AsyncPolicyClient.open(server.url) as client:
            server.faults.silent = True
            for act in ("silent", "error", "kill", "after"):
                if act == "error":
                    server.faults.silent, server.faults.error = False, RoboserveError("overloaded", "queue: full")
                if act == "kill":
                    server.faults.error, server.faults.drop = None, True
                with pytest.raises(RoboserveError) as caught:
                    await ask(client, timeout_s=0.1 if act == "silent" else 5.0)
                codes.append(caught.value.code)
        return codes

    assert run(work()) == ["deadline_exceeded", "overloaded", "unavailable", "unavailable"]


def test_both_clients_offer_the_same_calls():
    for name in ("act", "reset", "ping"):
        sync, other = (inspect.signature(getattr(kind, name)) for kind in (PolicyClient, AsyncPolicyClient))
        assert sync.parameters.keys() == other.parameters.keys()


# ---- images on their way to the wire


def scene(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=2).astype(np.uint8)


def fitted(image: np.ndarray, codec: str, quality: int = 90) -> np.ndarray:
    height, width = image.shape[:2]
    contract = make_contract(cameras=(Camera("top", height, width),))
    sent = fit_images(contract, {"top": image, "spare": image}, codec=codec, quality=quality)
    assert list(sent) == ["top"]
    return decode_image(wire.decode(wire.encode(sent))["top"], field="top")


def test_raw_and_png_are_exact_and_jpeg_is_close():
    image = scene(61, 83)
    np.testing.assert_array_equal(fitted(image, "raw"), image)
    np.testing.assert_array_equal(fitted(image, "png"), image)
    assert np.abs(fitted(image, "jpeg", 95).astype(int) - image).mean() < 1.0  # of 255; 0.6 in libjpeg-turbo


@pytest.mark.parametrize(
    ("size", "target"), [((480, 640), (224, 224)), ((37, 101), (64, 48)), ((101, 37), (33, 65)), ((1, 7), (5, 5))]
)
def test_resizing_keeps_proportions_and_centres_on_black_for_odd_sizes(size, target):
    image = np.maximum(scene(*size), 1)
    result = resize_with_pad(image, *target)
    ratio = max(size[1] / target[1], size[0] / target[0])
    height, width = max(1, int(size[0] / ratio)), max(1, int(size[1] / ratio))
    assert fitted_size(size, target) == (height, width)
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    oracle = np.zeros((*target, 3), np.uint8)
    inner = Image.fromarray(image).resize((width, height), resample=Image.Resampling.BILINEAR)
    oracle[top : top + height, left : left + width] = np.asarray(inner)
    np.testing.assert_array_equal(result, oracle)


@pytest.mark.parametrize(
    "images",
    [
        {},
        {"top": np.zeros((4, 4), np.uint8)},
        {"top": np.zeros((4, 4, 3), np.float32)},
        {"top": np.zeros((0, 4, 3), np.uint8)},
    ],
)
def test_an_image_that_cannot_be_sent_is_named(images):
    with pytest.raises(RoboserveError, match=r"images\.top") as caught:
        fit_images(make_contract(cameras=(Camera("top", 8, 8),)), images)
    assert caught.value.code == "invalid_image"
