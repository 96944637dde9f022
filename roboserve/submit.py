"""`roboserve submit` and `roboserve jobs`: finetuning commands as Ray Jobs, each with its run folder.

A job's state is its run folder and nothing else: whatever of the cluster is lost, the same command goes on from there.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shlex
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from roboserve.jobs import JobError, command_of, folder_of
from serving.auth import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_AGENT_LIMIT_S = 120.0
_DASHBOARD = "http://127.0.0.1:8265"
_ROOT = Path(__file__).parent.parent
_SHIPPED = ("clients", "models", "robot_client", "finetune")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What to run, and what it asks Ray for.

    Attributes:
        method, arguments, publish, config: see `command_of`.
        cpus, gpus: of the job's own process. `ship`: send this checkout's code along.
    """

    method: str
    arguments: tuple[str, ...]
    publish: str | None = None
    config: Path | None = None
    cpus: int = 1
    gpus: float = 0.0
    ship: bool = False


def run(submission: Submission, address: str | None, *, follow: bool) -> int:
    """Submit a job; return 2 where it was refused, 1 where the cluster does not answer or, followed, the job failed."""

    def work(client: Any) -> int:
        words = command_of(
            submission.method, submission.arguments, publish=submission.publish, config=submission.config
        )
        request = _request(submission, words, local=is_loopback(_host(client.get_address())))
        return _start(client, request, follow=follow)

    return _asked(address, work)


def resume(address: str | None, job: str, *, follow: bool) -> int:
    """Submit a job that ended once more, under an id of its own; returns as `run`.

    Args:
        job: its id, or its run folder.
    """

    def work(client: Any) -> int:
        known = _ours(client)
        found = [info for info in known if job in (info.submission_id, info.metadata["out"])]
        if not found:
            raise JobError(f"job: {job!r} is not known; known are {', '.join(info.submission_id for info in known)}")
        info = max(found, key=lambda one: one.start_time or 0)
        request = {
            "entrypoint": info.entrypoint,
            "runtime_env": info.runtime_env or {},
            "metadata": dict(info.metadata),
            **json.loads(info.metadata["resources"]),
        }
        return _start(client, request, follow=follow)

    return _asked(address, work)


def list_jobs(address: str | None) -> int:
    """Print the jobs that were submitted from here or elsewhere."""

    def work(client: Any) -> int:
        table = Table("job", "status", "run folder", "started", "")
        for info in sorted(_ours(client), key=lambda one: one.start_time or 0):
            started = datetime.fromtimestamp((info.start_time or 0) / 1e3, UTC).isoformat(timespec="seconds")
            remark = "" if info.status.value != "FAILED" else (info.message or "").splitlines()[0][:80]
            table.add_row(info.submission_id, info.status.value, info.metadata["out"], started, remark)
        Console().print(table)
        return 0

    return _asked(address, work)


def follow_job(address: str | None, job: str) -> int:
    """Print a job's log until it ends; return 1 where it failed."""
    return _asked(address, lambda client: asyncio.run(_follow(client, job)))


def stop(address: str | None, job: str) -> int:
    """Stop a job; return 1 where it ran no more."""

    def work(client: Any) -> int:
        stopped = client.stop_job(job)
        print(f"{job}: {'stopping' if stopped else 'had ended'}")
        return 0 if stopped else 1

    return _asked(address, work)


def _asked(address: str | None, work: Callable[[Any], int]) -> int:
    """Do work with a client of the cluster; tell on stderr what is wrong."""
    from ray.job_submission import JobSubmissionClient

    where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _DASHBOARD
    try:
        return work(JobSubmissionClient(where))
    except JobError as error:
        print(error, file=sys.stderr)
        return 2
    except (ConnectionError, RuntimeError) as error:
        print(f"{where}: {error}", file=sys.stderr)
        return 1


def _host(address: str) -> str:
    return urlsplit(address).hostname or ""


def _request(submission: Submission, words: Sequence[str], *, local: bool) -> dict[str, Any]:
    """Return what Ray is asked to run.

    On this machine it runs where the command was given, with this interpreter. Elsewhere no folder of this machine is
    there, so that a run folder must be given whole: on a volume that outlives the job's pod.
    """
    out = folder_of(words, "--out")
    if out is None:
        raise JobError("out: is missing; a job goes on from its run folder, so it needs one (--out)")
    for name in ("--out", "--publish"):
        folder = folder_of(words, name)
        if not local and folder is not None and not folder.is_absolute():
            raise JobError(f"{name}: {str(folder)!r} must be an absolute path, on a volume that outlives the job")
    python = sys.executable if local else "python"
    line = shlex.join([python, "-m", *words])
    threads = str(submission.cpus)
    environment: dict[str, Any] = {
        "env_vars": {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
    }
    if submission.ship:
        environment["py_modules"] = [str(_ROOT / name) for name in _SHIPPED]
    resources = {"entrypoint_num_cpus": submission.cpus, "entrypoint_num_gpus": submission.gpus}
    return {
        "entrypoint": f"cd {shlex.quote(str(Path.cwd()))} && exec {line}" if local else f"exec {line}",
        "runtime_env": environment,
        "metadata": {"out": str(out.resolve() if local else out), "resources": json.dumps(resources)},
        **resources,
    }


def _start(client: Any, request: dict[str, Any], *, follow: bool) -> int:
    out = request["metadata"]["out"]
    for info in _ours(client):
        if info.metadata["out"] == out and not info.status.is_terminal():
            raise JobError(f"out: {out} is that of {info.submission_id}, which has not ended")
    name = "".join(letter if letter.isalnum() else "-" for letter in Path(out).name)
    job = _submitted(client, f"{name}-{secrets.token_hex(3)}", request)
    print(f"submitted {job}; run folder {out}", flush=True)
    return asyncio.run(_follow(client, job)) if follow else 0


def _submitted(client: Any, job: str, request: dict[str, Any]) -> str:
    """Submit, with patience: a cluster answers before the agents that start its jobs are there."""
    deadline = time.monotonic() + _AGENT_LIMIT_S
    while True:
        try:
            client.submit_job(submission_id=job, **request)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1.0)
        else:
            return job


def _ours(client: Any) -> list[Any]:
    """Return the jobs that have a run folder."""
    return [info for info in client.list_jobs() if "out" in (info.metadata or {})]


async def _follow(client: Any, job: str) -> int:
    from ray.job_submission import JobStatus

    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)
    status = client.get_job_status(job)
    print(f"{job}: {status.value}", flush=True)
    return 0 if status == JobStatus.SUCCEEDED else 1
