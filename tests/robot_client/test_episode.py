"""Whole episodes over a real socket, against a server that behaves or does not."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from clients.contract import Camera
from clients.errors import RoboserveError
from robot_client.action_queue import MODES, QueueConfig
from robot_client.loop import EpisodeConfig, run_episode
from robot_client.robots.pointmass import PointMass
from robot_client.safety import SafetyConfig
from tests.robot_client.fake_server import make_contract, vector
from tests.robot_client.helpers import (
    NeverThere,
    Watcher,
    episode,
    fast_link,
    point_server,
    wait_until,
)


@pytest.mark.parametrize("mode", MODES)
def test_a_robot_reaches_its_goal_in_every_mode(mode):
    robot = PointMass()
    with point_server(robot) as server, fast_link(server, robot) as link:
        server.faults.delay_s = 0.03
        config = EpisodeConfig(instruction="go there", max_seconds=20.0, seed=3, queue=QueueConfig(mode=mode))
        report = run_episode(robot, link, config)
    assert (report.ended, report.success) == ("finished", True)
    assert report.requests["played"] >= 2
    assert report.batch_sizes == {1: report.requests["played"]}
    assert report.revisions == ("1",)
    assert {message["observation"]["instruction"] for message in server.acts()} == {"go there"}


@pytest.mark.parametrize("kind", ["absolute", "delta", "velocity"])
def test_no_tick_waits_for_a_server_that_takes_200_ms(kind):
    robot, watcher = NeverThere(kind=kind), Watcher()
    with point_server(robot) as server, fast_link(server, robot) as link:
        server.faults.delay_s = 0.2
        report = episode(robot, link, watcher, max_seconds=1.5).run()
    assert report.ended == "max_seconds"
    assert report.ticks + report.missed_ticks >= 75
    assert report.requests["played"] >= 4
    pauses = np.diff([record.actual_s for record in watcher.ticks])
    assert np.count_nonzero(pauses >= 0.2) < report.requests["played"]  # a loop that waited would pause for each
    assert [record.tick for record in watcher.ticks] == sorted({record.tick for record in watcher.ticks})


def test_the_observation_travels_at_the_contracts_size():
    robot = PointMass()
    with point_server(robot, cameras=(Camera("top", 32, 48),)) as server, fast_link(server, robot, codec="raw") as link:
        episode(robot, link, max_seconds=0.2).run()
    observation = server.acts()[0]["observation"]
    assert observation["images"]["top"].shape == (32, 48, 3)
    assert observation["state"].dtype == np.float32
    assert server.acts()[0]["deadline_ms"] <= 2000.0


@pytest.mark.parametrize("kind", ["absolute", "velocity"])
def test_a_server_that_is_killed_leaves_a_robot_that_holds_when_its_chunk_ends(kind):
    robot = NeverThere(kind=kind)
    server = point_server(robot, rows=20).start()
    watcher = Watcher(lambda record: server.kill() if record.row == 5 and server.connections else None)
    with fast_link(server, robot, give_up_s=60.0) as link:
        report = episode(robot, link, watcher, max_seconds=1.2, queue=QueueConfig(mode="blocking", execute=20)).run()
    played = [record for record in watcher.ticks if record.source == "chunk"]
    last = max(record.tick for record in played)
    assert played[-1].row == 19, "rows that are still valid are played to the chunk's end"
    after = [record for record in watcher.ticks if record.tick > last]
    assert after[0].tick <= last + 1 + report.missed_ticks
    assert {record.hold_reason for record in after} == {"lost"}
    still = played[-1].action if kind == "absolute" else np.zeros(2)
    assert all(np.array_equal(record.action, still) for record in after)
    kinds = [event.kind for event in report.events]
    assert "lost" in kinds
    assert "reconnecting" in kinds


def test_a_reconnect_is_a_new_session_with_an_explicit_reset_and_goes_on():
    robot = NeverThere()
    server = point_server(robot).start()
    restarted = threading.Event()

    def restart() -> None:
        server.kill()
        server.start()
        restarted.set()

    def on_tick(record) -> None:
        if record.tick == 10:
            threading.Thread(target=restart).start()

    watcher = Watcher(on_tick)
    try:
        with fast_link(server, robot) as link:
            report = episode(robot, link, watcher, max_seconds=2.0).run()
    finally:
        server.kill()
    assert restarted.is_set()
    assert report.ended == "max_seconds"
    sessions = list(dict.fromkeys(message["session"] for message in server.messages if message["type"] != "ping"))
    assert len(sessions) == 2
    for session in sessions:
        first = next(message for message in server.messages if message.get("session") == session)
        assert first["type"] == "reset"
    kinds = [event.kind for event in report.events]
    assert kinds.count("connected") == 2
    assert kinds.index("lost") < len(kinds) - 1 - kinds[::-1].index("connected")
    assert watcher.ticks[-1].source == "chunk"


def test_an_episode_may_end_instead_when_the_server_is_lost():
    robot = NeverThere()
    server = point_server(robot).start()
    watcher = Watcher(lambda record: server.kill() if record.row == 3 else None)
    with fast_link(server, robot) as link:
        report = episode(robot, link, watcher, max_seconds=20.0, on_reconnect="stop").run()
    assert report.ended == "server_lost"
    assert sum(record.source == "hold" and record.tick > 5 for record in watcher.ticks) == 1


def test_nan_never_reaches_the_robot_and_a_server_that_goes_on_with_it_is_refused():
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot, failures=3) as link:
        server.faults.nan = True
        report = episode(robot, link, max_seconds=20.0).run()
    assert report.ended == "refused"
    assert report.requests == {"invalid_output": 3}
    assert all(np.isfinite(action).all() for action in robot.told)
    assert all((action == 0).all() for action in robot.told)


@pytest.mark.parametrize("fault", ["garbage", "drop"])
def test_a_broken_connection_is_made_anew(fault):
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot) as link:
        setattr(server.faults, fault, True)

        def mend(record) -> None:
            if any(event.kind == "lost" for event in record.events):
                setattr(server.faults, fault, False)

        watcher = Watcher(mend)
        report = episode(robot, link, watcher, max_seconds=1.5).run()
    assert "lost" in [event.kind for event in report.events]
    assert report.requests["played"] >= 1


def test_a_deadline_passes_and_the_robot_goes_on_with_the_next_observation():
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot, deadline_s=0.1) as link:
        server.faults.silent = True
        watcher = Watcher(lambda record: setattr(server.faults, "silent", record.tick < 20))
        report = episode(robot, link, watcher, max_seconds=1.6).run()
    assert report.requests["deadline_exceeded"] >= 1
    assert report.requests["played"] >= 1
    assert "lost" not in [event.kind for event in report.events], "a server that answers pings is slow, not gone"


def test_a_refusal_of_the_request_itself_ends_the_episode_in_a_sentence():
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot, failures=2) as link:
        server.faults.error = RoboserveError("invalid_state", "observation.state: 4 values, needs 5")
        report = episode(robot, link, max_seconds=20.0).run()
    assert report.ended == "refused"
    assert "needs 5" in report.events[-1].message
    assert report.events[-1].code == "invalid_state"


def test_a_refusal_that_no_other_observation_can_mend_ends_the_episode_at_once():
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot) as link:
        server.faults.error = RoboserveError("forbidden", "key: its scope does not allow policy 'fake'")
        report = episode(robot, link, max_seconds=20.0).run()
    assert (report.ended, report.requests) == ("refused", {"forbidden": 1})


def test_a_server_that_no_longer_answers_anything_is_lost():
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot, deadline_s=0.1) as link:
        watcher = Watcher(lambda record: setattr(server.faults, "mute", record.tick >= 10))
        report = episode(robot, link, watcher, max_seconds=20.0, on_reconnect="stop").run()
    assert report.ended == "server_lost"
    assert "does not answer" in next(event.message for event in report.events if event.kind == "lost")


def test_a_state_that_is_not_finite_is_not_sent_and_the_next_one_is():
    class Glitch(NeverThere):
        looks = 0

        def observe(self):
            seen = super().observe()
            self.looks += 1
            return replace(seen, state=np.full(4, np.nan, np.float32)) if self.looks == 1 else seen

    robot = Glitch()
    with point_server(robot) as server, fast_link(server, robot) as link:
        report = episode(robot, link, max_seconds=0.6).run()
    assert report.requests["invalid_state"] == 1
    assert report.requests["played"] >= 1
    assert all(np.isfinite(message["observation"]["state"]).all() for message in server.acts())


def test_a_fault_in_the_networks_thread_is_reported_and_does_not_leave_the_robot_waiting():
    class Wrong(NeverThere):
        def observe(self):
            return replace(super().observe(), images={"top": "no array"})

    robot = Wrong()
    with point_server(robot) as server, fast_link(server, robot) as link:
        report = episode(robot, link, max_seconds=20.0).run()
    assert report.ended == "refused"
    assert report.events[-1].code == "internal"


def test_a_chunk_that_comes_after_its_episode_is_not_seen_by_the_next():
    robot, first, second = NeverThere(), Watcher(), Watcher()
    old: set[str] = set()
    with point_server(robot) as server, fast_link(server, robot) as link:
        server.plan = lambda message: np.full((16, 2), 0.5 if message["session"] in old else -0.5)
        server.faults.delay_s = 0.3
        thread = threading.Thread(
            target=lambda: (wait_until(server.acts), old.update(message["session"] for message in server.acts()))
        )
        thread.start()
        episode(robot, link, first, max_seconds=0.25).run()
        thread.join()
        report = episode(robot, link, second, max_seconds=0.8).run()
    assert first.report.holds == {"waiting": first.report.ticks}
    assert "old_epoch" not in report.requests
    played = [record.action for record in second.ticks if record.source == "chunk"]
    assert played
    assert (np.stack(played) == -0.5).all()


def test_rtc_is_refused_where_the_policy_does_not_support_it():
    robot = NeverThere()
    with point_server(robot, supports=("reset",)) as server, fast_link(server, robot) as link:
        with pytest.raises(RoboserveError, match="mode rtc"):
            episode(robot, link, queue=QueueConfig(mode="rtc")).run()
        assert episode(robot, link, max_seconds=0.3).run().requests["played"] >= 1
    assert all(message["options"] == {} for message in server.acts())


def test_an_overloaded_server_is_asked_again():
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot) as link:
        server.faults.error = RoboserveError("overloaded", "queue: 8 requests wait, limit 8")
        watcher = Watcher(lambda record: setattr(server.faults, "error", None) if record.tick == 10 else None)
        report = episode(robot, link, watcher, max_seconds=1.5).run()
    assert report.requests["overloaded"] >= 1
    assert report.requests["played"] >= 1


def test_a_draining_server_is_left_for_a_new_session():
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot) as link:
        watcher = Watcher(lambda record: server.notify({"type": "draining"}) if record.tick == 10 else None)
        report = episode(robot, link, watcher, max_seconds=1.0).run()
    kinds = [event.kind for event in report.events]
    assert "draining" in kinds
    assert "lost" not in kinds
    assert len({message["session"] for message in server.acts()}) == 2
    assert watcher.ticks[-1].source == "chunk"


def test_other_weights_after_a_reconnect_are_reported():
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot) as link:
        link.wait_ready(5.0)
        server.contract = make_contract(**{**vars(server.contract), "revision": "2", "content_hash": "cd" * 32})
        watcher = Watcher(lambda record: server.notify({"type": "draining"}) if record.tick == 5 else None)
        report = episode(robot, link, watcher, max_seconds=0.6).run()
    assert [event.message for event in report.events if event.kind == "model_changed"] == ["revision 1 became 2"]


def test_adapters_that_came_meanwhile_make_no_other_policy():
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot) as link:
        link.wait_ready(5.0)
        server.contract = make_contract(**{**vars(server.contract), "adapters": ("door",)})
        watcher = Watcher(lambda record: server.notify({"type": "draining"}) if record.tick == 5 else None)
        report = episode(robot, link, watcher, max_seconds=0.6).run()
    assert report.ended == "max_seconds"
    assert len({message["session"] for message in server.acts()}) == 2


def test_another_policy_after_a_reconnect_is_refused():
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot) as link:
        link.wait_ready(5.0)
        server.contract = make_contract(**{**vars(server.contract), "chunk_length": 4})
        watcher = Watcher(lambda record: server.notify({"type": "draining"}) if record.tick == 5 else None)
        report = episode(robot, link, watcher, max_seconds=20.0).run()
    assert report.ended == "refused"
    assert report.events[-1].code == "contract_mismatch"


def test_each_episode_is_a_session_of_its_own_and_repeats_its_seeds():
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot) as link:
        for _ in range(2):
            episode(robot, link, max_seconds=0.4, seed=7).run()
    sessions = list(dict.fromkeys(message["session"] for message in server.acts()))
    assert len(sessions) == 2
    for session in sessions:
        seeds = [message["options"]["seed"] for message in server.acts() if message["session"] == session]
        assert seeds == list(range(7, 7 + len(seeds)))


def test_rtc_sends_the_rest_of_the_chunk_in_model_space_and_how_much_of_it_will_be_played():
    robot, watcher = NeverThere(), Watcher()
    with point_server(robot) as server, fast_link(server, robot) as link:
        server.faults.delay_s = 0.05
        episode(robot, link, watcher, max_seconds=1.0, queue=QueueConfig(mode="rtc", execute=6)).run()
    first, *later = [message["options"] for message in server.acts()]
    assert "leftover" not in first
    assert later
    by_anchor = {request.tick: request for record in watcher.ticks for request in record.requests}
    for message in later:
        rest = message["leftover"]
        assert len(rest) == 16 - message["executed"]
        assert 1 <= message["inference_delay"] <= len(rest)
    before = by_anchor[min(by_anchor)].actions * np.float32(2.0)  # the server's model space is twice the physical one
    np.testing.assert_array_equal(later[0]["leftover"], before[later[0]["executed"] :])


def test_rtc_may_leave_the_memory_to_the_server():
    robot = NeverThere()
    with point_server(robot) as server, fast_link(server, robot, leftover_from="server") as link:
        episode(robot, link, max_seconds=0.5, queue=QueueConfig(mode="rtc", execute=6)).run()
    options = [message["options"] for message in server.acts()]
    assert all("leftover" not in item and "return_model_actions" not in item for item in options)
    assert all(item["executed"] >= 1 for item in options[1:])


def test_interrupt_from_another_thread_stops_a_moving_robot():
    robot = NeverThere(kind="velocity")
    with point_server(robot) as server, fast_link(server, robot) as link:
        running = episode(robot, link, max_seconds=60.0)
        threading.Thread(target=lambda: (wait_until(lambda: len(robot.told) > 20), running.interrupt())).start()
        report = running.run()
    assert report.ended == "interrupted"
    assert any(action.any() for action in robot.told)
    np.testing.assert_array_equal(robot.told[-1], np.zeros(2))


def test_a_robot_that_raises_ends_the_episode_and_is_heard():
    class Broken(NeverThere):
        def act(self, action):
            super().act(action)
            if len(self.told) == 10:
                raise OSError("motor 2 does not answer")

    robot, watcher = Broken(), Watcher()
    with (
        point_server(robot) as server,
        fast_link(server, robot) as link,
        pytest.raises(OSError, match="motor 2"),
    ):
        episode(robot, link, watcher, max_seconds=60.0).run()
    assert watcher.report.ended == "robot_failed"
    np.testing.assert_array_equal(robot.told[-1], np.zeros(2))


def test_a_users_check_holds_the_robot_and_is_reported():
    robot = NeverThere(kind="velocity")
    limits = SafetyConfig(validate=lambda action, last: "too fast" if np.linalg.norm(action) > 0.5 else None)
    with point_server(robot) as server, fast_link(server, robot) as link:
        report = episode(robot, link, max_seconds=0.5, safety=limits).run()
    assert report.holds["unsafe"] > 5
    assert all((action == 0).all() for action in robot.told)
    assert "too fast" in {event.message for event in report.events}


def test_an_old_chunk_is_not_played_on():
    robot, watcher = NeverThere(), Watcher()
    with point_server(robot, rows=40, execute=40) as server, fast_link(server, robot) as link:
        queue = QueueConfig(mode="blocking", max_age_s=0.2)
        report = episode(robot, link, watcher, max_seconds=0.7, queue=queue).run()
    assert report.holds["stale"] >= 5
    assert all(record.age_ms <= 200.0 + 1e-6 for record in watcher.ticks if record.source == "chunk")


def test_a_subscriber_that_fails_does_not_stop_the_robot():
    class Failing(Watcher):
        def on_step(self, record, observation):
            raise ValueError("disk full")

    robot, good, bad = NeverThere(), Watcher(), Failing()
    with point_server(robot) as server, fast_link(server, robot) as link:
        report = episode(robot, link, bad, good, max_seconds=0.4).run()
    assert report.ended == "max_seconds"
    assert len(good.ticks) == report.ticks
    failures = [event.message for event in report.events if event.kind == "subscriber_failed"]
    assert failures == ["Failing: ValueError: disk full"]
    assert bad.report is report


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cameras": (Camera("wrist", 8, 8),)}, "camera 'wrist': the policy needs it, the robot has top"),
        ({"state": vector(5)}, "state: the policy has 5 dimensions"),
        ({"action": vector(2, "delta")}, "action.names: the policy has d0, d1"),
        ({"control_hz": 10.0}, "control_hz: the policy was made for 10, the robot runs at 50"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_before_the_first_move(changes, sentence):
    robot = NeverThere()
    server = point_server(robot)
    server.contract = make_contract(**{**vars(server.contract), **changes})
    with (
        server,
        fast_link(server, robot) as link,
        pytest.raises(RoboserveError, match="does not fit this robot") as caught,
    ):
        episode(robot, link).run()
    assert caught.value.code == "contract_mismatch"
    assert sentence in caught.value.message
    assert robot.told == []


def test_a_wrong_key_is_refused_at_once_and_the_right_one_let_in():
    robot = NeverThere()
    server = point_server(robot)
    server.api_key = "sesame"
    with server:
        with fast_link(server, robot, api_key="guess") as link, pytest.raises(RoboserveError) as caught:
            link.wait_ready(5.0)
        assert caught.value.code == "unauthenticated"
        with fast_link(server, robot, api_key="sesame") as link:
            assert link.wait_ready(5.0).model == "fake"
    assert "sesame" not in repr(link.config)


def test_a_server_that_is_not_there_yet_is_waited_for():
    robot = NeverThere()
    server = point_server(robot).start()
    server.kill()
    with fast_link(server, robot) as link:
        with pytest.raises(RoboserveError, match="not ready within") as caught:
            link.wait_ready(0.3)
        assert caught.value.code == "unavailable"
        server.start()
        try:
            assert episode(robot, link, max_seconds=0.4).run().requests["played"] >= 1
        finally:
            server.kill()


@pytest.mark.parametrize("options", [{"max_seconds": 0.0}, {"max_seconds": float("nan")}, {"on_reconnect": "ignore"}])
def test_wrong_episode_settings_are_refused(options):
    with pytest.raises(RoboserveError, match=next(iter(options))):
        EpisodeConfig(instruction="go", **{"max_seconds": 1.0, **options})
