"""A Robometer adapter: low-rank changes of a base checkpoint's language model and heads of its own, merged in at load.

- `adapter_config.json`, `adapter_model.safetensors`: as PEFT writes and reads them.
- `robometer_adapter.json`: what the adapter makes of its base is called, and which base that is, by content.
- `README.md`: the card.

Merged weights are plain ones: serving needs no PEFT, and costs nothing more. An adapter on another base than its own
answers without an error and wrongly, so the base's content decides, not its name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.folders import checkpoint_folder, files_hash
from models.peft_files import CONFIG, WEIGHTS, changes_of, rank_and_scale, require_base
from models.robometer.checkpoint import load_checkpoint, read_settings, require_files
from models.robometer.readout import to_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from models.robometer.checkpoint import RobometerCheckpoint
    from models.robometer.network import RobometerNetwork

ADAPTER_SETTINGS = "robometer_adapter.json"
ADAPTER_FORMAT: Literal["roboserve-robometer-adapter-1"] = "roboserve-robometer-adapter-1"
HEADS = ("progress_head", "success_head", "preference_head")
"""What an adapter holds whole."""


@dataclass(frozen=True, kw_only=True)
class AdapterBase:
    """The checkpoint that an adapter changes.

    Attributes:
        name: folder or "zoo:NAME", where it lay when the adapter was trained.
        id, revision, content_hash: of its checkpoint.
    """

    name: str
    id: str
    revision: str
    content_hash: str


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Everything in `robometer_adapter.json`; `id` and `revision` are those of the adapted model."""

    id: str
    revision: str
    base: AdapterBase
    format: Literal["roboserve-robometer-adapter-1"] = ADAPTER_FORMAT


def is_adapter(folder: Path) -> bool:
    """Return whether a folder is an adapter's."""
    return (folder / ADAPTER_SETTINGS).is_file()


def require_any(folder: Path) -> None:
    """Check that a checkpoint's or an adapter's folder has its files; the adapter's base is not looked for.

    Raises:
        FileNotFoundError: naming the file that the folder lacks.
    """
    if not is_adapter(folder):
        require_files(folder)
        return
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"adapter: the folder {folder.name!r} has no {name}")


def open_checkpoint(folder: Path, *, base: str | None, dtype: torch.dtype) -> RobometerCheckpoint:
    """Read a checkpoint's folder, or an adapter's with its base.

    Args:
        base: where an adapter's base lies; None for where it was trained from.
        dtype: in which an adapter is merged; a checkpoint stays in that of its file.

    Raises:
        FileNotFoundError, ValueError: see `load_adapter` and `checkpoint.load_checkpoint`; ValueError also for a `base`
            without an adapter.
    """
    if is_adapter(folder):
        return load_adapter(folder, base=base, dtype=dtype)
    if base is not None:
        raise ValueError(f"base: {folder.name!r} is no adapter, so it has none")
    return load_checkpoint(folder)


def load_adapter(folder: Path, *, base: str | None = None, dtype: torch.dtype = torch.float32) -> RobometerCheckpoint:
    """Return an adapter's base with the adapter merged in, under the adapter's id, revision and hash.

    Args:
        base: where the base lies; None for where it was trained from.
        dtype: of the merged weights; sums are taken in float32.

    Raises:
        FileNotFoundError: a file of the adapter, or its base, is not there.
        WrongBaseError: the base has another content than the one that it was trained on.
        ValueError: the adapter is damaged, of another kind, or does not fit.
    """
    require_any(folder)
    settings = read_settings(folder / ADAPTER_SETTINGS, AdapterSettings)
    _, scale = rank_and_scale((folder / CONFIG).read_bytes())
    checkpoint = load_checkpoint(_base_folder(settings.base, base))
    require_base(settings.base, _found(checkpoint))
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"adapter: {WEIGHTS} is damaged") from error
    to_dtype(checkpoint.network, dtype)
    merge(checkpoint.network, tensors, scale)
    return replace(
        checkpoint,
        settings=replace(checkpoint.settings, id=settings.id, revision=settings.revision),
        content_hash=_adapted_hash(folder, settings, scale),
    )


def merge(network: RobometerNetwork, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Add an adapter to the weights in place: `weight + scale x B A` for a changed layer, the head itself for a head.

    Args:
        tensors: by PEFT's names.

    Raises:
        ValueError: naming the tensor that is missing, that does not fit, or that the network has no place for.
    """
    own = dict(network.named_parameters())
    layers, changes = changes_of(tensors, scale)
    for name in changes:
        if name.split(".")[0] not in HEADS:
            raise ValueError(f"adapter: {name} is nothing that an adapter changes")
    for name, (a, b) in layers.items():
        changes[f"{name}.weight"] = _merged(own.get(f"{name}.weight"), b @ a)
    for name, value in changes.items():
        if name not in own or own[name].shape != value.shape:
            raise ValueError(f"adapter: the base has no {name} of shape {tuple(value.shape)}")
    for name, value in changes.items():
        own[name].data = value.to(own[name].dtype)


def _merged(weight: Tensor | None, change: Tensor) -> Tensor:
    """Return the weight with its change; without a fitting weight the change alone, which then finds no place."""
    return change if weight is None or weight.shape != change.shape else weight.data.float() + change


def _found(checkpoint: RobometerCheckpoint) -> AdapterBase:
    settings = checkpoint.settings
    return AdapterBase(name="", id=settings.id, revision=settings.revision, content_hash=checkpoint.content_hash)


def _base_folder(base: AdapterBase, name: str | None) -> Path:
    folder = checkpoint_folder(name or base.name)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"adapter: its base {base.id} revision {base.revision} (content hash {base.content_hash}) is not at "
            f"{name or base.name!r}; `base` says where it is"
        )
    return folder


def _adapted_hash(folder: Path, settings: AdapterSettings, scale: float) -> str:
    """Return the SHA-256, hex, of all that decides an answer; where the base lies is no part of it."""
    parts = [files_hash((folder / WEIGHTS,)), settings.base.content_hash, scale, settings.id, settings.revision]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
