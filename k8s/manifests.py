"""Manifests of a cluster, from the platform's configuration and the cluster's settings.

`python -m k8s.manifests serving/configs/cluster.yaml [settings.yaml]` prints them, as `roboserve k8s render` does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from k8s.configuration import ManifestError, read_platform, require_room
from k8s.pods import Block, Manifest
from k8s.policies import disruption_budget, network_policies, service_accounts
from k8s.rayjob import ray_job
from k8s.rayservice import ray_service
from k8s.settings import ClusterSettings, JobSettings

__all__ = ["ClusterSettings", "JobSettings", "ManifestError", "load_settings", "manifests", "render", "render_job"]


def load_settings(path: Path) -> ClusterSettings:
    """Read the settings of a cluster.

    Raises:
        pydantic.ValidationError: naming each wrong key and value.
        ManifestError: the file is not YAML text.
    """
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path.name}: is not YAML text: {error}") from error
    return ClusterSettings.model_validate(raw or {})


def manifests(config_path: Path, settings: ClusterSettings) -> list[Manifest]:
    """Return every manifest, in the order in which they should be applied.

    Raises:
        ManifestError: the configuration cannot run in a cluster, or not in this one.
    """
    platform = read_platform(config_path)
    require_room(platform, settings)
    return [
        *service_accounts(settings),
        *network_policies(platform, settings),
        disruption_budget(settings),
        ray_service(platform, settings),
    ]


def render(config_path: Path, settings: ClusterSettings) -> str:
    """Return the manifests as one YAML stream.

    Raises:
        ManifestError: the configuration cannot run in a cluster, or not in this one.
    """
    header = (
        f"# Made from {config_path.name} by `roboserve k8s render`: change the configuration, not this file.\n"
        "# For KubeRay 1.7. What must be there first (namespace, secrets, Redis) is in k8s/README.md.\n"
    )
    documents = (
        yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=120) for manifest in manifests(config_path, settings)
    )
    return header + "---\n" + "---\n".join(documents)


def render_job(job: JobSettings, settings: ClusterSettings) -> str:
    """Return the RayJob of a finetuning command as YAML.

    Raises:
        ManifestError: the cluster's settings name no volume for run folders.
    """
    header = (
        "# Made by `roboserve k8s job`: give the command again, and do not change this file.\n"
        "# For KubeRay 1.7, beside the RayService, whose network policies cover it.\n"
    )
    return header + yaml.dump(ray_job(job, settings), Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and blocks as blocks."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


_Dumper.add_representer(Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|"))


if __name__ == "__main__":
    sys.stdout.write(render(Path(sys.argv[1]), load_settings(Path(sys.argv[2])) if sys.argv[2:] else ClusterSettings()))
