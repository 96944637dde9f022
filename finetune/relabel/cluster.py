"""The Ray that a job runs on: the one it was started in, or a small one of its own that ends with it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.errors import RoboserveError
from finetune.relabel.labeller import open_labeller
from finetune.relabel.worker import EpisodeWorker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from finetune.relabel.config import RelabelConfig
    from finetune.relabel.labeller import ModelFacts
    from finetune.relabel.worker import Job

_OBJECT_STORE_BYTES = 100 * 2**20
_MOST_BLOCKS = 2000


@contextlib.contextmanager
def ray_session(workers: int) -> Iterator[None]:
    """Connect to the Ray of this job (`ray job submit`, or `ray.init` called before); without one start it here.

    A Ray started here has no dashboard and dies with this process, however that ends.

    Raises:
        RoboserveError: `unavailable` where Ray Data is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it would write over the progress bar
    import ray

    _require_ray_data()
    if ray.is_initialized():
        yield
        return
    folder = None
    try:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if "RAY_ADDRESS" not in os.environ and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
            folder = tempfile.mkdtemp(prefix="relabel-")  # a socket's path has at most 107 characters
            settings |= {
                "address": "local",
                "num_cpus": workers,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
            }
        with _silent_standard_error():
            ray.init(**settings)
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _silent_standard_error() -> Iterator[None]:
    """Drop what compiled code writes: Ray's says on every start that it heeds a log level. Exceptions pass."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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


def _require_ray_data() -> None:
    try:
        import ray.data  # noqa: F401  it needs pandas, which Ray alone does not bring
    except ImportError as error:
        raise RoboserveError(
            "unavailable", f"relabel: Ray Data is not installed ({error.name}); install ray[data]"
        ) from error
