"""A served path predictor: one Ray Serve application whose deployment is ingress, kept paths and engine at once.

The engine may be that of another application (`engine: {kind: app}`): an answer takes hundreds of
milliseconds, so a second hop costs little, and one engine then serves paths and preferences.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from typing import TYPE_CHECKING, cast

from ray import serve

from serving.exposure import proxy_host, refuse_an_open_door
from serving.metrics import RayMetricsBridge
from serving.path_config import PathArgs
from serving.path_server import PathServer
from serving.replicas import most_replicas

if TYPE_CHECKING:
    from serving.ingress import Ingress

logger = logging.getLogger("ray.serve")


# The reasons of these values: as for rewards (`serving.reward`).
@serve.deployment(
    name="PathService",
    max_ongoing_requests=1024,
    max_queued_requests=64,
    health_check_period_s=5,
    health_check_timeout_s=20,
    graceful_shutdown_wait_loop_s=1,
    graceful_shutdown_timeout_s=60,
)
@serve.ingress()
class PathService:
    """The deployment: a `PathServer` inside a Ray Serve replica."""

    async def __init__(self, args: PathArgs) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        host = proxy_host()
        refuse_an_open_door(args, host)
        logger.info("starting", extra={"model": args.name, "proxy_host": host, "keys_file": args.auth.keys_file})
        sys.setswitchinterval(0.0005)
        # Before the engine is there: on Linux a priority is a thread's own, passed on to what it starts later.
        os.nice(args.paths.niceness)
        context = serve.get_replica_context()
        self._server = await PathServer.start(
            args, replica=context.replica_id.unique_id, replicas=most_replicas(context)
        )
        self._bridge = RayMetricsBridge(self._server.metrics.registry)
        self._bridge.start()
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> Ingress:
        return self._server.app

    def check_health(self) -> None:
        """Ray Serve's health check; a failing replica is replaced."""
        self._server.check_health()

    async def __del__(self) -> None:
        self._bridge.stop()
        await self._server.close()


def build(args: PathArgs) -> serve.Application:
    """Build the application: the `import_path` of a configuration file.

    Ray Serve hands over a plain map, for it reads annotations that are evaluated and ours are not.
    """
    deployment = cast("serve.Deployment", PathService)  # what the decorators make of the class
    return deployment.bind(PathArgs.model_validate(args))
