"""A served reward model: one Ray Serve application whose only deployment is ingress, batcher and model at once."""

from __future__ import annotations

import gc
import os
import sys
from typing import cast

from ray import serve

from serving.config import RewardArgs
from serving.replica import Replica, check_door, most_replicas
from serving.reward_server import RewardServer


# The reasons of these values: as for policies (`serving.policy`), but for two.
# - graceful shutdown: a labelling job's request may be hundreds of forwards; it is let end.
# - health checks: a job waits and sends again, where a robot must hold, so a slower check does.
@serve.deployment(
    name="RewardService",
    max_ongoing_requests=1024,
    max_queued_requests=64,
    health_check_period_s=5,
    health_check_timeout_s=20,
    graceful_shutdown_wait_loop_s=1,
    graceful_shutdown_timeout_s=60,
)
@serve.ingress()
class RewardService(Replica):
    """The deployment: a `RewardServer` inside a Ray Serve replica."""

    def __init__(self, args: RewardArgs) -> None:
        check_door(args)
        # The forward shares the interpreter with the event loop: a shorter switch keeps the other sessions answered.
        sys.setswitchinterval(0.0005)
        context = serve.get_replica_context()
        server = RewardServer(args, replica=context.replica_id.unique_id, replicas=most_replicas(context))
        # After the model is there: a start that yields to a busy fleet would take for ever. On Linux a priority is a
        # thread's own and passed on to threads made later, here the forward's and the decoders', made on first use.
        os.nice(args.rewards.niceness)
        self._serve(server)
        # A full collection would walk through everything that torch and Ray have loaded, with the event loop waiting.
        gc.collect()
        gc.freeze()


def build(args: RewardArgs) -> serve.Application:
    """Build the application: the `import_path` of a configuration file.

    Ray Serve hands over a plain map, for it reads annotations that are evaluated and ours are not.
    """
    deployment = cast("serve.Deployment", RewardService)  # what the decorators make of the class
    return deployment.bind(RewardArgs.model_validate(args))
