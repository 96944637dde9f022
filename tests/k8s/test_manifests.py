from __future__ import annotations

import copy
import functools
import os
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from k8s.manifests import (
    ClusterSettings,
    JobSettings,
    ManifestError,
    load_settings,
    manifests,
    render,
    render_job,
)
from serving.config import unknown_keys
from serving.launch import HAPROXY_HARD_STOP_S

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "serving" / "configs" / "cluster.yaml"
CRDS = Path(os.environ.get("ROBOSERVE_KUBERAY_CRDS", ROOT.parent / "shared" / "data" / "kuberay"))
KUBERNETES = kubernetes_validate.latest_version()
COMMAND = (
    *("finetune.bc", "train", "--data", "/runs/demonstrations", "--out", "/runs/bc"),
    *("--threads", "4", "--publish-over", "0.9"),
)


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(render(CONFIG, ClusterSettings())))


@pytest.fixture
def service(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return copy.deepcopy(documents[-1])


def pods(service: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = service["spec"]["rayClusterConfig"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **groups}


def closed(schema: Any) -> Any:
    """Return an OpenAPI v3 schema as a JSON schema that refuses keys it does not know, as strict decoding does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        result["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    return result


@functools.cache
def ray_schema(kind: str) -> dict[str, Any]:
    path = CRDS / f"{kind.lower()}s.yaml"
    if not CRDS.is_dir():
        pytest.skip(f"no KubeRay CRDs at {CRDS}; set ROBOSERVE_KUBERAY_CRDS to a folder with {path.name}")
    crd = yaml.load(path.read_text("utf-8"), Loader=yaml.CSafeLoader)
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    return closed(version["schema"]["openAPIV3Schema"])


def crd_problems(service: dict[str, Any]) -> list[str]:
    # The API server checks apiVersion, kind and metadata itself; a CRD's schema leaves metadata open.
    schema = ray_schema(service["kind"])
    schema["properties"]["metadata"] = {"type": "object"}
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(service)]


def test_the_committed_manifest_is_what_the_configuration_gives() -> None:
    committed = (ROOT / "k8s" / "rayservice.yaml").read_text("utf-8")
    assert committed == render(CONFIG, ClusterSettings()), "run `make manifests`"


def test_the_committed_job_is_what_its_command_gives_and_the_operator_takes_it() -> None:
    words = (*COMMAND, "--publish", "/runs/policies/metaworld")
    settings = ClusterSettings(runs_claim="roboserve-runs")
    text = render_job(JobSettings(name="bc", words=words, threads=4), settings)
    assert (ROOT / "k8s" / "rayjob.yaml").read_text("utf-8") == text, "run `make manifests`"
    job = yaml.safe_load(text)
    assert crd_problems(job) == []
    template = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "job", **template["metadata"]}}
    kubernetes_validate.validate({**pod, "spec": template["spec"]}, KUBERNETES, strict=True)
    assert shlex.split(job["spec"]["entrypoint"]) == ["python", "-m", *words]
    (mount,) = (item for item in template["spec"]["containers"][0]["volumeMounts"] if item["name"] == "runs")
    assert mount == {"name": "runs", "mountPath": "/runs"}
    assert job["spec"]["backoffLimit"] > 0


def test_a_job_that_could_not_go_on_is_refused() -> None:
    for out in ("runs/here", "/home/there"):
        with pytest.raises(ValidationError, match="below /runs"):
            JobSettings(name="bc", words=("finetune.bc", "train", "--out", out))
    with pytest.raises(ManifestError, match="runs_claim"):
        render_job(JobSettings(name="bc", words=COMMAND), ClusterSettings())


def test_replicas_read_what_jobs_publish() -> None:
    changed = pods(manifests(CONFIG, ClusterSettings(runs_claim="lab"))[-1])["gpu"]["spec"]
    (mount,) = (item for item in changed["containers"][0]["volumeMounts"] if item["name"] == "runs")
    assert (mount["mountPath"], mount["readOnly"]) == ("/runs", True)


def test_every_kubernetes_object_passes_strict_validation(documents: list[dict[str, Any]]) -> None:
    core = [item for item in documents if item["kind"] != "RayService"]
    assert {item["kind"] for item in core} == {"ServiceAccount", "NetworkPolicy", "PodDisruptionBudget"}
    for item in core:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


def test_pods_pass_strict_validation(service: dict[str, Any]) -> None:
    templates = pods(service)
    assert len(templates) == 1 + len(ClusterSettings().worker_groups)
    for name, template in templates.items():
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, **template["metadata"]},
            "spec": template["spec"],
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_service_passes_the_operators_own_schema(service: dict[str, Any]) -> None:
    assert crd_problems(service) == []


def test_an_incremental_upgrade_passes_too() -> None:
    settings = ClusterSettings.model_validate({"upgrade": {"gateway_class": "istio"}, "ray_token_secret": "ray-token"})
    service = manifests(CONFIG, settings)[-1]
    assert (
        crd_problems(yaml.safe_load(yaml.safe_dump(service | {"spec": {**service["spec"], "serveConfigV2": ""}}))) == []
    )
    assert service["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]["gatewayClassName"] == "istio"
    assert service["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token", "secretName": "ray-token"}


@pytest.mark.parametrize(
    ("path", "wrong", "value"),
    [
        (("rayClusterConfig", "workerGroupSpecs", 0), "maxReplica", 3),
        (("rayClusterConfig",), "enableInTreeAutoscalling", True),
        (("rayClusterConfig", "headGroupSpec", "template", "spec", "containers", 0), "enviroment", []),
        ((), "serveConfig", "applications: []"),
        (("rayClusterConfig", "workerGroupSpecs", 0), "maxReplicas", "eight"),
        (("rayClusterConfig", "authOptions"), "mode", "password"),
    ],
)
def test_the_schema_check_sees_slips(service: dict[str, Any], path: tuple[Any, ...], wrong: str, value: Any) -> None:
    target = functools.reduce(lambda node, step: node[step], path, service["spec"])
    target[wrong] = value
    assert crd_problems(service)


@pytest.mark.parametrize(("kind", "key"), [("NetworkPolicy", "ingres"), ("PodDisruptionBudget", "minAvailabel")])
def test_the_kubernetes_check_sees_slips(documents: list[dict[str, Any]], kind: str, key: str) -> None:
    item = copy.deepcopy(next(item for item in documents if item["kind"] == kind))
    item["spec"][key] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


def test_ray_serve_takes_the_embedded_configuration_and_no_key_is_left_unread(service: dict[str, Any]) -> None:
    raw = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert raw == yaml.safe_load(CONFIG.read_text("utf-8"))
    ServeDeploySchema.model_validate(raw)
    assert unknown_keys(ServeDeploySchema, raw) == []


@pytest.mark.parametrize("slip", ["num_replica", "autoscaling_confg", "max_ongoing_request"])
def test_a_slip_in_the_serve_configuration_is_seen(service: dict[str, Any], slip: str) -> None:
    raw = yaml.safe_load(service["spec"]["serveConfigV2"])
    raw["applications"][0]["deployments"][0][slip] = 3
    ((path, advice),) = unknown_keys(ServeDeploySchema, raw)
    assert path == ("applications", 0, "deployments", 0, slip)
    assert "did you mean" in advice


def test_containers_run_without_root_capabilities_or_a_writable_root(service: dict[str, Any]) -> None:
    autoscaler = service["spec"]["rayClusterConfig"]["autoscalerOptions"]
    for template in pods(service).values():
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*template["spec"]["containers"], autoscaler):
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_only_the_autoscaler_holds_a_token_of_the_api_server(service: dict[str, Any]) -> None:
    templates = pods(service)
    assert not any(template["spec"]["automountServiceAccountToken"] for template in templates.values())
    mounts = [
        mount["name"] for template in templates.values() for mount in template["spec"]["containers"][0]["volumeMounts"]
    ]
    assert "autoscaler-token" not in mounts
    autoscaler = service["spec"]["rayClusterConfig"]["autoscalerOptions"]
    assert "autoscaler-token" in {mount["name"] for mount in autoscaler["volumeMounts"]}


def test_keys_come_as_a_read_only_file_where_the_configuration_reads_them(service: dict[str, Any]) -> None:
    keys_file = Path(yaml.safe_load(CONFIG.read_text("utf-8"))["applications"][0]["args"]["auth"]["keys_file"])
    for template in pods(service).values():
        (mount,) = (
            item
            for item in template["spec"]["containers"][0]["volumeMounts"]
            if item["mountPath"] == str(keys_file.parent)
        )
        assert mount["readOnly"]
        (volume,) = (item for item in template["spec"]["volumes"] if item["name"] == mount["name"])
        assert [item["path"] for item in volume["secret"]["items"]] == [keys_file.name]


def test_weights_may_come_from_a_volume_of_the_workers(service: dict[str, Any]) -> None:
    reward = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][1]["args"]["reward"]["config"]
    changed = pods(manifests(CONFIG, ClusterSettings(models_claim="weights"))[-1])
    (mount,) = (item for item in changed["gpu"]["spec"]["containers"][0]["volumeMounts"] if item["name"] == "models")
    (volume,) = (item for item in changed["gpu"]["spec"]["volumes"] if item["name"] == "models")
    assert (mount["mountPath"], mount["readOnly"]) == (str(Path(reward["checkpoint"]).parent), True)
    assert volume["persistentVolumeClaim"] == {"claimName": "weights", "readOnly": True}
    assert "models" not in {item["name"] for item in pods(service)["gpu"]["spec"]["volumes"]}


def test_no_secret_is_written_into_a_manifest(documents: list[dict[str, Any]], service: dict[str, Any]) -> None:
    assert "Secret" not in {item["kind"] for item in documents}
    password = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisPassword"]
    assert set(password) == {"valueFrom"}


def test_the_head_runs_no_replica_and_gets_no_request(service: dict[str, Any]) -> None:
    assert service["spec"]["excludeHeadPodFromServeSvc"]
    assert service["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_haproxy_is_on_everywhere_with_descriptors_to_spare(service: dict[str, Any]) -> None:
    for template in pods(service).values():
        values = {item["name"]: item["value"] for item in template["spec"]["containers"][0]["env"]}
        assert values["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert int(values["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) == HAPROXY_HARD_STOP_S
        assert int(values["RAY_START_ULIMIT_OPEN_FILES"]) > 2 * int(values["RAY_SERVE_HAPROXY_MAXCONN"]) + 8192


def test_a_worker_is_ready_only_when_its_proxy_is(service: dict[str, Any]) -> None:
    container = pods(service)["gpu"]["spec"]["containers"][0]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": 8000}
    assert container["livenessProbe"]["httpGet"]["port"] == 52365


def rules(documents: list[dict[str, Any]], direction: str) -> dict[str, list[dict[str, Any]]]:
    return {
        item["metadata"]["name"].removeprefix("roboserve-"): item["spec"].get(direction, [])
        for item in documents
        if item["kind"] == "NetworkPolicy" and direction.capitalize() in item["spec"]["policyTypes"]
    }


def test_the_network_is_closed_but_for_what_is_named(documents: list[dict[str, Any]]) -> None:
    incoming, outgoing = rules(documents, "ingress"), rules(documents, "egress")
    assert set(incoming) == {"default-deny", "ray", "operator", "clients", "monitoring"}
    assert set(outgoing) == {"default-deny", "ray", "dns", "redis", "autoscaler"}
    assert incoming["default-deny"] == outgoing["default-deny"] == []
    every = [rule for found in (incoming, outgoing) for entries in found.values() for rule in entries]
    assert all(rule.get("from") or rule.get("to") for rule in every), "an empty peer list means everybody"


def test_clients_reach_the_serving_port_and_no_other(documents: list[dict[str, Any]]) -> None:
    (rule,) = rules(documents, "ingress")["clients"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8000}]


def test_policies_select_exactly_our_pods(documents: list[dict[str, Any]], service: dict[str, Any]) -> None:
    for item in documents:
        if item["kind"] != "NetworkPolicy":
            continue
        wanted = item["spec"]["podSelector"]["matchLabels"]
        chosen = {
            name for name, template in pods(service).items() if wanted.items() <= template["metadata"]["labels"].items()
        }
        assert chosen == ({"head"} if item["metadata"]["name"].endswith("autoscaler") else {"head", "gpu"})


def test_client_addresses_and_closed_doors_are_settings() -> None:
    network = {"client_namespaces": [], "client_cidrs": ["192.0.2.0/24"], "monitoring_namespace": None}
    found = manifests(CONFIG, ClusterSettings.model_validate({"network": network}))
    assert rules(found, "ingress")["clients"][0]["from"] == [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
    assert "monitoring" not in rules(found, "ingress")
    network["client_cidrs"] = []
    assert "clients" not in rules(manifests(CONFIG, ClusterSettings.model_validate({"network": network})), "ingress")


def test_a_drain_leaves_all_workers_but_one(documents: list[dict[str, Any]]) -> None:
    (budget,) = (item for item in documents if item["kind"] == "PodDisruptionBudget")
    assert budget["spec"]["minAvailable"] == sum(group.min_replicas for group in ClusterSettings().worker_groups) - 1


def test_a_cluster_that_is_too_small_is_refused_with_both_numbers() -> None:
    for group, numbers in (({"max_replicas": 4}, ("16 GPUs", "4")), ({"min_replicas": 1}, ("4 GPUs", "1"))):
        with pytest.raises(ManifestError) as refusal:
            render(CONFIG, ClusterSettings.model_validate({"worker_groups": [group]}))
        assert all(number in str(refusal.value) for number in numbers)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda raw: raw.pop("applications"), "applications"),
        (lambda raw: raw["http_options"].update(host="127.0.0.1"), "127.0.0.1"),
        (lambda raw: raw["applications"][0]["args"].pop("auth"), "keys_file"),
        (lambda raw: [item["args"]["auth"].update(keys_file="keys.yaml") for item in raw["applications"]], "absolute"),
    ],
)
def test_a_configuration_that_cannot_run_in_a_cluster_is_refused(tmp_path: Path, change: Any, word: str) -> None:
    raw = yaml.safe_load(CONFIG.read_text("utf-8"))
    change(raw)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ManifestError, match=word):
        render(path, ClusterSettings())


@pytest.mark.parametrize(
    "settings",
    [
        {"nmae": "x"},
        {"name": "Not_A_Name"},
        {"run_as_user": 0},
        {"worker_groups": []},
        {"worker_groups": [{"min_replicas": 3, "max_replicas": 2}]},
        {"worker_groups": [{}, {}]},
        {"worker_groups": [{"memory": "32 GB"}]},
        {"redis": {"address": "redis"}},
        {"network": {"client_cidrs": ["everywhere"]}},
        {"max_connections": 1_000_000},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClusterSettings.model_validate(settings)


def test_settings_come_from_a_file_and_show(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("name: lab\nworker_groups: [{name: l40s, node_selector: {nvidia.com/gpu.product: NVIDIA-L40S}}]\n")
    service = manifests(CONFIG, load_settings(path))[-1]
    assert service["metadata"]["name"] == "lab"
    assert pods(service)["l40s"]["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L40S"}
    path.write_text("")
    assert load_settings(path) == ClusterSettings()
