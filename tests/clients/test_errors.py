from __future__ import annotations

import copy

import pytest

from clients.errors import ERROR_TABLE, RoboserveError
from clients.wire import decode, encode

GRPC_CODES = {
    "INVALID_ARGUMENT",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "NOT_FOUND",
    "DEADLINE_EXCEEDED",
    "ABORTED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "UNAVAILABLE",
}


@pytest.mark.parametrize("code", ERROR_TABLE)
def test_every_code_survives_the_wire(code: str) -> None:
    error = RoboserveError(code, "state[3]: 7.5, limit 1.0", request_id="r1")
    got = RoboserveError.from_map(decode(encode(error.to_map())))
    assert (got.code, got.message, got.request_id, got.retryable) == (
        code,
        "state[3]: 7.5, limit 1.0",
        "r1",
        error.retryable,
    )


@pytest.mark.parametrize("code", ERROR_TABLE)
def test_every_code_maps_to_codes_that_the_transports_know(code: str) -> None:
    kind = ERROR_TABLE[code]
    assert 400 <= kind.http < 600
    assert kind.websocket in {1007, 1008, 1009, 1011, 1013}
    assert kind.grpc in GRPC_CODES
    assert kind.meaning


def test_only_faults_that_pass_by_themselves_may_be_sent_again() -> None:
    assert {code for code, kind in ERROR_TABLE.items() if kind.retryable} == {"timeout", "overloaded", "unavailable"}


def test_faults_of_the_client_are_4xx_and_of_the_server_5xx() -> None:
    server = {"policy_failed", "invalid_output", "internal", "unavailable", "deadline_exceeded"}
    assert {code for code, kind in ERROR_TABLE.items() if kind.http >= 500} == server


def test_a_code_outside_the_table_cannot_be_raised() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        RoboserveError("nonsense", "text")


def test_a_code_of_a_newer_server_reads_as_internal() -> None:
    got = RoboserveError.from_map({"code": "from_the_future", "message": "hello"})
    assert (got.code, got.message, got.request_id) == ("internal", "hello", None)


def test_an_error_map_with_nothing_in_it_is_still_an_error() -> None:
    got = RoboserveError.from_map({})
    assert got.code == "internal"
    assert got.message


def test_the_request_that_an_error_answers_is_set_once() -> None:
    error = RoboserveError("overloaded", "queue: 64 waiting, limit 64")
    named = error.with_request_id("first")
    assert error.request_id is None
    assert named.request_id == "first"
    assert named.with_request_id("second").request_id == "first"
    assert str(named) == "overloaded: queue: 64 waiting, limit 64"


def test_a_copy_says_the_same():
    error = RoboserveError("too_large", "image: 9 pixels, limit 4", request_id="r1")
    twin = copy.copy(error)
    assert (type(twin), str(twin), twin.request_id, twin.retryable) == (RoboserveError, str(error), "r1", False)
