"""What a cluster adds to the platform's configuration: names, sizes, and who may talk to whom."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$")]

# The private ranges: where the API server of nearly every cluster is. Narrow it to its own address where you know it.
_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkerGroup(Strict):
    """One kind of worker pod. The in-tree autoscaler keeps between `min_replicas` and `max_replicas` of them."""

    name: Name = "gpu"
    min_replicas: int = Field(4, ge=0)
    max_replicas: int = Field(16, ge=1, le=1000)
    cpu: Quantity = "8"
    memory: Quantity = "32Gi"
    gpus: int = Field(1, ge=0, le=16)
    gpu_resource: str = Field("nvidia.com/gpu", description="the device plugin's resource name")
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="{nvidia.com/gpu.product: ...} picks a type"
    )
    idle_timeout_s: int = Field(600, ge=60, description="a pod without replicas is given back after it")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> WorkerGroup:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas: {self.min_replicas} is over max_replicas {self.max_replicas}")
        return self


class Redis(Strict):
    """Where Ray's control plane keeps its state, so that a lost head pod does not take the replicas with it."""

    address: str = Field("redis.roboserve-redis.svc.cluster.local:6379", pattern=r"^[\w.-]+:\d{1,5}$")
    password_secret: Name = "roboserve-redis"  # noqa: S105  a name
    password_key: str = "password"  # noqa: S105  a name
    namespace: Name = "roboserve-redis"
    pod_labels: dict[str, str] = Field(default_factory=lambda: {"app.kubernetes.io/name": "redis"})

    @property
    def port(self) -> int:
        """Port of the address."""
        return int(self.address.rpartition(":")[2])


class Network(Strict):
    """Who may reach the platform, and what it may reach. Everything else is denied."""

    client_namespaces: tuple[Name, ...] = Field(("gateway",), description="may call the serving port")
    client_cidrs: tuple[IPvAnyNetwork, ...] = Field(
        (), description="may call the serving port from outside the cluster"
    )
    operator_namespace: Name = "kuberay-system"
    monitoring_namespace: Name | None = Field("monitoring", description="may scrape; null closes the metrics ports")
    api_server_cidrs: tuple[IPvAnyNetwork, ...] = Field(_PRIVATE, validate_default=True)


class Upgrade(Strict):
    """Incremental upgrade: traffic moves from the old cluster to the new one step by step through a Gateway."""

    gateway_class: str
    max_surge_percent: int = Field(25, ge=1, le=100)
    step_percent: int = Field(10, ge=1, le=100)
    interval_s: int = Field(30, ge=1)


class ClusterSettings(Strict):
    """Settings of one cluster; the defaults fit `serving/configs/cluster.yaml`."""

    name: Name = "roboserve"
    namespace: Name = "roboserve"
    image: str = Field("roboserve:0.1.0", min_length=1, description="an image with roboserve and the models installed")
    ray_version: str = Field("2.60.0", pattern=r"^\d+\.\d+\.\d+$", description="the Ray in the image")
    run_as_user: int = Field(1000, ge=1, description="never root")
    head_cpu: Quantity = "2"
    head_memory: Quantity = "8Gi"
    worker_groups: tuple[WorkerGroup, ...] = Field((WorkerGroup(),), min_length=1)
    keys_secret: Name = Field("roboserve-api-keys", description="secret that holds the key file")
    models_claim: Name | None = Field(
        None, description="volume claim with full-size weights, read-only at /models; null where the image holds them"
    )
    runs_claim: Name | None = Field(
        None,
        description="volume claim of run folders and revisions, at /runs: jobs write it, replicas read it",
    )
    ray_token_secret: Name | None = Field(None, description="secret of Ray's own token; null lets KubeRay make one")
    redis: Redis = Redis()
    network: Network = Network()
    upgrade: Upgrade | None = Field(None, description="null starts a whole second cluster, then switches")
    max_connections: int = Field(4096, ge=64, le=30_000, description="of each HAProxy; costs two descriptors each")

    @model_validator(mode="after")
    def _groups_have_names_of_their_own(self) -> ClusterSettings:
        names = [group.name for group in self.worker_groups]
        if len(set(names)) != len(names):
            raise ValueError(f"worker_groups: names must differ, got {', '.join(names)}")
        return self


class JobSettings(Strict):
    """One finetuning job in a cluster of its own: one pod, which ends with it."""

    name: Name
    words: tuple[str, ...] = Field(min_length=1, description="what follows `python -m`; its run folder is below /runs")
    cpu: Quantity = "4"
    memory: Quantity = "16Gi"
    gpus: int = Field(0, ge=0, le=16)
    gpu_resource: str = "nvidia.com/gpu"
    threads: int = Field(1, ge=1, description="CPU threads of each process")
    retries: int = Field(3, ge=0, description="new pods, each of which goes on from the run folder")
    keep_s: int = Field(3600, ge=0, description="the RayJob is kept so long after its end, for its log")
    api_key_secret: Name | None = Field(None, description="secret whose `key` asks served models for rewards")

    @model_validator(mode="after")
    def _run_folder_outlives_the_pod(self) -> JobSettings:
        told = [
            word.removeprefix("--out=") if word.startswith("--out=") else following
            for word, following in zip(self.words, (*self.words[1:], ""), strict=True)
            if word == "--out" or word.startswith("--out=")
        ]
        if len(told) != 1 or not told[0].startswith("/runs/"):
            raise ValueError(f"words: --out must be one folder below /runs, which outlives the pod; got {told}")
        return self
