from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from clients.contract import Camera, PolicyContract, RobotInterface, Vector, mismatches, require_match
from clients.errors import RoboserveError
from clients.wire import decode, encode

STATE = Vector(names=("x", "grip"), units=("m", "1"), kinds=("absolute",) * 2, low=(-1.0, 0.0), high=(1.0, 1.0))
ACTION = Vector(names=("dx", "grip"), units=("m", "1"), kinds=("delta", "absolute"), low=(-1.0, 0.0), high=(1.0, 1.0))
CONTRACT = PolicyContract(
    model="vla",
    revision="3",
    content_hash="ab" * 32,
    cameras=(Camera("corner", 64, 64), Camera("wrist", 32, 48)),
    state=STATE,
    action=ACTION,
    control_hz=20.0,
    chunk_length=16,
    execute=8,
    integration_steps=4,
    supports=("rtc", "seed"),
    adapters=(),
    normalization="vla-3",
    limits={"message_bytes": 1024},
)
ROBOT = RobotInterface(cameras=("corner", "wrist", "spare"), state=STATE, action=ACTION, control_hz=20.0)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CONTRACT.to_map().items() if key != name}


def test_a_contract_survives_the_wire() -> None:
    assert PolicyContract.from_map(decode(encode(CONTRACT.to_map()))) == CONTRACT


def test_entries_of_a_newer_server_are_ignored() -> None:
    message = {**CONTRACT.to_map(), "new": 1, "state": {**CONTRACT.to_map()["state"], "new": 1}}
    assert PolicyContract.from_map(message) == CONTRACT


@pytest.mark.parametrize("name", [key for key in CONTRACT.to_map() if key != "type"])
def test_an_entry_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(RoboserveError, match=name) as refusal:
        PolicyContract.from_map(without(name))
    assert refusal.value.code == "contract_mismatch"


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "roboserve.v2"},
        {"state": None},
        {"state": [1, 2]},
        {"cameras": [{"name": "corner"}]},
        {"cameras": ["corner"]},
        {"action": {"names": ["x"]}},
        {"state": {**CONTRACT.to_map()["state"], "names": ["x"]}},
        {"action": {**CONTRACT.to_map()["action"], "kinds": ["absolute", "torque"]}},
    ],
    ids=str,
)
def test_a_contract_that_makes_no_sense_is_refused_as_one(change: dict[str, Any]) -> None:
    with pytest.raises(RoboserveError) as refusal:
        PolicyContract.from_map({**CONTRACT.to_map(), **change})
    assert refusal.value.code == "contract_mismatch"


def test_a_robot_that_fits_may_move() -> None:
    assert mismatches(CONTRACT, ROBOT) == []
    require_match(CONTRACT, ROBOT)


def test_ranges_may_differ_for_the_robot_limits_itself() -> None:
    assert mismatches(CONTRACT, replace(ROBOT, action=replace(ACTION, high=(0.5, 1.0)))) == []


@pytest.mark.parametrize(
    ("robot", "words"),
    [
        (replace(ROBOT, cameras=("corner",)), ("'wrist'", "corner")),
        (replace(ROBOT, cameras=()), ("'wrist'", "none")),
        (replace(ROBOT, state=replace(STATE, names=("y", "grip"))), ("state.names", "x, grip", "y, grip")),
        (replace(ROBOT, action=replace(ACTION, units=("mm", "1"))), ("action.units", "mm")),
        (replace(ROBOT, action=replace(ACTION, kinds=("velocity", "absolute"))), ("action.kinds", "delta", "velocity")),
        (replace(ROBOT, action=Vector(("a",), ("1",), ("delta",), (0.0,), (1.0,))), ("action", "2 dimensions", "1")),
        (replace(ROBOT, control_hz=50.0), ("control_hz", "20", "50")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_robot_that_does_not_fit_is_refused_in_a_sentence_that_says_why(
    robot: RobotInterface, words: tuple[str, ...]
) -> None:
    with pytest.raises(RoboserveError) as refusal:
        require_match(CONTRACT, robot)
    assert refusal.value.code == "contract_mismatch"
    assert all(word in refusal.value.message for word in words)


def test_every_way_of_not_fitting_is_said_at_once() -> None:
    robot = RobotInterface(cameras=(), state=STATE, action=ACTION, control_hz=5.0)
    assert len(mismatches(CONTRACT, robot)) == 3


def test_a_small_difference_of_rate_is_let_pass() -> None:
    assert mismatches(CONTRACT, replace(ROBOT, control_hz=20.9)) == []
    assert mismatches(CONTRACT, replace(ROBOT, control_hz=20.9), rate_tolerance=0.01)


@pytest.mark.parametrize("field", ["names", "units", "kinds", "low", "high"])
def test_a_vector_has_one_entry_of_each_for_every_dimension(field: str) -> None:
    with pytest.raises(RoboserveError, match="differ in length"):
        replace(STATE, **{field: getattr(STATE, field)[:1]})
    assert STATE.size == 2
