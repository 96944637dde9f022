"""The Ray that a job runs on: the one it was started in, or a small one of its own that ends with it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_OBJECT_STORE_BYTES = 100 * 2**20


@contextlib.contextmanager
def ray_session(workers: int) -> Iterator[None]:
    """Connect to the Ray of this job (`ray job submit`, or `ray.init` called before); without one start it here.

    A Ray started here has no dashboard and dies with this process, however that ends.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it would write over the progress bar
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 starves those whom a learner waits for
    import ray

    if ray.is_initialized():
        yield
        return
    folder = None
    try:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if "RAY_ADDRESS" not in os.environ and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
            folder = tempfile.mkdtemp(prefix="roboserve-")  # a socket's path has at most 107 characters
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
