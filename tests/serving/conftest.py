from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml

from serving.auth import make_key
from serving.ports import free_port
from tests.serving.platforms import SIZE, Platform, application, configuration, start, stop
from tests.serving.speaking import Neighbour

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TWO = {"image_size": SIZE, "cameras": ["left", "right"]}


def applications(folder: Path) -> list[dict]:
    recording = np.linspace(-1, 1, 40 * 4, dtype=np.float32).reshape(40, 4)
    np.save(folder / "recording.npy", recording)
    return [
        application("zero", "ZeroPolicy", route="/"),
        application("slow", "SlowPolicy", config={"base_ms": 700.0, "per_item_ms": 0.0}, batching={"max_batch": 1}),
        application("crashing", "CrashingPolicy", config={"interface": TWO}),
        application("replay", "ReplayPolicy", config={"actions": str(folder / "recording.npy")}),
        application("rolling", "ZeroPolicy"),
        application(
            "strict",
            "SlowPolicy",
            config={"base_ms": 700.0, "per_item_ms": 0.0},
            batching={"max_batch": 1, "max_queue": 2},
            limits={
                "sessions": 3,
                "in_flight": 2,
                "http_requests": 2,
                "message_bytes": 20_000,
                "idle_timeout_s": 1.0,
                "body_timeout_s": 1.0,
                "send_timeout_s": 1.0,
            },
        ),
        application("locked", "ZeroPolicy", auth={"keys_file": str(folder / "keys.yaml")}),
    ]


def make_keys(folder: Path) -> dict[str, str]:
    """Write a key file; return the secrets by name."""
    made = {
        "robot": make_key("arm-1", "robot", policy="locked"),
        "other robot": make_key("arm-2", "robot", policy="zero"),
        "job": make_key("relabel", "job"),
        "admin": make_key("operator", "admin"),
        "expired": make_key("old", "robot", policy="locked", expires=datetime.now(UTC) - timedelta(days=3)),
    }
    records = [key.record.model_dump(mode="json", exclude_none=True) for key in made.values()]
    (folder / "keys.yaml").write_text(yaml.safe_dump({"keys": records}), "utf-8")
    return {name: key.secret for name, key in made.items()}


@pytest.fixture(scope="session")
def platform(tmp_path_factory) -> Iterator[Platform]:
    """One platform for all: Ray Serve, HAProxy and a replica for each application above."""
    folder = tmp_path_factory.mktemp("platform")
    keys = make_keys(folder)
    port = free_port()
    running = start(folder, configuration(port, applications(folder)), port)
    running.keys = keys
    yield running
    assert stop(running) == [], "processes of the platform outlived it"


@pytest.fixture(scope="session")
def _neighbour(platform: Platform) -> Iterator[Neighbour]:
    """One session through all that happens to the other policies: rolled out, killed, replaced."""
    with Neighbour(platform).watching() as watching:
        yield watching


@pytest.fixture
def neighbour(_neighbour: Neighbour) -> Iterator[Neighbour]:
    """A session of the default policy that must have been served all through the test."""
    yield _neighbour
    _neighbour.check()
