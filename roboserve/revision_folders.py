"""Where the revisions of a served policy lie: its application's configuration says so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from roboserve import state
from serving.config import PlatformConfig, PolicyArgs, load_config

if TYPE_CHECKING:
    from collections.abc import Iterator

_EMBEDDED = Path(__file__).parent.parent / "serving" / "configs" / "embedded.yaml"


class ServedPolicy(NamedTuple):
    """A policy application: its arguments, and where it answers."""

    args: PolicyArgs
    route: str


def configuration(config: Path | None) -> PlatformConfig:
    """Return a configuration; when left out, that of the running platform, or the embedded one.

    Raises:
        ConfigError: it is not valid.
    """
    running = state.read()
    return load_config(config or (Path(running.config) if running else _EMBEDDED))


def served_policies(platform: PlatformConfig) -> Iterator[ServedPolicy]:
    """Give the policy applications of a configuration."""
    for application in platform.raw["applications"]:
        args = platform.args[str(application.get("name", "default"))]
        if isinstance(args, PolicyArgs):
            yield ServedPolicy(args, str(application.get("route_prefix", "/")))


def revisions_folder(name: str, config: Path | None) -> Path:
    """Return the folder of a policy's revisions.

    Raises:
        ValueError: no application serves it, or it takes no revisions; ConfigError: see `configuration`.
    """
    policies = {policy.args.name: policy.args for policy in served_policies(configuration(config))}
    if name not in policies:
        raise ValueError(f"no policy {name!r} is in the configuration; it has {', '.join(policies) or 'none'}")
    settings = policies[name].revisions
    if settings is None:
        raise ValueError(f"policy {name!r} takes no revisions: add `revisions: {{folder: ...}}` to its args")
    return Path(settings.folder)
