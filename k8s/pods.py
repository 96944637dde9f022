"""What the pods of a service and of a job have in common (Kubernetes core/v1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from k8s.settings import ClusterSettings

Manifest = dict[str, Any]

AGENT_PORT = 52365
METRICS_PORT = 8080


class Block(str):
    """Text that YAML writes as a block, line by line."""

    __slots__ = ()


def labels(settings: ClusterSettings, component: str) -> dict[str, str]:
    """Return the labels that policies and budgets select by."""
    return {
        "app.kubernetes.io/part-of": "roboserve",
        "app.kubernetes.io/instance": settings.name,
        "app.kubernetes.io/component": component,
    }


def pod_security(settings: ClusterSettings) -> Manifest:
    """Return the security context of a pod: never root."""
    return {
        "runAsNonRoot": True,
        "runAsUser": settings.run_as_user,
        "runAsGroup": settings.run_as_user,
        "fsGroup": settings.run_as_user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Manifest:
    """Return the security context of a container: nothing to write to, nothing to gain."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def resources(cpu: str, memory: str, extra: Manifest | None = None) -> Manifest:
    """Return what a container asks for, and may take."""
    # Requests equal limits: Ray counts the limits as its own, and a throttled control loop is a late one.
    amounts = {"cpu": cpu, "memory": memory, **(extra or {})}
    return {"requests": dict(amounts), "limits": dict(amounts)}


def port(name: str, number: int) -> Manifest:
    """Return a port that a container listens on."""
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def probe(path: str, at: int, *, delay: int, failures: int) -> Manifest:
    """Return an HTTP probe of a path at a port."""
    return {
        "httpGet": {"path": path, "port": at},
        "initialDelaySeconds": delay,
        "periodSeconds": 5,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def tool_environment() -> dict[str, str]:
    """Return what libraries read: nothing is downloaded, and every cache goes to the scratch volume."""
    return {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HOME": "/tmp/home",  # noqa: S108
        "XDG_CACHE_HOME": "/tmp/cache",  # noqa: S108
        "MPLCONFIGDIR": "/tmp/cache/matplotlib",  # noqa: S108
    }


def volume(name: str, claim: str, *, read_only: bool) -> tuple[Manifest, Manifest]:
    """Return a claim as a pod's volume, and its mount at /NAME."""
    held: Manifest = {"claimName": claim}
    mount: Manifest = {"name": name, "mountPath": f"/{name}"}
    if read_only:
        held["readOnly"] = mount["readOnly"] = True
    return {"name": name, "persistentVolumeClaim": held}, mount
