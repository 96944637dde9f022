"""`roboserve k8s render`: the manifests of a configuration."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pydantic import ValidationError

from k8s.manifests import ClusterSettings, ManifestError, load_settings
from k8s.manifests import render as render_manifests
from serving.config import ConfigError, load_config

if TYPE_CHECKING:
    from pathlib import Path


def render(config: Path, settings: Path | None = None) -> int:
    """Print the manifests as one YAML stream; tell on stderr what is wrong, and return 1 then."""
    try:
        cluster = ClusterSettings() if settings is None else load_settings(settings)
        load_config(config)
        text = render_manifests(config, cluster)
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}, got {item['input']!r}" for item in error.errors())
        print(f"{settings}: " + "; ".join(wrong), file=sys.stderr)
        return 1
    except (ConfigError, ManifestError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(text, end="")
    return 0
