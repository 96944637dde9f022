"""How many replicas there may be of the one that asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray import serve


def most_replicas(context: serve.context.ReplicaContext) -> int:
    """Return how many replicas there may be at most."""
    config = context._deployment_config  # noqa: SLF001  Ray tells a replica its own number of siblings nowhere else
    scaling = config.autoscaling_config
    return int(scaling.max_replicas if scaling is not None else config.num_replicas or 1)
