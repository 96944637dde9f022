"""What a preference server says of itself on connect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Tuple

from clients.model_contract import ModelContract


@dataclass(frozen=True)
class PreferenceContract(ModelContract):
    """The server's contract for one labeller.

    Attributes:
        model: name of the served labeller; `revision`, `content_hash` (SHA-256) and `prompt_version` pin what answers.
        architecture: "vlm", "robometer" or another family's name, "oracle" for a scripted truth; `dtype`: of its
            computation, or its quantisation.
        image_size: (height, width) that frames are brought to, by the client where it can; None keeps their own.
        protocols: how it may be asked, the one that holds without a choice first.
        supports: which of "clips", "values" (pairs carry true values) and "equal_frames" (both sides must show equally
            many frames) go for it.
        limits: caps of this server by name.
    """

    FAMILY = "preference"
    LISTS = ("protocols", "supports")

    image_size: Optional[Tuple[int, int]]
    protocols: Tuple[str, ...]
    supports: Tuple[str, ...]
    limits: Mapping[str, float]
