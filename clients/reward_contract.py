"""What a reward server says of itself on connect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Tuple

from clients.model_contract import ModelContract


@dataclass(frozen=True)
class RewardContract(ModelContract):
    """The server's contract for one reward model.

    Attributes:
        model: name of the served model; `revision`, `content_hash` (SHA-256) and `prompt_version` pin what answers.
        architecture: family of the model; `dtype`: of its computation, or its quantisation.
        image_size: (height, width) that frames are brought to, by the client where it can; None keeps their own.
        max_frames: most frames that one query shows; `frame_policy`: the one that holds when a request names none.
        modes: progress modes that may be asked for.
        supports: which of "success", "compare", "sessions" the model and its server give.
        limits: caps of this server by name.
    """

    FAMILY = "reward"
    LISTS = ("modes", "supports")

    image_size: Optional[Tuple[int, int]]
    max_frames: int
    frame_policy: str
    modes: Tuple[str, ...]
    supports: Tuple[str, ...]
    limits: Mapping[str, float]
