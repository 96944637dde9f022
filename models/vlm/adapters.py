"""LoRA adapters of a vision-language model, switched within one network (PEFT).

Only the language model may be adapted: vLLM leaves adapters of a vision tower out, so an adapter that has one would
answer differently there.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from models.peft_files import CONFIG, MAX_RANK, WEIGHTS
from models.vlm import ADAPTER_NAME
from models.vlm.checkpoint import adapter_hash

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


def check_adapter(folder: Path) -> int:
    """Check an adapter's folder before anything is loaded, and return its rank.

    Raises:
        FileNotFoundError: naming the file that it lacks.
        ValueError: it is no LoRA of the language model, or damaged.
    """
    adapter_hash(folder)
    try:
        raw = json.loads((folder / CONFIG).read_text("utf-8"))
        with safe_open(folder / WEIGHTS, "pt") as file:
            names = list(file.keys())
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"adapter: {folder.name!r} is damaged: {error}") from error
    kind = raw.get("peft_type") if isinstance(raw, dict) else None
    if kind != "LORA":
        raise ValueError(f"adapter: {folder.name!r} is of the kind {kind!r}; LORA is served")
    if any(".visual." in name for name in names):
        raise ValueError(f"adapter: {folder.name!r} changes the vision tower; merge it into the base to serve it")
    rank = raw.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise ValueError(f"adapter: rank {rank!r}; must be 1 to {MAX_RANK}")
    return rank


class Adapters:
    """The adapters of one network; `use` chooses who answers next.

    Each load is a slot of its own, so that an answer under way ends with the weights it began with: a slot is freed by
    `free` when nobody needs it any more.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._peft: Any = None
        self._count = 0
        self._slots: set[str] = set()

    def load(self, name: str, folder: Path) -> str:
        """Read an adapter and return its slot.

        Raises:
            FileNotFoundError, ValueError: see `check_adapter`; or the name or the weights do not fit.
        """
        from peft import PeftModel

        if not re.fullmatch(ADAPTER_NAME, name):
            raise ValueError(f"adapter: name {name[:64]!r}; must match {ADAPTER_NAME}")
        check_adapter(folder)
        self._count += 1
        slot = f"{name}-{self._count}"
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self._network, str(folder), adapter_name=slot)
            else:
                self._peft.load_adapter(str(folder), adapter_name=slot)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"adapter: {folder.name!r} does not fit the base: {error}"[:300]) from error
        self._peft.eval()
        self._slots.add(slot)
        return slot

    def free(self, slot: str) -> None:
        """Forget what a slot holds."""
        self._slots.remove(slot)
        if self._slots:
            self._peft.set_adapter(next(iter(self._slots)))
            self._peft.delete_adapter(slot)
        else:
            self._network = self._peft.unload()
            self._peft = None

    def use(self, slot: str | None) -> None:
        """Let a slot's adapter answer from here on; None is the base."""
        if self._peft is None:
            return
        if slot is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(slot)
