"""The platform on one machine: Ray, HAProxy and the applications of one configuration, owned by one process.

The same file goes to a cluster with `serve deploy`. Here everything belongs to the process that called it, binds to
loopback unless the configuration says otherwise, and ends with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from serving.auth import is_loopback
from serving.ports import free_port, free_port_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from serving.config import PlatformConfig

_REPLICA_PORT_COUNT = 256
_OBJECT_STORE_BYTES = 150 * 1024 * 1024
_LOGICAL_CPUS = 8
_SAID_FILES, _SAID_CHARS = 4, 600
HAPROXY_MAXCONN = 2048
"""Connections of the local HAProxy, which wants about twice as many file descriptors."""
HAPROXY_HARD_STOP_S = 3600
"""Seconds that sessions live on after HAProxy was reloaded, which every replica that comes or goes makes it do.

With Ray's 120, a replica that autoscaling adds to one policy would cut the robots of all others off two minutes later.
Not longer: as long, and a margin, Ray hands no port of a dead replica to a new one, and a node has only so many.
"""


@dataclass(frozen=True, kw_only=True)
class RunningPlatform:
    """A platform that answers."""

    url: str
    applications: tuple[str, ...]
    logs: Path

    @property
    def websocket_url(self) -> str:
        """Where robots connect."""
        return "ws" + self.url.removeprefix("http")


def serve_environment(runtime_dir: Path) -> dict[str, str]:
    """Return the environment that Ray Serve must see before Ray is imported.

    A proxy has a minute and a half to start: with Ray's quarter of one, a machine that is busy never gets one up.

    HAProxy takes Python's place in front (a tenth of the latency); user code runs on the replica's own loop, since ours
    never blocks it; draining replicas say good-bye within seconds, for robots reconnect at once. Ray starts replicas
    and HAProxy at a niceness of 15; here it is 0, and what should yield to policies says so in its own configuration.

    Every platform has its ports to itself, or a second one on the machine would now and then send robots to the first
    one's policies: Ray's controller offers a replica's port to HAProxy before the replica has bound it, and the Python
    proxy that serves an application until HAProxy knows its replicas shares one fixed port with every other such proxy.
    """
    replica_ports = free_port_block(_REPLICA_PORT_COUNT)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(runtime_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(runtime_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(runtime_dir / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(runtime_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(runtime_dir / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_MAXCONN": str(HAPROXY_MAXCONN),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(HAPROXY_HARD_STOP_S),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.asgi:middlewares",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replica_ports[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replica_ports[-1]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }


@contextlib.contextmanager
def platform(
    config: PlatformConfig, *, report: Callable[[str], None], timeout_s: float = 180.0, logs: Path | None = None
) -> Iterator[RunningPlatform]:
    """Run the platform while the block lasts.

    Must be entered before Ray is imported in this process, since Ray Serve reads its environment at import.

    Args:
        config: a checked configuration.
        report: receives a line whenever the state of an application changes.
        timeout_s: time by which all applications must run.
        logs: folder that receives the replicas' logs at the end; while it runs they are in `RunningPlatform.logs`.

    Raises:
        RuntimeError: Ray or an application failed to start; the message has the reason that they gave.
    """
    runtime_dir = Path(tempfile.mkdtemp(prefix="roboserve-"))
    os.environ.update(serve_environment(runtime_dir))
    import ray  # after the environment
    from ray import serve

    try:
        _start(config, runtime_dir)
        _wait_until_running(config, report, timeout_s)
        yield RunningPlatform(url=_local_url(config), applications=tuple(config.args), logs=_log_folder(runtime_dir))
    finally:
        descendants = psutil.Process().children(recursive=True)
        if ray.is_initialized():  # or Serve would start Ray in order to stop what runs in it
            with contextlib.suppress(Exception):  # whatever state it is in, the processes below must end
                serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
        _end(descendants)
        if logs is not None and _log_folder(runtime_dir).is_dir():  # it comes with Serve's first process
            shutil.copytree(_log_folder(runtime_dir), logs, dirs_exist_ok=True)
        shutil.rmtree(runtime_dir, ignore_errors=True)


def _start(config: PlatformConfig, runtime_dir: Path) -> None:
    """Start Ray and Serve, and hand Serve the configuration.

    Raises:
        RuntimeError: with what the processes that ended said last.
    """
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=_LOGICAL_CPUS,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(runtime_dir),
        )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _deploy(config)
    except Exception as error:
        said = _last_words(runtime_dir)
        raise RuntimeError(f"Ray did not start: {type(error).__name__}: {error}{said}") from error


def _last_words(runtime_dir: Path) -> str:
    """Return the ends of what Ray's processes wrote as errors, the latest last; their files go with the platform."""
    paths = [path for path in (runtime_dir / "session_latest" / "logs").glob("*.err") if path.stat().st_size]
    latest = sorted(paths, key=lambda path: path.stat().st_mtime)[-_SAID_FILES:]
    return "".join(f"\n{path.stem}: {path.read_text('utf-8', 'replace')[-_SAID_CHARS:].strip()}" for path in latest)


def _local_url(config: PlatformConfig) -> str:
    """Where this machine itself reaches the platform."""
    host = config.host if is_loopback(config.host) else "127.0.0.1"
    return f"http://{host}:{config.port}"


def _log_folder(runtime_dir: Path) -> Path:
    return runtime_dir / "session_latest" / "logs" / "serve"


def _end(processes: list[psutil.Process]) -> None:
    """End what Ray leaves behind: its agents notice only after a minute that their node is gone."""
    _, alive = psutil.wait_procs(processes, timeout=2.0)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=5.0)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _deploy(config: PlatformConfig) -> None:
    """Hand the configuration to Serve's controller, as `serve run CONFIG` does."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config.raw)
    serve.start(
        proxy_location=schema.proxy_location,
        http_options=schema.http_options.model_dump(),
        logging_config=schema.logging_config,
    )
    client = _get_global_client()
    if client is None:
        raise RuntimeError("Ray Serve did not start")
    client.deploy_apps(schema)


def _wait_until_running(config: PlatformConfig, report: Callable[[str], None], timeout_s: float) -> None:
    from ray import serve

    deadline = time.monotonic() + timeout_s
    seen: dict[str, str] = {}
    while time.monotonic() < deadline:
        applications: dict[str, Any] = dict(serve.status().applications)
        for name, application in applications.items():
            if seen.get(name) != application.status:
                seen[name] = application.status
                report(f"{name}: {str(application.status.value).lower().replace('_', ' ')}")
            if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise RuntimeError(f"{name} failed to start: {_reason(application)}")
        running = {name for name, application in applications.items() if application.status == "RUNNING"}
        if set(config.args) <= running and _answers(config):
            return
        time.sleep(0.1)
    raise RuntimeError(f"not running after {timeout_s:g} s: {seen}")


def _reason(application: Any) -> str:
    messages = [application.message, *(deployment.message for deployment in application.deployments.values())]
    return " ".join(message for message in messages if message)[-2000:]


def _answers(config: PlatformConfig) -> bool:
    """Whether the proxy lets a request through to every application's own health route."""
    import httpx

    prefixes = [str(application.get("route_prefix", "/")).rstrip("/") for application in config.raw["applications"]]
    try:
        return all(httpx.get(f"{_local_url(config)}{prefix}/healthz", timeout=5.0).is_success for prefix in prefixes)
    except httpx.TransportError:
        return False
