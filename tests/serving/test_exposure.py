from __future__ import annotations

import json

import pytest

from serving.exposure import refuse_an_open_door
from tests.serving.asgi import arguments


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "robots.example", None])  # noqa: S104  refused
def test_without_keys_a_replica_does_not_start_where_others_can_reach_it(host):
    with pytest.raises(ValueError, match=r"mine has no auth\.keys_file") as caught:
        refuse_an_open_door(arguments(), host)
    assert repr(host) in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_without_keys_it_starts_on_loopback(host):
    refuse_an_open_door(arguments(), host)


def test_with_keys_it_starts_anywhere():
    refuse_an_open_door(arguments(auth={"keys_file": "/etc/keys.yaml"}), "0.0.0.0")  # noqa: S104


@pytest.mark.slow
def test_a_replica_knows_where_its_platform_listens(platform):
    """Its start depends on it: an address that it could not learn would have been refused."""
    told = [json.loads(line) for path in platform.logs.glob("replica_policy-zero*") for line in path.open()]
    assert "127.0.0.1" in {line.get("proxy_host") for line in told}
