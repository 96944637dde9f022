"""Who may call what, over the websocket, over HTTP and with a stock client's key."""

from __future__ import annotations

import json

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from clients.contract import PROTOCOL
from clients.wire import decode
from tests.serving.speaking import LIMIT_S, act, flat, post, talk

pytestmark = pytest.mark.usefixtures("neighbour")

LOCKED = "/policy/locked"

REFUSED = {
    "no key": (None, 401, "unauthenticated", ["Authorization: Bearer"]),
    "unknown key": ("rsk_" + "x" * 43, 401, "unauthenticated", ["not known"]),
    "expired key": ("expired", 401, "unauthenticated", ["'old'", "expired on"]),
    "another policy's key": ("other robot", 403, "forbidden", ["'arm-2'", "scope", "policy/locked"]),
    "a job's key": ("job", 403, "forbidden", ["'relabel'", "scope"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_handshake_is_refused_with_a_typed_error(platform, case):
    name, status, code, words = REFUSED[case]
    with pytest.raises(InvalidStatus) as refused, talk(platform, LOCKED, key=platform.keys.get(name, name)):
        pass
    assert refused.value.response.status_code == status
    check(json.loads(refused.value.response.body), code, words)


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("route", ["/act", "/reset", "/contract"])
def test_http_is_refused_with_a_typed_error(platform, case, route):
    name, status, code, words = REFUSED[case]
    key = platform.keys.get(name, name)
    if route == "/contract":
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        response = httpx.get(platform.url(LOCKED + route), headers=headers, timeout=LIMIT_S)
        error = response.json()
    else:
        response = post(platform, LOCKED + route, act(), key=key)
        error = decode(response.content)
    assert response.status_code == status
    check(error, code, words)


def check(error, code, words):
    assert (error["type"], error["code"], error["retryable"]) == ("error", code, False)
    assert all(word in error["message"] for word in words), error["message"]
    assert "rsk_" not in error["message"]


@pytest.mark.parametrize("name", ["robot", "admin"])
def test_the_right_key_is_served_in_every_way(platform, name):
    key = platform.keys[name]
    with talk(platform, LOCKED, key=key) as session:
        assert session.ask(act())["type"] == "action"
    with talk(platform, LOCKED, key=key, native=False) as session:
        assert session.ask(flat())["actions"].shape == (16, 4)
    assert post(platform, LOCKED + "/act", act(), key=key).status_code == 200


def test_the_key_of_a_stock_client_is_understood(platform):
    headers = {"Authorization": f"Api-Key {platform.keys['robot']}"}
    with connect(platform.websocket(LOCKED), additional_headers=headers, max_size=None) as session:
        assert decode(session.recv(timeout=LIMIT_S))["model"] == "locked"


@pytest.mark.parametrize(
    "value", ["Basic {key}", "{key}", "Bearer", "Bearer {key} x", "Bearer x{key}", "bearer\t{key}"]
)
def test_a_header_of_another_form_is_no_key(platform, value):
    headers = {"Authorization": value.format(key=platform.keys["robot"])}
    response = httpx.get(platform.url(LOCKED + "/contract"), headers=headers, timeout=LIMIT_S)
    assert response.status_code == 401


def test_two_keys_at_once_are_refused(platform):
    headers = [("Authorization", f"Bearer {platform.keys[name]}") for name in ("robot", "admin")]
    response = httpx.get(platform.url(LOCKED + "/contract"), headers=headers, timeout=LIMIT_S)
    assert response.status_code == 401
    assert "more than once" in response.json()["message"]


def test_a_key_in_the_address_is_no_key(platform):
    response = httpx.get(platform.url(f"{LOCKED}/contract?key={platform.keys['robot']}"), timeout=LIMIT_S)
    assert response.status_code == 401


def test_metrics_are_the_operators(platform):
    def status(name):
        headers = {"Authorization": f"Bearer {platform.keys[name]}"}
        return httpx.get(platform.url(LOCKED + "/metrics"), headers=headers, timeout=LIMIT_S).status_code

    assert [status(name) for name in ("robot", "job", "admin")] == [403, 403, 200]
    assert httpx.get(platform.url(LOCKED + "/metrics"), timeout=LIMIT_S).status_code == 401


def test_health_needs_no_key_and_tells_nothing(platform):
    response = httpx.get(platform.url(LOCKED + "/healthz"), timeout=LIMIT_S)
    assert (response.status_code, response.text) == (200, "OK\n")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "https://127.0.0.1.evil.example", "null", "http://[bad", "http://192.168.0.7:8000"],
)
def test_without_keys_a_web_page_of_elsewhere_is_refused(platform, origin):
    response = httpx.get(platform.url("/contract"), headers={"Origin": origin}, timeout=LIMIT_S)
    assert response.status_code == 403
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(platform.websocket("/"), subprotocols=[PROTOCOL], origin=origin),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_without_keys_a_page_of_this_machine_is_served(platform):
    headers = {"Origin": "http://localhost:3000"}
    assert httpx.get(platform.url("/contract"), headers=headers, timeout=LIMIT_S).status_code == 200


def test_a_key_opens_no_other_model(platform):
    """Scopes hold on an open application as well as its own: an open one asks nobody, a locked one asks everybody."""
    for path in ("/policy/nobody", "/policy/nobody/act", "/reward/nobody/score", "/policy/locked/nothing"):
        response = post(platform, path, act(), key=platform.keys["admin"])
        assert response.status_code == 404, path
        assert decode(response.content)["code"] == "not_found"
