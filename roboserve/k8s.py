"""`roboserve k8s render`: the manifests of a configuration."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pydantic import ValidationError

from k8s.manifests import ClusterSettings, JobSettings, ManifestError, load_settings, render_job
from k8s.manifests import render as render_manifests
from roboserve.jobs import JobError, command_of
from serving.config import ConfigError, load_config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def render(config: Path, settings: Path | None = None) -> int:
    """Print the manifests as one YAML stream; tell on stderr what is wrong, and return 1 then."""
    try:
        cluster = ClusterSettings() if settings is None else load_settings(settings)
        load_config(config)
        text = render_manifests(config, cluster)
    except ValidationError as error:
        print(f"{settings}: {_wrong(error)}", file=sys.stderr)
        return 1
    except (ConfigError, ManifestError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(text, end="")
    return 0


def job(
    method: str,
    arguments: Sequence[str],
    *,
    publish: str | None,
    config: Path,
    settings: Path | None,
    **facts: object,
) -> int:
    """Print the RayJob of a finetuning command; tell on stderr what is wrong, and return 1 then.

    Args:
        settings: of the cluster. `facts`: of `JobSettings`, and `runs_claim` in the place of the settings' own.
    """
    claim = facts.pop("runs_claim", None)
    try:
        cluster = ClusterSettings() if settings is None else load_settings(settings)
        if claim is not None:
            cluster = ClusterSettings.model_validate({**cluster.model_dump(), "runs_claim": claim})
        words = command_of(method, arguments, publish=publish, config=config)
        text = render_job(JobSettings.model_validate({**facts, "words": words}), cluster)
    except ValidationError as error:
        print(_wrong(error), file=sys.stderr)
        return 1
    except (JobError, ManifestError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(text, end="")
    return 0


def _wrong(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, item['loc']))}: {item['msg']}, got {item['input']!r}" for item in error.errors()
    )
