from __future__ import annotations

import socket

import pytest
from ray.serve._private import constants

from serving.launch import serve_environment
from serving.ports import free_port, free_port_block


def bind(port, host="127.0.0.1"):
    listener = socket.socket()
    listener.bind((host, port))
    listener.listen()
    return listener


def test_a_free_port_can_be_bound():
    bind(free_port()).close()


def test_a_block_is_in_a_row_and_free():
    block = free_port_block(8)
    assert len(block) == 8
    for port in block:
        bind(port).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104  a port can be taken on one address or all
def test_a_block_with_a_taken_port_is_passed_over(host):
    first = free_port_block(8, seed=3)
    with bind(first[5], host):
        second = free_port_block(8, seed=3)
    assert not set(first) & set(second)


def test_no_block_that_is_free(monkeypatch):
    monkeypatch.setattr("serving.ports._is_free", lambda _port: False)
    with pytest.raises(RuntimeError, match="no 8 free TCP ports"):
        free_port_block(8)


def test_platforms_on_one_machine_have_their_replicas_ports_apart(tmp_path):
    def ports():
        found = serve_environment(tmp_path)
        return range(*(int(found[f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT"]) for end in ("MIN", "MAX")))

    mine = ports()
    with bind(mine[0]):  # the platform that runs
        assert not set(mine) & set(ports())


def test_no_port_is_left_to_a_default_that_two_platforms_would_share(tmp_path):
    """Ray Serve listens with SO_REUSEPORT: on a shared port, either platform would answer the other's robots."""
    grpc = {"RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT"}  # no gRPC is served
    fixed = {name for name, value in vars(constants).items() if name.endswith("_PORT") and isinstance(value, int)}
    fixed = {name for name in fixed if name.startswith("RAY_SERVE_")} - grpc
    assert "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT" in fixed
    first = serve_environment(tmp_path)
    assert fixed <= first.keys()
    with bind(int(first["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"])):  # the platform that runs
        second = serve_environment(tmp_path)
    assert not {first[name] for name in fixed} & {second[name] for name in fixed}
