"""What a job does on Ray: episodes to workers, outcomes back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from clients.errors import RoboserveError
from finetune.relabel.labeller import open_labeller
from finetune.relabel.worker import EpisodeWorker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from finetune.relabel.config import RelabelConfig
    from finetune.relabel.labeller import ModelFacts
    from finetune.relabel.worker import Job

_MOST_BLOCKS = 2000


def describe_in_worker(config: RelabelConfig) -> ModelFacts:
    """Return the facts of a model that runs in the workers, without loading it into this process.

    Raises:
        RoboserveError: the model cannot be loaded.
    """
    import ray

    found = ray.get(ray.remote(max_calls=1)(_describe).remote(config))
    if isinstance(found, tuple):
        raise RoboserveError(*found)
    return found


def _describe(config: RelabelConfig) -> ModelFacts | tuple[str, str]:
    """Return the facts, or an error's code and message: our errors do not survive the way through Ray."""
    try:
        labeller = open_labeller(config)
    except RoboserveError as error:
        return error.code, error.message
    labeller.close()
    return labeller.facts


def outcomes(job: Job, rows: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run the job over rows of episodes; give rows of outcomes as they come, in no order."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    episodes = ray.data.from_items([{"item": row} for row in rows], override_num_blocks=min(len(rows), _MOST_BLOCKS))
    done = episodes.map_batches(
        EpisodeWorker,
        fn_constructor_kwargs={"job": job},
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(job.config.workers, len(rows))),
        num_cpus=1,
    )
    batches: Any = done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for batch in batches:
        yield from batch.to_pylist()


def require_ray_data() -> None:
    """Refuse to go on without Ray Data.

    Raises:
        RoboserveError: `unavailable` where it is not installed.
    """
    try:
        import ray.data  # noqa: F401  it needs pandas, which Ray alone does not bring
    except ImportError as error:
        raise RoboserveError(
            "unavailable", f"relabel: Ray Data is not installed ({error.name}); install ray[data]"
        ) from error
