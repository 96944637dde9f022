"""torchvision beside a CPU build of torch, for vLLM.

vLLM's image processing imports torchvision. The wheel that fits this torch is built for CUDA: its compiled operators do
not load, and importing it fails since two of them have no schema. Declaring the two is enough for everything that is
used (transforms); calling them stays impossible. It must happen in every process before the import, those that vLLM
spawns included, so `python -m serving.vlm.torchvision_ops` writes a line that Python runs at its start (a .pth file).
"""

from __future__ import annotations

import importlib.abc
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_PTH = "zz-roboserve-torchvision.pth"
_LINE = "import serving.vlm.torchvision_ops as ops; ops.watch()\n"


class _Watcher(importlib.abc.MetaPathFinder):
    """Declares the operators when torchvision is about to be imported, and goes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare()
        return None


def watch() -> None:
    """Declare the operators once torchvision is imported; costs nothing where it never is."""
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def install() -> Path:
    """Let every Python process of this environment `watch`; return the file that says so."""
    path = Path(sysconfig.get_path("purelib")) / _PTH
    path.write_text(_LINE, encoding="utf-8")
    return path


def _declare() -> None:
    import torch

    if torch.version.cuda or hasattr(torch.ops.torchvision, "nms"):
        return
    make: Any = torch.library.Library
    library = make("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)
    # Its schemas go with it, so it must stay.
    sys.modules[__name__].__dict__["_library"] = library


if __name__ == "__main__":
    sys.stdout.write(f"{install()}\n")
