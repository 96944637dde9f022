"""What the classes of all deployments share: a checked door, a server behind it, its metrics and its end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from serving.exposure import proxy_host, refuse_an_open_door
from serving.metrics import RayMetricsBridge

if TYPE_CHECKING:
    from ray import serve

    from serving.config import ServiceArgs
    from serving.ingress import Ingress
    from serving.metrics import ServiceMetrics

logger = logging.getLogger("ray.serve")


class ReplicaServer(Protocol):
    """A served model with its transports, which needs no Ray."""

    app: Ingress

    @property
    def metrics(self) -> ServiceMetrics:
        """What it counts."""
        ...

    def check_health(self) -> None:
        """Raise when it can serve no more."""
        ...

    async def close(self) -> None:
        """End its work and free threads."""
        ...


def most_replicas(context: serve.context.ReplicaContext) -> int:
    """Return how many replicas of the one that asks there may be at most."""
    config = context._deployment_config  # noqa: SLF001  Ray tells a replica its own number of siblings nowhere else
    scaling = config.autoscaling_config
    return int(scaling.max_replicas if scaling is not None else config.num_replicas or 1)


def check_door(args: ServiceArgs) -> None:
    """Refuse to start where anybody on the network could call a model that asks for no key.

    Raises:
        ValueError: see `refuse_an_open_door`.
    """
    host = proxy_host()
    refuse_an_open_door(args, host)
    logger.info("starting", extra={"model": args.name, "proxy_host": host, "keys_file": args.auth.keys_file})


class Replica:
    """A Ray Serve replica around a server; a deployment's class makes the server and calls `_serve`."""

    _server: ReplicaServer
    _bridge: RayMetricsBridge

    def _serve(self, server: ReplicaServer) -> None:
        """Answer with a server from here on."""
        self._server = server
        self._bridge = RayMetricsBridge(server.metrics.registry)
        self._bridge.start()

    def __serve_build_asgi_app__(self) -> Ingress:
        return self._server.app

    def check_health(self) -> None:
        """Ray Serve's health check; a failing replica is replaced."""
        self._server.check_health()

    async def __del__(self) -> None:
        self._bridge.stop()
        await self._server.close()
