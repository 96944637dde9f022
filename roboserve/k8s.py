"""`roboserve k8s render`: the manifests of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k8s.manifests import ClusterSettings
from k8s.manifests import render as render_manifests

if TYPE_CHECKING:
    from pathlib import Path


def render(config: Path) -> int:
    """Print the manifests as one YAML stream."""
    print(render_manifests(config, ClusterSettings()), end="")
    return 0
