"""What the manifests need to know of the platform's configuration, and whether the cluster can hold it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

    from k8s.settings import ClusterSettings


class ManifestError(ValueError):
    """The configuration and the cluster's settings do not go together; the message says how."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """The parts of a configuration that show in the manifests.

    Attributes:
        text: the file itself, as Ray Serve gets it.
        port: where the platform answers.
        keys_file: where every application reads its API keys.
        gpus: GPUs of all replicas, fewest and most.
    """

    text: str
    port: int
    keys_file: PurePosixPath
    gpus: tuple[float, float]


def read_platform(path: Path) -> Platform:
    """Read a platform configuration.

    Raises:
        ManifestError: it binds loopback, has no applications, or leaves one of them without keys.
    """
    text = path.read_text("utf-8")
    raw = yaml.safe_load(text)
    if not isinstance(raw, dict) or not raw.get("applications"):
        raise ManifestError(f"{path.name}: has no applications")
    http = raw.get("http_options") or {}
    if http.get("host") != "0.0.0.0":  # noqa: S104  inside a pod; the NetworkPolicy says who may come
        raise ManifestError(f"{path.name}: http_options.host is {http.get('host')!r}; in a pod it must be 0.0.0.0")
    bounds = [_gpus(item) for application in raw["applications"] for item in application.get("deployments") or []]
    return Platform(
        text="".join(f"{line.rstrip()}\n" for line in text.splitlines()),
        port=int(http.get("port", 8000)),
        keys_file=_keys_file(path.name, raw["applications"]),
        gpus=(sum(low for low, _ in bounds), sum(high for _, high in bounds)),
    )


def require_room(platform: Platform, settings: ClusterSettings) -> None:
    """Refuse worker groups that cannot hold the replicas which the configuration asks for.

    Raises:
        ManifestError: naming both numbers.
    """
    for word, wanted, given in (
        ("fewest", platform.gpus[0], sum(group.min_replicas * group.gpus for group in settings.worker_groups)),
        ("most", platform.gpus[1], sum(group.max_replicas * group.gpus for group in settings.worker_groups)),
    ):
        if wanted > given:
            raise ManifestError(f"worker_groups: replicas take {wanted:g} GPUs at the {word}, the groups have {given}")


def _gpus(deployment: dict[str, Any]) -> tuple[float, float]:
    each = float((deployment.get("ray_actor_options") or {}).get("num_gpus", 0))
    scaling = deployment.get("autoscaling_config")
    if scaling is None:
        count = int(deployment.get("num_replicas") or 1)
        return each * count, each * count
    return each * int(scaling.get("min_replicas", 1)), each * int(scaling.get("max_replicas", 1))


def _keys_file(source: str, applications: list[dict[str, Any]]) -> PurePosixPath:
    found = set()
    for application in applications:
        keys_file = ((application.get("args") or {}).get("auth") or {}).get("keys_file")
        if not keys_file:
            raise ManifestError(f"{source}: application {application.get('name')!r} has no args.auth.keys_file")
        found.add(PurePosixPath(keys_file))
    if len(found) > 1:
        raise ManifestError(f"{source}: applications name several key files: {', '.join(map(str, sorted(found)))}")
    (path,) = found
    if not path.is_absolute() or len(path.parts) < 3:
        raise ManifestError(f"{source}: keys_file {path}: must be an absolute path in a folder of its own")
    return path
