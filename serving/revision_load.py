"""From a revision's folder to a policy that may answer robots: everything that can be wrong with it is found here."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clients.errors import RoboserveError
from models.policies.contract import AdaptedPolicy
from models.revisions import BASE, content_of
from serving.factory import make_model
from serving.policy_model import checked_forward, contract_of, make_policy, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from clients.contract import PolicyContract
    from models.policies.contract import ActionChunk, ActItem, Policy, PolicySpec
    from models.revisions import Revision
    from serving.config import FactorySettings, PolicyArgs

logger = logging.getLogger("ray.serve")

# What a connected robot was promised and must go on finding, whichever revision answers it.
_INTERFACE = (
    *("cameras", "state", "action", "control_hz", "chunk_length", "execute", "instruction_chars", "follows_path"),
    *("supports_rtc", "stateful", "light"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedRevision:
    """A revision in memory.

    Attributes:
        id: of the revision, or "base".
        forward: what the batcher runs, see `checked_forward`.
        promised: the contract of the base alone.
        model: what a reply of the base says of who answered.
    """

    id: str
    policy: Policy
    forward: Callable[[Sequence[ActItem]], list[ActionChunk | Exception]]
    promised: PolicyContract
    model: dict[str, str]

    @property
    def spec(self) -> PolicySpec:
        """What the policy wants and gives."""
        return self.policy.spec

    @property
    def adapters(self) -> Mapping[str, str]:
        """Names of the adapters that may be asked for now, to their content hashes."""
        return self.policy.adapters if isinstance(self.policy, AdaptedPolicy) else {}

    @property
    def contract(self) -> PolicyContract:
        """What robots see while it is the one that they would get."""
        return replace(self.promised, adapters=tuple(sorted(self.adapters)))

    def require_adapter(self, name: str) -> None:
        """Refuse a request for an adapter that is not served.

        Raises:
            RoboserveError: `not_found`, naming those that are, and what is wrong with one that is there.
        """
        if name in self.adapters:
            return
        refused = self.policy.refused_adapters if isinstance(self.policy, AdaptedPolicy) else {}
        reason = f" ({refused[name]})" if name in refused else ""
        known = ", ".join(sorted(self.adapters)) or "none"
        raise RoboserveError("not_found", f"adapter: {name!r} is not served{reason}; known are {known}")

    def answered_by(self, adapter: str | None, adapter_hash: str | None) -> dict[str, str]:
        """Return what a reply says of who answered: an adapter gives its name and hash to the model's id."""
        if adapter is None or adapter_hash is None:
            return self.model
        said = f"{self.model['id']}:{adapter}@{adapter_hash[:12]}"
        return {**self.model, "id": said, "adapter": adapter, "adapter_hash": adapter_hash}


def load_base(args: PolicyArgs) -> LoadedRevision:
    """Load and warm up the checkpoint that the configuration names.

    Raises:
        ValueError: see `make_policy`.
        RoboserveError: `invalid_output`, see `warm_up`.
    """
    policy = make_policy(args)
    return _ready(policy, contract_of(policy.spec, args), BASE)


def load_revision(args: PolicyArgs, revision: Revision, folder: Path, base: PolicySpec) -> LoadedRevision:
    """Check, load and warm up a revision.

    Args:
        base: what the configured checkpoint wants and gives, which is what robots were promised.

    Raises:
        ValueError: its content is not what was published, it has weights that are not finite, or it is not for these
            robots; beside it whatever the policy's class raises.
        RoboserveError: `invalid_output`, see `warm_up`.
    """
    found = content_of(folder)
    if found != revision.content_hash:
        raise ValueError(f"content: is {found[:12]}, was {revision.content_hash[:12]} when it was published")
    require_finite_weights(folder)
    policy: Policy = make_model(_factory(args, folder), "revision")
    require_same_interface(policy.spec, base)
    promised = contract_of(base, args)
    return _ready(policy, replace(promised, revision=revision.id, content_hash=policy.spec.content_hash), revision.id)


def _ready(policy: Policy, contract: PolicyContract, name: str) -> LoadedRevision:
    started = time.perf_counter()
    warm_up(policy)
    warm_up_ms = round((time.perf_counter() - started) * 1e3, 1)
    told = {"model": contract.model, "revision": contract.revision, "warm_up_ms": warm_up_ms}
    logger.info("policy warmed up", extra=told)
    model = {"id": contract.model, "revision": contract.revision, "content_hash": contract.content_hash}
    return LoadedRevision(id=name, policy=policy, forward=checked_forward(policy), promised=contract, model=model)


def _factory(args: PolicyArgs, folder: Path) -> FactorySettings:
    """Return the class for a checkpoint: by the `format` in its configuration, the application's own for all others."""
    settings = args.policy
    config = folder / "config.json"
    if args.revisions is not None and config.is_file():
        written: Any = json.loads(config.read_text("utf-8"))
        named = written.get("format") if isinstance(written, dict) else None
        settings = args.revisions.formats.get(str(named), settings)
    return settings.model_copy(update={"config": {**settings.config, "checkpoint": str(folder)}})


def require_finite_weights(folder: Path) -> None:
    """Refuse a checkpoint with a weight that is not finite.

    Raises:
        ValueError: naming file and tensor.
    """
    from safetensors import safe_open

    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is no mapping
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    raise ValueError(f"weights: {name} in {file.name} has values that are not finite")


def require_same_interface(spec: PolicySpec, base: PolicySpec) -> None:
    """Refuse a policy that is not for the robots of another one.

    What a request may ask for beside (noise, steps, context noise) may be missing: such a request is then refused.

    Raises:
        ValueError: naming what differs.
    """
    differing = [name for name in _INTERFACE if getattr(spec, name) != getattr(base, name)]
    if spec.context_size not in (0, base.context_size):
        differing.append("context_size")
    if differing:
        said = "; ".join(f"{name} {getattr(spec, name)!s:.60} for {getattr(base, name)!s:.60}" for name in differing)
        raise ValueError(f"interface: another than that of the configured checkpoint: {said}")
