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
    "rewind": "models.rewind.reward",
}
"""What a folder's `config.json` calls its architecture, and the module whose `load(folder)` reads it. RBM and RFM are
the published names of Robometer."""


def load_reward(name: str) -> RewardModel:
    """Load a reward model.

    Args:
        name: "zoo:NAME" for one that ships with the package, else a folder.

    Raises:
        FileNotFoundError: there is no such folder, or it has no `config.json`.
        ValueError: its architecture is unknown, or the checkpoint is damaged.
    """
    folder = checkpoint_folder(name)
    architecture = _architecture(folder)
    if architecture not in _LOADERS:
        raise ValueError(f"checkpoint: architecture {architecture!r:.60}; known are {', '.join(_LOADERS)}")
    module: Any = importlib.import_module(_LOADERS[architecture])
    return cast("RewardModel", module.load(folder))


def _architecture(folder: Path) -> str:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: the folder {folder.name!r} has no config.json")
    try:
        raw = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError("checkpoint: config.json is not valid JSON") from error
    named = raw.get("architecture") or (raw.get("architectures") or ["?"])[0] if isinstance(raw, dict) else "?"
    return str(named)
