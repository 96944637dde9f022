"""Adapters of a policy: low-rank changes of a checkpoint's linear layers, in PEFT's two files and a third.

- `adapter_config.json`, `adapter_model.safetensors`: as PEFT writes and reads them.
- `roboserve.json`: which base it belongs to, by content; the statistics that it normalises with; the hashes of the
  other two files, so that a folder that is half copied is known as one.

An adapter on another base than its own, or with another's statistics, answers without an error and wrongly.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from models.peft_files import CONFIG, WEIGHTS, LowRank, changes_of, rank_and_scale, require_base
from models.policies.normalizer import Normalizer  # noqa: TC001  pydantic reads it at run time

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FACTS = "roboserve.json"
FORMAT: Literal["roboserve-policy-adapter-1"] = "roboserve-policy-adapter-1"


@dataclass(frozen=True, kw_only=True)
class Base:
    """The checkpoint that an adapter changes; `content_hash` (SHA-256, hex) decides, not its name."""

    id: str
    revision: str
    content_hash: str


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """Everything in `roboserve.json`.

    Attributes:
        id, revision: of the adapted policy.
        state, action: the statistics that it was trained with.
        files: SHA-256, hex, of PEFT's two files.
    """

    id: str
    revision: str
    base: Base
    state: Normalizer
    action: Normalizer
    files: dict[str, str]
    format: Literal["roboserve-policy-adapter-1"] = FORMAT


@dataclass(frozen=True, kw_only=True)
class PolicyAdapter:
    """An adapter in memory, float32 on the CPU.

    Attributes:
        facts: what its folder says of it; `content_hash`: SHA-256, hex, of all that decides an answer.
        rank: of its changes; 0 where it has heads alone.
        layers: by the layer's name in the network; `heads`: parameters that it replaces whole, by their names.
    """

    facts: AdapterFacts
    content_hash: str
    rank: int
    layers: Mapping[str, LowRank]
    heads: Mapping[str, Tensor]

    @property
    def parameters(self) -> int:
        """Numbers that it holds."""
        parts = [tensor for layer in self.layers.values() for tensor in layer]
        return sum(tensor.numel() for tensor in (*parts, *self.heads.values()))


def is_adapter(folder: Path) -> bool:
    """Return whether a folder is a policy adapter's."""
    return (folder / FACTS).is_file()


def seal(folder: Path, *, name: str, revision: str, base: Base, state: Normalizer, action: Normalizer) -> AdapterFacts:
    """Write `roboserve.json` beside PEFT's two files, which must be there, and return what it says.

    Raises:
        FileNotFoundError: naming the file that is missing.
    """
    files = {part: hashlib.sha256(_bytes(folder, part)).hexdigest() for part in (CONFIG, WEIGHTS)}
    facts = AdapterFacts(id=name, revision=revision, base=base, state=state, action=action, files=files)
    (folder / f"{FACTS}.new").write_text(json.dumps(asdict(facts), indent=2) + "\n", "utf-8")
    (folder / f"{FACTS}.new").replace(folder / FACTS)
    return facts


def read_adapter(folder: Path, *, base: Base) -> PolicyAdapter:
    """Read and check an adapter's folder.

    Args:
        base: the checkpoint at hand.

    Raises:
        FileNotFoundError: naming the file that the folder lacks.
        WrongBaseError: it belongs to another base.
        ValueError: it is damaged, changed since it was sealed, or asks for more than plain LoRA.
    """
    said = _bytes(folder, FACTS)
    parts = {name: _bytes(folder, name) for name in (CONFIG, WEIGHTS)}
    facts = _facts(said)
    require_base(facts.base, base)
    for name, data in parts.items():
        if hashlib.sha256(data).hexdigest() != facts.files.get(name):
            raise ValueError(f"adapter: {name} is not the one that {FACTS} was written for")
    rank, scale = rank_and_scale(parts[CONFIG])
    try:
        tensors = load(parts[WEIGHTS])
    except SafetensorError as error:
        raise ValueError(f"adapter: {WEIGHTS} is damaged") from error
    layers, heads = changes_of(tensors, scale)
    content_hash = hashlib.sha256(json.dumps(asdict(facts), sort_keys=True).encode()).hexdigest()
    return PolicyAdapter(facts=facts, content_hash=content_hash, rank=rank, layers=layers, heads=heads)


def require_fit(adapter: PolicyAdapter, network: nn.Module) -> None:
    """Check an adapter against the network that it changes.

    Raises:
        ValueError: naming the layer or parameter that the network lacks or that has another shape.
    """
    modules, own = dict(network.named_modules()), dict(network.named_parameters())
    for name, (a, b) in adapter.layers.items():
        layer = modules.get(name)
        if layer is None or not isinstance(layer, nn.Linear):
            raise ValueError(f"adapter: the base has no linear layer {name}")
        if (b.shape[0], a.shape[1]) != tuple(layer.weight.shape):
            raise ValueError(f"adapter: the change of {name} does not have its shape {tuple(layer.weight.shape)}")
    for name, value in adapter.heads.items():
        if name not in own or own[name].shape != value.shape:
            raise ValueError(f"adapter: the base has no {name} of shape {tuple(value.shape)}")


def merge(network: nn.Module, adapter: PolicyAdapter) -> None:
    """Add an adapter to a network's weights in place, summed in float32; heads take their places.

    Raises:
        ValueError: see `require_fit`.
    """
    require_fit(adapter, network)
    own = dict(network.named_parameters())
    for name, (a, b) in adapter.layers.items():
        weight = own[f"{name}.weight"]
        weight.data = (weight.data.float() + b @ a).to(weight.dtype)
    for name, value in adapter.heads.items():
        own[name].data = value.to(own[name].dtype)


def _bytes(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"adapter: the folder {folder.name!r} has no {name}") from None


def _facts(data: bytes) -> AdapterFacts:
    try:
        return TypeAdapter(AdapterFacts).validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"adapter: {FACTS}: {where}: {first['msg']}") from error
