"""How well a checkpoint draws paths and tells which frame is nearer a goal, on scenes and looks that it never saw."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from finetune.vlm.answering import Answering
from finetune.vlm.material import load_frames
from finetune.vlm.path_figures import EvaluateConfig, blind, by_task, mean_paths, path_rows, summary
from finetune.vlm.preference_figures import preferences

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def evaluate(
    folder: Path, config: EvaluateConfig, *, report: Callable[[str, int], None] | None = None
) -> dict[str, Any]:
    """Ask a checkpoint, and return what came of it, ready for JSON.

    Args:
        report: told (stage, how many more questions are answered).
    """
    asked = Answering(folder)

    def tell(stage: str) -> Callable[[int], None]:
        return lambda count: report(stage, count) if report is not None else None

    found: dict[str, Any] = {"content_hash": asked.content_hash, "paths": {}, "preferences": {}, "tasks": {}}
    for group, tasks in (("trained", config.trained), ("held_out", config.held_out)):
        frames = load_frames(config.data, tasks, "validation")
        adapters = ("path", None) if group == "trained" else ("path",)
        for adapter in adapters:
            name = f"{group}/{adapter or 'base'}"
            rows = path_rows(asked, frames, config, adapter, tell(f"paths, {name}"))
            found["paths"][name] = summary(rows)
            if adapter:
                found["tasks"] |= by_task(rows)
        for adapter in ("preference", None) if group == "trained" else ("preference",):
            name = f"{group}/{adapter or 'base'}"
            found["preferences"][name] = preferences(asked, frames, config, adapter, tell(f"preferences, {name}"))
    means = mean_paths(load_frames(config.data, config.trained, "train"))
    found["paths"]["trained/blind"] = blind(load_frames(config.data, config.trained, "validation"), means, config)
    return found


def write(found: dict[str, Any], path: Path) -> Path:
    """Write what was found; a figure that nothing was counted for is null."""
    text = json.dumps(_plain(found), indent=2, allow_nan=False)
    path.write_text(text + "\n", "utf-8")
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value
