"""Labels by what they depend on: the same frames asked of the same model in the same way are asked once, ever."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from finetune.relabel import files
from finetune.relabel.labeller import Labels

if TYPE_CHECKING:
    from pathlib import Path

    from finetune.relabel.config import Plan
    from finetune.relabel.labeller import ModelFacts

_VERSION = 1
_log = logging.getLogger(__name__)


def content_key(*, facts: ModelFacts, plan: Plan, instruction: str, camera: str, video: str, frames: int) -> str:
    """Return the SHA-256, hex, of everything that the labels of one camera's episode depend on.

    The model's name and revision are left out: its content hash says what it is.

    Args:
        video: digest of the video bytes that the frames come from.
        frames: how many there are.
    """
    parts = {
        "version": _VERSION,
        "content_hash": facts.content_hash,
        "architecture": facts.architecture,
        "prompt_version": facts.prompt_version,
        "dtype": facts.dtype,
        "pixels": facts.pixels,
        "mode": plan.mode,
        "frame_policy": plan.policy.name,
        "every": plan.every,
        "instruction": instruction,
        "camera": camera,
        "video": video,
        "frames": frames,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class LabelCache:
    """A folder of labels, one small file a key; any number of jobs may share it.

    Args:
        folder: made when absent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> Labels | None:
        """Return what was put, or None; a damaged entry counts as absent."""
        path = self._path(key)
        try:
            found = load(path.read_bytes())
            return Labels(frames=found["frames"], progress=found["progress"], success=found.get("success"))
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, ValueError) as error:
            _log.warning("cache: %s is damaged and is made anew: %s", path.name, error)
            return None

    def put(self, key: str, labels: Labels) -> None:
        """Keep labels, in one step."""
        arrays: dict[str, np.ndarray] = {"frames": labels.frames, "progress": labels.progress}
        if labels.success is not None:
            arrays["success"] = labels.success
        files.write(self._path(key), save({name: np.ascontiguousarray(value) for name, value in arrays.items()}))

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"
