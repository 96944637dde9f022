"""The RayJob: one finetuning command in a cluster of one pod (KubeRay 1.7, ray.io/v1).

The operator submits it, so that no other pod needs a way to Ray's dashboard. When the pod or the command is lost, the
operator makes another cluster and submits again: the command goes on from its run folder, which is on a volume.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import yaml

from k8s.configuration import ManifestError
from k8s.pods import (
    AGENT_PORT,
    METRICS_PORT,
    Block,
    container_security,
    labels,
    pod_security,
    port,
    probe,
    resources,
    tool_environment,
    volume,
)

if TYPE_CHECKING:
    from k8s.pods import Manifest
    from k8s.settings import ClusterSettings, JobSettings


def ray_job(job: JobSettings, settings: ClusterSettings) -> Manifest:
    """Return the RayJob manifest.

    Raises:
        ManifestError: the cluster's settings name no volume for run folders.
    """
    auth: Manifest = {"mode": "token"}
    if settings.ray_token_secret is not None:
        auth["secretName"] = settings.ray_token_secret
    threads = {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": f"{settings.name}-{job.name}",
            "namespace": settings.namespace,
            "labels": labels(settings, "job"),
        },
        "spec": {
            "entrypoint": shlex.join(["python", "-m", *job.words]),
            "runtimeEnvYAML": Block(yaml.safe_dump({"env_vars": threads})),
            "submissionMode": "HTTPMode",
            "backoffLimit": job.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": job.keep_s,
            "rayClusterSpec": {
                "rayVersion": settings.ray_version,
                "authOptions": auth,
                "headGroupSpec": {
                    "rayStartParams": {"dashboard-host": "0.0.0.0"},  # noqa: S104  token, and NetworkPolicy
                    "template": {
                        "metadata": {"labels": labels(settings, "job")},
                        "spec": _pod(job, settings),
                    },
                },
            },
        },
    }


def _pod(job: JobSettings, settings: ClusterSettings) -> Manifest:
    if settings.runs_claim is None:
        raise ManifestError("runs_claim: is not set; a job goes on from its run folder, which needs a volume")
    volumes: list[Manifest] = [{"name": "scratch", "emptyDir": {"sizeLimit": "20Gi"}}]
    mounts: list[Manifest] = [{"name": "scratch", "mountPath": "/tmp"}]  # noqa: S108  a volume of its own
    for name, claim in (("models", settings.models_claim), ("runs", settings.runs_claim)):
        if claim is not None:
            mounted, mount = volume(name, claim, read_only=name == "models")
            volumes.append(mounted)
            mounts.append(mount)
    extra = {job.gpu_resource: job.gpus} if job.gpus else {}
    pod: Manifest = {
        "serviceAccountName": f"{settings.name}-worker",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(settings),
        "containers": [
            {
                "name": "ray-head",
                "image": settings.image,
                "imagePullPolicy": "IfNotPresent",
                "env": _environment(job),
                "ports": [port("gcs-server", 6379), port("dashboard", 8265), port("metrics", METRICS_PORT)],
                "resources": resources(job.cpu, job.memory, extra),
                "securityContext": container_security(),
                "livenessProbe": probe("/api/healthz", AGENT_PORT, delay=30, failures=24),
                "readinessProbe": probe("/api/healthz", AGENT_PORT, delay=10, failures=10),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if job.gpus:
        pod["tolerations"] = [{"key": job.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def _environment(job: JobSettings) -> list[Manifest]:
    values = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1", **tool_environment()}
    environment: list[Manifest] = [{"name": name, "value": value} for name, value in values.items()]
    if job.api_key_secret is not None:
        key = {"secretKeyRef": {"name": job.api_key_secret, "key": "key"}}
        environment.append({"name": "ROBOSERVE_API_KEY", "valueFrom": key})
    return environment
