"""A served labeller: one Ray Serve application whose deployment is ingress, memory and labeller at once.

The engine of a VLM labeller may be that of another application (`engine: {kind: app}`): an answer takes hundreds of
milliseconds, so a second hop costs little, and one engine then serves paths and preferences.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import cast

from ray import serve

from serving.preference_config import PreferenceArgs
from serving.preference_server import PreferenceServer
from serving.replica import Replica, check_door


# The reasons of these values: as for rewards (`serving.reward`).
@serve.deployment(
    name="PreferenceService",
    max_ongoing_requests=1024,
    max_queued_requests=64,
    health_check_period_s=5,
    health_check_timeout_s=20,
    graceful_shutdown_wait_loop_s=1,
    graceful_shutdown_timeout_s=60,
)
@serve.ingress()
class PreferenceService(Replica):
    """The deployment: a `PreferenceServer` inside a Ray Serve replica."""

    async def __init__(self, args: PreferenceArgs) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        check_door(args)
        sys.setswitchinterval(0.0005)
        # Before the engine is there: on Linux a priority is a thread's own, passed on to what it starts later.
        os.nice(args.preferences.niceness)
        replica = serve.get_replica_context().replica_id.unique_id
        server = await PreferenceServer.start(args, replica=replica)
        self._serve(server)
        gc.collect()
        gc.freeze()


def build(args: PreferenceArgs) -> serve.Application:
    """Build the application: the `import_path` of a configuration file.

    Ray Serve hands over a plain map, for it reads annotations that are evaluated and ours are not.
    """
    deployment = cast("serve.Deployment", PreferenceService)  # what the decorators make of the class
    return deployment.bind(PreferenceArgs.model_validate(args))
