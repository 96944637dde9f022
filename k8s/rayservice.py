"""The RayService: one head without work of its own, and workers that answer requests (KubeRay 1.7, ray.io/v1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from k8s.configuration import Platform
    from k8s.pods import Manifest
    from k8s.settings import ClusterSettings, WorkerGroup

_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  a path
_DRAIN_SECONDS = 120


def ray_service(platform: Platform, settings: ClusterSettings) -> Manifest:
    """Return the RayService manifest."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": settings.name,
            "namespace": settings.namespace,
            "labels": labels(settings, "service"),
        },
        "spec": {
            "serveConfigV2": Block(platform.text),
            # The head runs no replica, so sending it requests would cost a hop.
            "excludeHeadPodFromServeSvc": True,
            "upgradeStrategy": _upgrade(settings),
            "rayClusterDeletionDelaySeconds": _DRAIN_SECONDS,
            "rayClusterConfig": _cluster(platform, settings),
        },
    }


def _upgrade(settings: ClusterSettings) -> Manifest:
    upgrade = settings.upgrade
    if upgrade is None:
        return {"type": "NewCluster"}
    return {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": {
            "gatewayClassName": upgrade.gateway_class,
            "maxSurgePercent": upgrade.max_surge_percent,
            "stepSizePercent": upgrade.step_percent,
            "intervalSeconds": upgrade.interval_s,
        },
    }


def _cluster(platform: Platform, settings: ClusterSettings) -> Manifest:
    auth: Manifest = {"mode": "token"}
    if settings.ray_token_secret is not None:
        auth["secretName"] = settings.ray_token_secret
    redis = settings.redis
    return {
        "rayVersion": settings.ray_version,
        "authOptions": auth,
        "gcsFaultToleranceOptions": {
            "redisAddress": redis.address,
            "redisPassword": {
                "valueFrom": {"secretKeyRef": {"name": redis.password_secret, "key": redis.password_key}}
            },
        },
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": min(group.idle_timeout_s for group in settings.worker_groups),
            "resources": resources("500m", "1Gi"),
            "securityContext": container_security(),
            "volumeMounts": [
                {"name": "autoscaler-token", "mountPath": _TOKEN_PATH, "readOnly": True},
                {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108  a volume of its own
            ],
        },
        "headGroupSpec": {
            # No CPUs: no replica is placed on the head, so its restart interrupts no robot.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104  token, and NetworkPolicy
            "template": _head_template(platform, settings),
        },
        "workerGroupSpecs": [_worker_group(group, platform, settings) for group in settings.worker_groups],
    }


def _head_template(platform: Platform, settings: ClusterSettings) -> Manifest:
    container = _container("ray-head", platform, settings, resources(settings.head_cpu, settings.head_memory))
    container["ports"] = [
        port("gcs-server", 6379),
        port("dashboard", 8265),
        port("client", 10001),
        port("serve", platform.port),
        port("metrics", METRICS_PORT),
    ]
    container["livenessProbe"] = probe("/api/healthz", AGENT_PORT, delay=30, failures=24)
    container["readinessProbe"] = probe("/api/healthz", AGENT_PORT, delay=10, failures=10)
    pod = _pod(settings, container, service_account=f"{settings.name}-head", platform=platform)
    pod["volumes"].append(_autoscaler_token())
    return {"metadata": _pod_metadata(settings, "head"), "spec": pod}


def _worker_group(group: WorkerGroup, platform: Platform, settings: ClusterSettings) -> Manifest:
    extra = {group.gpu_resource: group.gpus} if group.gpus else {}
    container = _container("ray-worker", platform, settings, resources(group.cpu, group.memory, extra))
    container["ports"] = [port("serve", platform.port), port("metrics", METRICS_PORT)]
    container["livenessProbe"] = probe("/api/healthz", AGENT_PORT, delay=30, failures=24)
    # HAProxy answers here, and only while it has a replica to send to: one miss takes the pod out of the service.
    container["readinessProbe"] = probe("/-/healthz", platform.port, delay=10, failures=1)
    pod = _pod(settings, container, service_account=f"{settings.name}-worker", platform=platform)
    pod["terminationGracePeriodSeconds"] = _DRAIN_SECONDS
    for name, claim in (("models", settings.models_claim), ("runs", settings.runs_claim)):
        if claim is not None:
            mounted, mount = volume(name, claim, read_only=True)
            pod["volumes"].append(mounted)
            container["volumeMounts"].append(mount)
    pod["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels(settings, "worker")},
        }
    ]
    if group.node_selector:
        pod["nodeSelector"] = dict(group.node_selector)
    if group.gpus:
        pod["tolerations"] = [{"key": group.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}]
    return {
        "groupName": group.name,
        "replicas": group.min_replicas,
        "minReplicas": group.min_replicas,
        "maxReplicas": group.max_replicas,
        "idleTimeoutSeconds": group.idle_timeout_s,
        "rayStartParams": {},
        "template": {"metadata": _pod_metadata(settings, "worker"), "spec": pod},
    }


def _pod_metadata(settings: ClusterSettings, component: str) -> Manifest:
    return {
        "labels": labels(settings, component),
        "annotations": {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(METRICS_PORT),
            "prometheus.io/path": "/metrics",
        },
    }


def _pod(settings: ClusterSettings, container: Manifest, *, service_account: str, platform: Platform) -> Manifest:
    return {
        "serviceAccountName": service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(settings),
        "containers": [container],
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": "20Gi"}},
            {
                "name": "api-keys",
                "secret": {
                    "secretName": settings.keys_secret,
                    "defaultMode": 0o440,
                    "items": [{"key": platform.keys_file.name, "path": platform.keys_file.name}],
                },
            },
        ],
    }


def _container(name: str, platform: Platform, settings: ClusterSettings, resources: Manifest) -> Manifest:
    return {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "env": _environment(settings),
        "resources": resources,
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108  a volume of its own
            {"name": "api-keys", "mountPath": str(platform.keys_file.parent), "readOnly": True},
        ],
    }


def _environment(settings: ClusterSettings) -> list[Manifest]:
    values = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_MAXCONN": str(settings.max_connections),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
        "RAY_START_ULIMIT_OPEN_FILES": str(4 * settings.max_connections + 16_384),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.asgi:middlewares",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        **tool_environment(),
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def _autoscaler_token() -> Manifest:
    """Return the API server's token as a volume of its own: the autoscaler mounts it, Ray's container does not."""
    return {
        "name": "autoscaler-token",
        "projected": {
            "defaultMode": 0o440,
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            ],
        },
    }
