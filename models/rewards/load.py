"""A reward model by the folder of its checkpoint, whatever its family."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any, cast

from models.folders import checkpoint_folder

if TYPE_CHECKING:
    from pathlib import Path

    from models.rewards.contract import RewardModel

_LOADERS = {
    "robometer": "models.robometer.reward",
    "RBM": "models.robometer.reward",
    "RFM": "models.robometer.reward",
    "robometer-adapter": "models.robometer.reward",
    "rewind": "models.rewind.reward",
}
"""What a folder's `config.json` calls its architecture, and the module whose `load(folder)` reads it. RBM and RFM are
the published names of Robometer; a folder with an adapter's settings in place of a `config.json` is its adapter."""
_ADAPTER = "robometer-adapter"


def load_reward(name: str, *, base: str | None = None) -> RewardModel:
    """Load a reward model.

    Args:
        name: "zoo:NAME" for one that ships with the package, else a folder, of a checkpoint or of an adapter.
        base: of an adapter: where its base lies, if not where it was trained from.

    Raises:
        FileNotFoundError: there is no such folder, it has no `config.json`, or an adapter's base is not there.
        ValueError: its architecture is unknown, the checkpoint is damaged, or an adapter's base is another one.
    """
    folder = checkpoint_folder(name)
    architecture = _architecture(folder)
    if architecture not in _LOADERS:
        raise ValueError(f"checkpoint: architecture {architecture!r:.60}; known are {', '.join(_LOADERS)}")
    module: Any = importlib.import_module(_LOADERS[architecture])
    if architecture == _ADAPTER:
        return cast("RewardModel", module.load(folder, base=base))
    if base is not None:
        raise ValueError(f"base: {folder.name!r} is no adapter, so it has none")
    return cast("RewardModel", module.load(folder))


def _architecture(folder: Path) -> str:
    path = folder / "config.json"
    if (folder / "robometer_adapter.json").is_file():
        return _ADAPTER
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: the folder {folder.name!r} has no config.json")
    try:
        raw = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError("checkpoint: config.json is not valid JSON") from error
    named = raw.get("architecture") or (raw.get("architectures") or ["?"])[0] if isinstance(raw, dict) else "?"
    return str(named)
