"""A served path predictor: one Ray Serve application whose deployment is ingress, kept paths and engine at once.

The engine may be that of another application (`engine: {kind: app}`): an answer takes hundreds of
milliseconds, so a second hop costs little, and one engine then serves paths and preferences.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import cast

from ray import serve

from serving.path_config import PathArgs
from serving.path_server import PathServer
from serving.replica import Replica, check_door, most_replicas


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
class PathService(Replica):
    """The deployment: a `PathServer` inside a Ray Serve replica."""

    async def __init__(self, args: PathArgs) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        check_door(args)
        sys.setswitchinterval(0.0005)
        # Before the engine is there: on Linux a priority is a thread's own, passed on to what it starts later.
        os.nice(args.paths.niceness)
        context = serve.get_replica_context()
        server = await PathServer.start(args, replica=context.replica_id.unique_id, replicas=most_replicas(context))
        self._serve(server)
        gc.collect()
        gc.freeze()


def build(args: PathArgs) -> serve.Application:
    """Build the application: the `import_path` of a configuration file.

    Ray Serve hands over a plain map, for it reads annotations that are evaluated and ours are not.
    """
    deployment = cast("serve.Deployment", PathService)  # what the decorators make of the class
    return deployment.bind(PathArgs.model_validate(args))
