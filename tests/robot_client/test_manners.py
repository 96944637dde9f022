"""What importing and running the client leaves alone in the process that does it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.robot_client.helpers import NeverThere, episode, fast_link, point_server

PROBE = """
import asyncio, gc, json, logging, signal, sys

def state():
    names = [item for item in signal.Signals]
    return {
        "root": [logging.getLogger().level, [repr(item) for item in logging.getLogger().handlers]],
        "signals": [repr(signal.getsignal(item)) for item in names],
        "policy": type(asyncio.get_event_loop_policy()).__name__,
        "switch": sys.getswitchinterval(),
        "frozen": gc.get_freeze_count(),
        "hooks": [sys.excepthook is sys.__excepthook__, sys.stdout is sys.__stdout__],
    }

before = state()
import clients.policy, clients.policy_async
import robot_client.cli, robot_client.link, robot_client.loop, robot_client.punctuality
import robot_client.subscribers.console, robot_client.subscribers.recorder, robot_client.subscribers.timing_log
print(json.dumps({"before": before, "after": state(), "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def probe(repository):
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROBE],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


def test_importing_changes_nothing_in_the_process(probe):
    assert probe["before"] == probe["after"]


def test_importing_everything_of_the_client_loads_nothing_heavy(probe):
    loaded = {name.partition(".")[0] for name in probe["modules"]}
    heavy = {"torch", "ray", "fastapi", "pydantic", "metaworld", "mujoco", "pyarrow", "av", "rich"}
    assert not loaded & heavy


def test_running_an_episode_changes_nothing_in_the_process():
    import asyncio
    import gc
    import logging
    import signal
    import threading

    def state():
        root = logging.getLogger()
        handlers = [signal.getsignal(item) for item in signal.Signals]
        return root.level, list(root.handlers), handlers, sys.getswitchinterval(), gc.get_freeze_count()

    robot = NeverThere()
    with point_server(robot) as server:
        threads, before = set(threading.enumerate()), state()
        with fast_link(server, robot) as link:
            episode(robot, link, max_seconds=0.3).run()
        assert state() == before
        left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert not {name for name in left if name.startswith("roboserve")}
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
