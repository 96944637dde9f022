"""A served policy takes in better checkpoints while robots are in the middle of their episodes."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from models.folders import checkpoint_folder
from models.policies.state_flow.checkpoint import load_state_policy, save_state_policy
from models.policies.steered.actor import ChoiceActor
from models.policies.steered.checkpoint import SteeredConfig, save_steered
from models.policies.steered.choice import ChoiceSpace
from models.revisions import BASE, RevisionStore, copied
from serving.config import PolicyArgs
from serving.policy_server import PolicyServer
from serving.revisions import tries_the_newest
from tests.serving.asgi import Session, http

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from models.revisions import Revision

ZOO = checkpoint_folder("zoo:eight-goals")


class Flywheel:
    """A folder of revisions, and a server of the policy that they are of; it looks when it is told to."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.made = folder, 0
        self.store = RevisionStore(folder / "revisions")
        args = {
            "name": "goals",
            "policy": {"factory": "models.policies.state_flow:StateFlowPolicy", "config": {"checkpoint": str(ZOO)}},
            "revisions": {"folder": str(self.store.path), "poll_s": 3600, **settings},
        }
        self.server = PolicyServer(PolicyArgs.model_validate(args))

    def publish(self, change: Callable[[dict[str, Tensor]], None] | None = None, **fields: Any) -> Revision:
        """Publish weights that differ from all before, and let the server look."""
        self.made += 1
        config, network, _ = load_state_policy(ZOO)
        weights = network.state_dict()
        next(value for name, value in weights.items() if name.endswith("bias")).add_(1e-3 * self.made)
        if change is not None:
            change(weights)
        save_state_policy(self.folder / "checkpoint", replace(config, **fields), network, card="made by a test\n")
        return self.put(self.folder / "checkpoint")

    def put(self, checkpoint: Path) -> Revision:
        revision = self.store.publish(copied(checkpoint), metrics={"success": 0.5}, job="test")
        self.server.revisions.look()
        return revision

    def row(self, revision: str) -> dict[str, Any]:
        return next(row for row in self.server.revisions.describe()["revisions"] if row["id"] == revision)

    async def session(self) -> Session:
        session = await Session().open(self.server.app)
        await session.hear()
        return session


def act(**changes: Any) -> dict[str, Any]:
    seen = {"images": {}, "state": np.zeros(10, np.float32), "instruction": ""}
    return {"type": "act", "observation": seen, "options": {"seed": 1}, **changes}


async def answered_by(session: Session, name: str | None = None) -> str:
    reply = await session.ask(act(**({} if name is None else {"session": name})))
    assert reply["type"] == "action", reply
    return reply["model"]["revision"]


async def reset(session: Session) -> None:
    assert (await session.ask({"type": "reset"}))["type"] == "reset"


@pytest.fixture
async def flywheel(tmp_path: Path) -> Any:
    made = Flywheel(tmp_path)
    yield made
    await made.server.close()


async def test_an_episode_ends_with_the_revision_that_it_began_with(flywheel: Flywheel) -> None:
    robot, newcomer = await flywheel.session(), await flywheel.session()
    before = await robot.ask(act())
    revision = flywheel.publish()
    after = await robot.ask(act())
    assert after["model"] == before["model"]
    np.testing.assert_array_equal(after["actions"], before["actions"])
    assert await answered_by(newcomer) == revision.id
    await reset(robot)
    fresh = await robot.ask(act())
    assert fresh["model"]["revision"] == revision.id
    assert not np.array_equal(fresh["actions"], before["actions"])
    described = json.loads((await http(flywheel.server.app, "GET", "/contract"))[2])
    assert described["revision"] == revision.id


async def test_the_running_server_finds_a_revision_by_itself(tmp_path: Path) -> None:
    flywheel = Flywheel(tmp_path, poll_s=0.02)
    robot = await flywheel.session()
    revision = flywheel.store.publish(copied(checkpoint_folder("zoo:eight-goals")), metrics={}, job="test")
    for _ in range(500):
        await reset(robot)
        if await answered_by(robot) == revision.id:
            break
        await asyncio.sleep(0.02)
    assert await answered_by(robot) == revision.id
    await flywheel.server.close()


async def test_a_server_that_starts_anew_serves_what_is_current(flywheel: Flywheel, tmp_path: Path) -> None:
    flywheel.publish()
    second = flywheel.publish()
    again = Flywheel(tmp_path)
    assert await answered_by(await again.session()) == second.id
    await again.server.close()


async def test_back_to_an_earlier_revision_and_forward_again(flywheel: Flywheel) -> None:
    robot = await flywheel.session()
    first, second = flywheel.publish(), flywheel.publish()
    assert await answered_by(robot) == second.id
    for wanted in (first.id, BASE):
        flywheel.store.roll_back()
        flywheel.server.revisions.look()
        await reset(robot)
        base = flywheel.server.spec.revision
        assert await answered_by(robot) == (base if wanted == BASE else wanted)
    flywheel.store.pin(None)
    flywheel.server.revisions.look()
    await reset(robot)
    assert await answered_by(robot) == second.id


def test_a_share_of_a_thousand_sessions_is_that_share() -> None:
    for share in (0.0, 0.1, 0.5, 1.0):
        chosen = [tries_the_newest(f"arm-{index}/episode", share) for index in range(1000)]
        spread = (1000 * share * (1 - share)) ** 0.5
        assert abs(sum(chosen) - 1000 * share) <= 3.3 * spread
        assert chosen == [tries_the_newest(f"arm-{index}/episode", share) for index in range(1000)]


async def test_the_canary_share_tries_the_newest_and_all_others_the_pinned(tmp_path: Path) -> None:
    flywheel = Flywheel(tmp_path, canary=0.3)
    first = flywheel.publish()
    flywheel.store.pin(first.id)
    second = flywheel.publish()
    robot = await flywheel.session()
    for index in range(40):
        expected = second.id if tries_the_newest(f"loopback/{index}", 0.3) else first.id
        assert await answered_by(robot, str(index)) == expected
    assert flywheel.row(first.id)["sessions"] + flywheel.row(second.id)["sessions"] == 40
    alone = json.loads((await http(flywheel.server.app, "GET", "/revisions"))[2])
    assert (alone["current"], alone["newest"], alone["share_of_newest"]) == (first.id, second.id, 0.3)
    await flywheel.server.close()


def nan(weights: dict[str, Tensor]) -> None:
    next(iter(weights.values())).view(-1)[0] = torch.nan


def overflow(weights: dict[str, Tensor]) -> None:
    for value in weights.values():
        value.fill_(1e30)


async def test_a_broken_revision_is_refused_and_the_one_before_goes_on(flywheel: Flywheel, tmp_path: Path) -> None:
    good = flywheel.publish()
    robot = await flywheel.session()
    refused = {
        flywheel.publish(nan).id: "not finite",
        flywheel.publish(overflow).id: "not finite",
        flywheel.publish(execute=3).id: "interface: another",
    }
    shutil.copytree(ZOO, tmp_path / "truncated")
    (tmp_path / "truncated" / "config.json").write_text("{}")
    refused[flywheel.put(tmp_path / "truncated").id] = "not valid"
    for revision, reason in refused.items():
        assert reason in flywheel.row(revision)["refused"]
    assert await answered_by(robot) == good.id
    counted = (await http(flywheel.server.app, "GET", "/metrics"))[2].decode()
    line = next(line for line in counted.splitlines() if line.startswith("roboserve_revisions_refused_total"))
    assert line.endswith(" 4.0")


async def test_weights_that_changed_after_they_were_published_are_refused(flywheel: Flywheel, tmp_path: Path) -> None:
    revision = flywheel.publish()
    (flywheel.store.folder(revision) / "config.json").write_text("{}")
    again = Flywheel(tmp_path)
    assert "content: is" in again.row(revision.id)["refused"]
    assert await answered_by(await again.session()) == again.server.spec.revision
    await again.server.close()


async def test_what_a_revision_cannot_do_is_refused_though_the_first_could(tmp_path: Path) -> None:
    formats = {"roboserve-steered-1": {"factory": "models.policies.steered:SteeredPolicy"}}
    flywheel = Flywheel(tmp_path, formats=formats)
    robot = await flywheel.session()
    asked = act(options={"noise": np.zeros((8, 2), np.float32)})
    assert (await robot.ask(asked))["type"] == "action"
    space = ChoiceSpace.of(rows=8, columns=2, context_size=8, noise_bound=1.0, level_bound=1.0, context_bound=1.0)
    steered = SteeredConfig(
        id="steered",
        revision="1",
        base_hash=load_state_policy(ZOO)[2],
        space=space,
        states=10,
        hidden=8,
        integration_steps=5,
    )
    save_steered(tmp_path / "steered", steered, ChoiceActor(10, space.parts, 8), base=ZOO, card="made by a test\n")
    revision = flywheel.put(tmp_path / "steered")
    await reset(robot)
    refused = await robot.ask(asked)
    assert (refused["code"], "noise" in refused["message"]) == ("invalid_request", True)
    assert await answered_by(robot) == revision.id
    await flywheel.server.close()


async def test_weights_leave_memory_with_the_last_session_and_a_held_one_never_does(flywheel: Flywheel) -> None:
    robot, other = await flywheel.session(), await flywheel.session()
    held = flywheel.server.spec.revision
    assert await answered_by(robot) == held
    (base,) = (weakref.ref(policy) for policy in flywheel.server.revisions.policies)
    first = flywheel.publish()
    assert await answered_by(other) == first.id
    second, third = flywheel.publish(), flywheel.publish()
    assert [flywheel.row(revision.id)["loaded"] for revision in (first, second, third)] == [True, True, False]
    assert await answered_by(robot) == held
    await reset(other)
    assert await answered_by(other) == second.id  # what was to come waits for room
    flywheel.server.revisions.look()
    assert flywheel.row(third.id)["loaded"]
    assert not flywheel.row(first.id)["loaded"]
    assert base() is not None
    await robot.end()
    flywheel.publish()
    gc.collect()
    assert base() is None
