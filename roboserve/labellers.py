"""How a labeller is opened by name."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune.preference.judges import LocalLabeller, ServedLabeller
from models.folders import checkpoint_folder
from roboserve.model_choice import ORACLE

if TYPE_CHECKING:
    from pathlib import Path

    from finetune.preference.judges import PairJudge
    from models.preference.contract import Labeller


def open_labeller(name: str, *, api_key: str | None = None, adapter: str | None = None) -> PairJudge:
    """Open a labeller: an address, zoo:NAME, a checkpoint's folder, or "oracle".

    Args:
        adapter: of a vision-language checkpoint; None takes the one named "preference" where it has one.

    Raises:
        RoboserveError: see `PreferenceClient`.
        FileNotFoundError, ValueError, ImportError: the checkpoint cannot be used.
    """
    if "://" in name:
        return ServedLabeller(name, api_key=api_key)
    if name == ORACLE:
        return LocalLabeller(_oracle)
    folder = checkpoint_folder(name)
    if _is_vlm(folder):
        return LocalLabeller(partial(_vlm, name, adapter))
    return LocalLabeller(partial(_reward, name))


def _is_vlm(folder: Path) -> bool:
    """Whether a folder is a vision-language model's own; a Robometer's is built on one, and says so in its own file."""
    from models.vlm.checkpoint import FAMILIES

    config = folder / "config.json"
    if not config.is_file() or (folder / "robometer.json").is_file():
        return False
    raw: Any = json.loads(config.read_text("utf-8"))
    return isinstance(raw, dict) and raw.get("model_type") in FAMILIES


async def _oracle() -> Labeller:
    from models.preference.oracle import OracleLabeller

    return OracleLabeller(OracleLabeller.Config())


async def _reward(name: str) -> Labeller:
    from models.preference.reward import RewardLabeller

    return RewardLabeller(RewardLabeller.Config(checkpoint=name))


async def _vlm(name: str, adapter: str | None) -> Labeller:
    from models.vlm.checkpoint import shipped_adapters
    from serving.preference_vlm import VlmLabeller
    from serving.vlm.engines import TransformersSettings

    own = "preference" if "preference" in shipped_adapters(checkpoint_folder(name)) else None
    settings = TransformersSettings(checkpoint=name)
    return await VlmLabeller.start(VlmLabeller.Config(engine=settings, adapter=adapter or own))
