"""PEFT's two files of a LoRA adapter, as far as every family of models reads them alike.

An adapter on another base than its own answers without an error and wrongly, so a base is known by its content.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
MAX_RANK = 256
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Settings of PEFT's that change what an adapter's numbers mean, and the values for which they mean plain LoRA.
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
}


class Identity(Protocol):
    """A checkpoint by its name and, what decides, the SHA-256 of its content, hex."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def revision(self) -> str:
        """Version of its weights."""
        ...

    @property
    def content_hash(self) -> str:
        """Of its content."""
        ...


class WrongBaseError(ValueError):
    """The base at hand is not the one that an adapter was trained on.

    Attributes:
        expected, found: content hashes, SHA-256, hex.
    """

    def __init__(self, belongs: Identity, found: Identity) -> None:
        self.expected, self.found = belongs.content_hash, found.content_hash
        super().__init__(
            f"adapter: it belongs to {belongs.id} revision {belongs.revision} with content hash {self.expected}, "
            f"the base at hand is {found.id} revision {found.revision} with {self.found}"
        )


def require_base(belongs: Identity, found: Identity) -> None:
    """Refuse an adapter on another base than its own.

    Raises:
        WrongBaseError: the contents differ.
    """
    if belongs.content_hash != found.content_hash:
        raise WrongBaseError(belongs, found)


class LowRank(NamedTuple):
    """A layer's change B A of rank r: `a` (r, in), `b` (out, r), float32, which is scaled already."""

    a: Tensor
    b: Tensor


def rank_and_scale(data: bytes) -> tuple[int, float]:
    """Return rank and factor of an adapter: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732).

    Args:
        data: of `adapter_config.json`.

    Raises:
        ValueError: it is damaged, or asks for more than plain LoRA.
    """
    try:
        raw: Any = json.loads(data)
        rank, alpha, stabilised = int(raw["r"]), float(raw["lora_alpha"]), raw.get("use_rslora") is True
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"adapter: {CONFIG} is damaged, or not LoRA's") from error
    for name, plain in _PLAIN.items():
        if name in raw and raw[name] not in plain:
            raise ValueError(f"adapter: {CONFIG}: {name} {raw[name]!r:.40} is more than plain LoRA")
    if not 1 <= rank <= MAX_RANK or not math.isfinite(alpha):
        raise ValueError(f"adapter: {CONFIG} is damaged: r {rank} must be 1 to {MAX_RANK} and lora_alpha finite")
    return rank, alpha / (math.sqrt(rank) if stabilised else rank)


def changes_of(tensors: Mapping[str, Tensor], scale: float) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """Return what an adapter changes: layers by their names, and parameters that it replaces whole by theirs.

    Args:
        tensors: by PEFT's names.

    Raises:
        ValueError: naming the tensor that has no counterpart, does not fit it, or is not finite.
    """
    given = {name.removeprefix(PREFIX): value.float() for name, value in tensors.items()}
    layers: dict[str, LowRank] = {}
    whole: dict[str, Tensor] = {}
    for name, value in given.items():
        if not value.isfinite().all():
            raise ValueError(f"adapter: {name} has values that are not finite")
        if name.endswith(_A):
            stem = name.removesuffix(_A)
            other = given.get(stem + _B)
            if other is None or value.dim() != 2 or other.dim() != 2 or other.shape[1] != value.shape[0]:
                raise ValueError(f"adapter: {stem}{_B} is missing, or is no matrix that fits its A")
            layers[stem] = LowRank(value, scale * other)
        elif not name.endswith(_B):
            whole[name] = value
        elif name.removesuffix(_B) + _A not in given:
            raise ValueError(f"adapter: {name} has no A")
    if not layers and not whole:
        raise ValueError(f"adapter: {WEIGHTS} is empty")
    return layers, whole
