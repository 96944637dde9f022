"""A model without keys is for this machine only: a replica checks where its platform listens before it loads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.auth import is_loopback

if TYPE_CHECKING:
    from serving.config import ServiceArgs


def refuse_an_open_door(args: ServiceArgs, host: str | None) -> None:
    """Raise if anybody on the network could call a model that asks for no key.

    The configuration is refused before this (`serving.config`), but `serve deploy` does not ask us. A request's own
    peer tells nothing here: behind a proxy on the same machine every peer is loopback.

    Raises:
        ValueError: the platform's proxy listens on `host`, beyond loopback, and the model has no key file.
    """
    if args.auth.keys_file is None and not is_loopback(host):
        raise ValueError(
            f"http_options.host is {host!r}, reachable from elsewhere, and {args.name} has no auth.keys_file: "
            "bind 127.0.0.1 or add keys (roboserve keys new)"
        )


def proxy_host() -> str | None:
    """Return the address on which this cluster's Ray Serve listens.

    Raises:
        RuntimeError: Ray Serve has no controller here.
    """
    from ray.serve.context import _get_global_client  # no public call tells it to a replica

    client = _get_global_client()
    if client is None:
        raise RuntimeError("Ray Serve has no controller here")
    host: str | None = client.http_config.host
    return host
