"""One YAML file is the platform's configuration and a valid Ray Serve configuration at once.

Ray Serve lets unknown keys pass and reports wrong values without a place. Here the file is checked whole, before
anything starts: Ray's own keys against Ray's schema, each application's `args` against the model of its `import_path`;
a wrong key or value is refused with its line and what is allowed.
"""

from __future__ import annotations

import difflib
import importlib
import typing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.auth import is_loopback
from serving.yaml_lines import Lines, repeated_keys

if TYPE_CHECKING:
    from pathlib import Path

_RAY_HOST = "0.0.0.0"  # noqa: S104  where Ray Serve binds when nothing is said
NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LimitSettings(Strict):
    """Caps on what one peer may ask for."""

    message_bytes: int = Field(
        16 * 1024 * 1024, ge=1024, le=16 * 1024 * 1024, description="uvicorn's cap is 16 MiB too"
    )
    image_pixels: int = Field(2048 * 2048, ge=1, description="height x width of one image, checked before decoding")
    sessions: int = Field(256, ge=1, description="open websocket sessions of one replica")
    in_flight: int = Field(8, ge=1, description="unanswered requests of one session")
    http_requests: int = Field(
        64, ge=1, description="unanswered HTTP requests of one replica; a body is held in memory"
    )
    remembered_sessions: int = Field(4096, ge=1, description="sessions whose last chunk is kept for RTC")
    idle_timeout_s: float = Field(300.0, gt=0, description="a session that sends nothing for so long is closed")
    send_timeout_s: float = Field(10.0, gt=0, description="a peer that takes nothing for so long is given up")
    body_timeout_s: float = Field(20.0, gt=0, description="an HTTP body must have arrived by then")
    forward_timeout_s: float = Field(120.0, gt=0, description="a longer forward makes the replica unhealthy")


class BatchingSettings(Strict):
    """How requests ride together; see `serving.batcher`."""

    max_batch: int = Field(16, ge=1, le=1024)
    max_queue: int = Field(64, ge=1, description="beyond it requests are refused as overloaded")
    max_wait_ms: float | None = Field(None, ge=0, le=1000, description="longest gathering wait; null adapts it")
    default_deadline_ms: float = Field(10_000.0, gt=0, description="order of requests that carry no deadline")


class AuthSettings(Strict):
    """Where the API keys are. Without a file the server is open, to loopback peers only."""

    keys_file: str | None = Field(None, description="path of the key file (roboserve keys new)")


class ServiceArgs(Strict):
    """What the `args` of every served model share; `fixed_routes`: prefixes that need not end in the model's name."""

    fixed_routes: ClassVar[tuple[str, ...]] = ()

    name: str = Field(pattern=NAME, description="the NAME of /policy/NAME")
    limits: LimitSettings = LimitSettings()
    batching: BatchingSettings = BatchingSettings()
    auth: AuthSettings = AuthSettings()


class FactorySettings(Strict):
    """A class by import path, and its configuration: adding a model never edits a list."""

    factory: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:Class; Class.Config is its configuration"
    )
    config: dict[str, Any] = Field(default_factory=dict)


class OpenpiKeys(Strict):
    """Names that a stock openpi client uses for this policy's inputs."""

    images: dict[str, str] = Field(
        default_factory=dict, description="their key to our camera; empty accepts observation/CAMERA"
    )
    state: str = "observation/state"
    prompt: str = "prompt"
    default_prompt: str | None = Field(None, description="used when a message carries none")


class RevisionSettings(Strict):
    """Where jobs publish better checkpoints of a policy, and who gets them; see `serving.revisions`."""

    folder: str = Field(min_length=1, description="made by the first that publishes; on a cluster, a shared volume")
    canary: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="share of new sessions that get the newest, the others get the pinned one, or the configured "
        "checkpoint where none is pinned; null: all get the newest until one is pinned, and none from then on",
    )
    in_memory: int = Field(3, ge=3, description="the pinned, the newest, and room for the one to come")
    poll_s: float = Field(2.0, gt=0, description="time between looks at the folder")
    formats: dict[str, FactorySettings] = Field(
        default_factory=dict, description="`format` of a checkpoint to its class, where it is not the policy's own"
    )


class PolicyArgs(ServiceArgs):
    """The `args` of a served policy."""

    policy: FactorySettings
    revisions: RevisionSettings | None = None
    openpi: OpenpiKeys = OpenpiKeys()


class RewardSettings(Strict):
    """Caps of a reward service, and how much it keeps."""

    clip_frames: int = Field(1024, ge=1, description="frames of one clip; a longer one is refused, never cut")
    clips: int = Field(64, ge=1, description="clips, or pairs, of one request")
    cameras: int = Field(8, ge=1, description="cameras of one clip or session")
    clip_bytes: int = Field(
        1 << 30, ge=1, description="prepared frames of all requests under way; beyond it requests are overload"
    )
    upload_bytes: int = Field(
        1 << 26, ge=1024, description="one form of .npy files (/evaluate_batch_npy), which carries frames uncompressed"
    )
    encode_frames: int = Field(64, ge=1, description="frames that go through the vision tower at once")
    forward_tokens: int = Field(4096, ge=1, description="image tokens that ride in one forward")
    request_queries: int = Field(64, ge=1, description="queries of one request that may wait for a forward at once")
    cache_bytes: int = Field(1 << 29, ge=0, description="features of frames that were seen lately")
    sessions: int = Field(256, ge=1, description="open streaming sessions of one replica")
    session_frames: int = Field(4096, ge=1, description="frames of one session and camera")
    session_bytes: int = Field(1 << 30, ge=1, description="prepared frames of all sessions")
    session_idle_s: float = Field(600.0, gt=0, description="a session that gets no frame for so long is dropped")
    niceness: int = Field(
        0, ge=0, le=19, description="how far forwards and decoding yield the cores to others, in steps of nice(1)"
    )


class RewardArgs(ServiceArgs):
    """The `args` of a served reward model."""

    reward: FactorySettings
    rewards: RewardSettings = RewardSettings()


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a configuration file."""

    line: int
    where: str
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.where}: {self.text}"


class ConfigError(ValueError):
    """A configuration was refused; `problems` says where and why."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        super().__init__(f"{source}: " + "\n".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class PlatformConfig:
    """A configuration that passed: `raw` is what Ray Serve gets."""

    source: str
    raw: dict[str, Any]
    args: dict[str, BaseModel]

    @property
    def host(self) -> str:
        """Address that the platform binds."""
        return str(self.raw.get("http_options", {}).get("host", _RAY_HOST))

    def with_port(self, port: int) -> PlatformConfig:
        """Return the same configuration on another port."""
        http_options = {**self.raw.get("http_options", {}), "port": port}
        return replace(self, raw={**self.raw, "http_options": http_options})

    @property
    def port(self) -> int:
        """Port that the platform binds."""
        return int(self.raw.get("http_options", {}).get("port", 8000))


def load_config(path: Path) -> PlatformConfig:
    """Read and check a platform configuration.

    Raises:
        ConfigError: with every problem found, each with its line.
    """
    try:
        text = path.read_text("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = Problem(
            line=mark.line + 1 if mark else 1, where="file", text=getattr(error, "problem", None) or "is not YAML text"
        )
        raise ConfigError(path.name, [problem]) from error
    if not isinstance(raw, dict):
        raise ConfigError(path.name, [Problem(line=1, where="file", text="must be a map with an 'applications' list")])
    lines = Lines(node)
    problems = [
        Problem(line=line, where=".".join(map(str, where)), text="is there already")
        for line, where in repeated_keys(node)
    ]
    problems += _ray_problems(raw, lines)
    args, found = _args(raw, lines)
    problems += found + _route_problems(raw, args, lines) + _exposure_problems(raw, args, lines)
    if problems:
        raise ConfigError(path.name, sorted(problems, key=lambda problem: problem.line))
    return PlatformConfig(source=path.name, raw=raw, args=args)


def _validation_problems(error: ValidationError, prefix: tuple[Any, ...], lines: Lines) -> list[Problem]:
    return [
        Problem(
            line=lines.of(prefix + item["loc"]),
            where=".".join(map(str, prefix + item["loc"])) or "file",
            text=f"{item['msg']} (got {item['input']!r:.80})",
        )
        for item in error.errors()
    ]


def unknown_keys(model: type[BaseModel], value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], str]]:
    """Return (path, advice) for every key that a pydantic model would let pass unread, at any depth."""
    if not isinstance(value, dict):
        return []
    fields = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
    found = []
    for key, child in value.items():
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"allowed are {', '.join(sorted(fields))}"
            found.append(((*path, key), f"unknown key; {hint}"))
            continue
        for nested in _models_in(fields[key]):
            children = enumerate(child) if isinstance(child, list) else [(None, child)]
            for index, grandchild in children:
                found += unknown_keys(nested, grandchild, (*path, key) if index is None else (*path, key, index))
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]


def _ray_problems(raw: dict[str, Any], lines: Lines) -> list[Problem]:
    from ray.serve.schema import ServeDeploySchema

    found = [
        Problem(line=lines.of(path), where=".".join(map(str, path)), text=text)
        for path, text in unknown_keys(ServeDeploySchema, raw)
    ]
    try:
        ServeDeploySchema.model_validate(raw)
    except ValidationError as error:
        found += _validation_problems(error, (), lines)
    return found


def args_model(import_path: str) -> type[BaseModel]:
    """Return the pydantic model that an application's builder takes: the annotation of its only parameter.

    Raises:
        ValueError: the builder cannot be imported or takes something else.
    """
    module_name, _, attribute = import_path.replace(":", ".").rpartition(".")
    try:
        builder = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{import_path!r} cannot be imported: {error}") from error
    hints = [hint for name, hint in typing.get_type_hints(builder).items() if name != "return"]
    if len(hints) != 1 or not (isinstance(hints[0], type) and issubclass(hints[0], BaseModel)):
        raise ValueError(f"{import_path!r} must take one pydantic model")
    return hints[0]


def _applications(raw: dict[str, Any]) -> list[Any]:
    """Return what can be looked at; Ray's schema tells what is wrong with another shape."""
    applications = raw.get("applications")
    return applications if isinstance(applications, list) else []


def _args(raw: dict[str, Any], lines: Lines) -> tuple[dict[str, BaseModel], list[Problem]]:
    parsed: dict[str, BaseModel] = {}
    problems: list[Problem] = []
    for index, application in enumerate(_applications(raw)):
        if not isinstance(application, dict) or not isinstance(application.get("import_path"), str):
            continue
        prefix = ("applications", index, "args")
        try:
            model = args_model(application["import_path"])
            parsed[str(application.get("name", "default"))] = model.model_validate(application.get("args") or {})
        except ValidationError as error:
            problems += _validation_problems(error, prefix, lines)
        except ValueError as error:
            where = ("applications", index, "import_path")
            problems.append(Problem(line=lines.of(where), where=".".join(map(str, where)), text=str(error)))
    return parsed, problems


def _route_problems(raw: dict[str, Any], args: dict[str, BaseModel], lines: Lines) -> list[Problem]:
    """Refuse a route under which a model would not answer to its name."""
    problems = []
    for index, application in enumerate(_applications(raw)):
        model = args.get(str(application.get("name", "default"))) if isinstance(application, dict) else None
        route = str(application.get("route_prefix", "/")) if model else "/"
        if not isinstance(model, ServiceArgs) or route in ("/", *model.fixed_routes):
            continue
        if route.rpartition("/")[2] != model.name:
            where = ("applications", index, "route_prefix")
            fixed = "".join(f", {name!r}" for name in model.fixed_routes)
            text = f"{route!r} must be '/'{fixed} or end in the model's name, {model.name!r}"
            problems.append(Problem(line=lines.of(where), where=".".join(map(str, where)), text=text))
    return problems


def _exposure_problems(raw: dict[str, Any], args: dict[str, BaseModel], lines: Lines) -> list[Problem]:
    """Refuse to bind beyond loopback while any application has no keys."""
    host = str((raw.get("http_options") or {}).get("host", _RAY_HOST))
    if is_loopback(host):
        return []
    bare = [name for name, model in args.items() if isinstance(model, ServiceArgs) and model.auth.keys_file is None]
    if not bare:
        return []
    text = (
        f"{host!r} is reachable from elsewhere, and {', '.join(bare)} has no auth.keys_file; bind 127.0.0.1 or add keys"
    )
    return [Problem(line=lines.of(("http_options", "host")), where="http_options.host", text=text)]
