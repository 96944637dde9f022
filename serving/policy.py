"""A served policy: one Ray Serve application whose only deployment is ingress, batcher and model at once."""

from __future__ import annotations

import gc
import sys
from typing import cast

from ray import serve

from serving.config import PolicyArgs
from serving.policy_server import PolicyServer
from serving.replica import Replica, check_door


# The reasons of these values:
# - max_ongoing_requests: a websocket is one ongoing request for its life, so Serve's default of 5 would admit five
#   robots; the session limit is ours, with a typed refusal, and lies below.
# - max_queued_requests: nothing should wait in Serve's queue, where no deadline is known.
# - health checks: a robot holds while its replica is dead, so death is noticed in seconds, not in half a minute.
# - graceful shutdown: an act takes tens of milliseconds and sessions are told to reconnect: a long wait gains nothing.
@serve.deployment(
    name="PolicyService",
    max_ongoing_requests=1024,
    max_queued_requests=64,
    health_check_period_s=2,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=10,
)
@serve.ingress()
class PolicyService(Replica):
    """The deployment: a `PolicyServer` inside a Ray Serve replica."""

    def __init__(self, args: PolicyArgs) -> None:
        check_door(args)
        # The forward shares the interpreter with the event loop: a shorter switch keeps the other sessions answered.
        sys.setswitchinterval(0.0005)
        server = PolicyServer(args, replica=serve.get_replica_context().replica_id.unique_id)
        self._serve(server)
        # A full collection would walk through everything that torch and Ray have loaded, with the event loop waiting.
        gc.collect()
        gc.freeze()


def build(args: PolicyArgs) -> serve.Application:
    """Build the application: the `import_path` of a configuration file.

    Ray Serve hands over a plain map, for it reads annotations that are evaluated and ours are not.
    """
    deployment = cast("serve.Deployment", PolicyService)  # what the decorators make of the class
    return deployment.bind(PolicyArgs.model_validate(args))
