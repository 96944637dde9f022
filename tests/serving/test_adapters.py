"""One served policy with many adapters: listed, chosen by request, mixed in a forward, swapped under load."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from clients.errors import RoboserveError
from clients.policy import PolicyClient
from clients.policy_messages import ActOptions
from tests.adapters import make_adapter, make_base, make_item
from tests.serving.policy_running import RunningPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from clients.policy_messages import ActReply

NAMES = ("door", "drawer", "lid")


class Served:
    """A policy server behind a socket, and the folder of its adapters."""

    def __init__(self, folder: Path) -> None:
        self.base, self.folder = make_base(folder / "base"), folder / "adapters"
        for seed, name in enumerate(NAMES):
            self.make(name, seed)
        config = {"checkpoint": str(self.base), "adapters": str(self.folder), "adapters_poll_s": 0.02, "device": "cpu"}
        self.running = RunningPolicy.serving("models.policies.flow_vla:FlowVLAPolicy", config)

    def make(self, name: str, seed: int) -> None:
        make_adapter(self.folder / name, self.base, seed=seed, rank=2 + seed % 3)

    def hashes(self) -> dict[str, str]:
        return dict(self.running.server.revisions.of(None).adapters)

    def client(self) -> PolicyClient:
        return PolicyClient(self.running.url)


def ask(client: PolicyClient, number: int, adapter: str | None = None) -> ActReply:
    seen = make_item(number).observation
    images: Any = seen.images
    options = ActOptions(seed=number)
    return client.act(images=images, state=seen.state, instruction=seen.instruction, adapter=adapter, options=options)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    with made.running:
        yield made


def test_the_contract_lists_adapters_and_a_new_folder_appears_without_a_restart(served: Served) -> None:
    with served.client() as client:
        assert client.contract.adapters == NAMES
        assert "adapters" in client.contract.supports
        with pytest.raises(RoboserveError, match="door, drawer, lid") as refusal:
            ask(client, 0, "window")
        assert refusal.value.code == "not_found"
        served.make("window", 7)
        until(lambda: "window" in served.hashes())
        reply = ask(client, 0, "window")
        assert reply.model.id.startswith("mine:window@")
        assert ask(client, 0).model.id == "mine"
    with served.client() as fresh:
        assert "window" in fresh.contract.adapters


def test_what_is_wrong_with_an_adapter_is_said_to_who_asks_for_it(served: Served, tmp_path: Path) -> None:
    make_adapter(served.folder / "strange", make_base(tmp_path / "other", seed=9), seed=1)
    with served.client() as client:
        until(lambda: "strange" in served.running.server.revisions.of(None).policy.refused_adapters)
        with pytest.raises(RoboserveError, match="it belongs to tiny") as refusal:
            ask(client, 0, "strange")
        assert refusal.value.code == "not_found"


def test_robots_with_different_adapters_share_forwards_and_none_is_dropped_while_adapters_are_swapped(
    served: Served,
) -> None:
    swapping = threading.Event()
    swapping.set()

    def robot(number: int) -> list[ActReply]:
        adapter = (*NAMES, None)[number]
        with served.client() as client:
            replies = []
            while swapping.is_set() or len(replies) < 20:
                replies.append(ask(client, number, adapter))
            return [*replies, ask(client, number, adapter)]  # by the versions that are served at the end

    with ThreadPoolExecutor(4) as robots:
        running = [robots.submit(robot, number) for number in range(4)]
        try:
            for seed in range(10, 22):
                before = served.hashes()["door"]
                served.make("door", seed)
                until(lambda before=before: served.hashes()["door"] != before)
        finally:
            swapping.clear()
        answers = [one.result() for one in running]
    doors = {reply.model.id for replies in answers for reply in replies if "door@" in reply.model.id}
    assert len(doors) > 2, "robots went on while the adapter changed"
    assert max(reply.batch_size for replies in answers for reply in replies) > 1
    for number, replies in enumerate(answers):
        first: dict[str, Any] = {}
        for reply in replies:
            same = first.setdefault(reply.model.id, reply.actions)
            np.testing.assert_allclose(reply.actions, same, atol=1e-3)
        if number:  # its adapter was not swapped: neither its name nor its hash changed
            assert len(first) == 1
    with served.client() as client:
        alone = [ask(client, number, (*NAMES, None)[number]) for number in range(4)]
    for number, reply in enumerate(alone):
        np.testing.assert_allclose(reply.actions, answers[number][-1].actions, atol=1e-3)
