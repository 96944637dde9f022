"""Who may talk to whom, and how many pods may go at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from k8s.pods import AGENT_PORT, METRICS_PORT, Manifest, labels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from k8s.configuration import Platform
    from k8s.settings import ClusterSettings

_DASHBOARD_PORT = 8265
_HAPROXY_METRICS_PORT = 9101


def service_accounts(settings: ClusterSettings) -> list[Manifest]:
    """Return the accounts of head and workers. KubeRay binds the autoscaler's role to the head's."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": _metadata(settings, component),
            "automountServiceAccountToken": False,
        }
        for component in ("head", "worker")
    ]


def disruption_budget(settings: ClusterSettings) -> Manifest:
    """Return the budget of the workers.

    Kubernetes allows a fixed `minAvailable` only, since a RayCluster has no scale subresource. The head has no budget:
    with its state in Redis it may move, and a budget of one would block every drain of its node.
    """
    fewest = sum(group.min_replicas for group in settings.worker_groups)
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(settings, "worker"),
        "spec": {
            "minAvailable": max(fewest - 1, 0),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": labels(settings, "worker")},
        },
    }


def network_policies(platform: Platform, settings: ClusterSettings) -> list[Manifest]:
    """Return the policies: everything is denied, and then what is needed is allowed, one policy a reason."""
    network, redis = settings.network, settings.redis
    mates = [{"podSelector": {"matchLabels": _instance(settings)}}]
    clients = [_namespace(name) for name in network.client_namespaces] + _blocks(network.client_cidrs)
    operator = [_namespace(network.operator_namespace)]
    policies = [
        _policy(settings, "default-deny", types=("Ingress", "Egress")),
        # Ray picks ports of its own for workers and replicas; its pods trust each other wholly, so they may use all.
        _policy(settings, "ray", ingress=[{"from": mates}], egress=[{"to": mates}]),
        _policy(
            settings,
            "operator",
            ingress=[{"from": operator, "ports": _ports(_DASHBOARD_PORT, AGENT_PORT, platform.port)}],
        ),
        _policy(settings, "dns", egress=[{"to": [_namespace("kube-system")], "ports": _dns_ports()}]),
        _policy(
            settings,
            "redis",
            egress=[
                {
                    "to": [{**_namespace(redis.namespace), "podSelector": {"matchLabels": dict(redis.pod_labels)}}],
                    "ports": _ports(redis.port),
                }
            ],
        ),
        _policy(
            settings,
            "autoscaler",
            component="head",
            egress=[{"to": _blocks(network.api_server_cidrs), "ports": _ports(443, 6443)}],
        ),
    ]
    if clients:
        policies.append(_policy(settings, "clients", ingress=[{"from": clients, "ports": _ports(platform.port)}]))
    if network.monitoring_namespace is not None:
        scrape = {
            "from": [_namespace(network.monitoring_namespace)],
            "ports": _ports(METRICS_PORT, _HAPROXY_METRICS_PORT),
        }
        policies.append(_policy(settings, "monitoring", ingress=[scrape]))
    return policies


def _policy(
    settings: ClusterSettings,
    name: str,
    *,
    component: str | None = None,
    types: tuple[str, ...] = (),
    **rules: list[Manifest],
) -> Manifest:
    selected = _instance(settings) if component is None else labels(settings, component)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(settings, name),
        "spec": {
            "podSelector": {"matchLabels": selected},
            "policyTypes": list(types or (name.capitalize() for name in rules)),
            **rules,
        },
    }


def _metadata(settings: ClusterSettings, suffix: str) -> Manifest:
    return {"name": f"{settings.name}-{suffix}", "namespace": settings.namespace, "labels": _instance(settings)}


def _instance(settings: ClusterSettings) -> dict[str, str]:
    return {name: value for name, value in labels(settings, "").items() if value}


def _namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _blocks(cidrs: Iterable[Any]) -> list[Manifest]:
    return [{"ipBlock": {"cidr": str(cidr)}} for cidr in cidrs]


def _ports(*numbers: int) -> list[Manifest]:
    return [{"protocol": "TCP", "port": number} for number in numbers]


def _dns_ports() -> list[Manifest]:
    return [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
