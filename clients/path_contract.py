"""What a path server says of itself on connect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Tuple

from clients.model_contract import ModelContract


@dataclass(frozen=True)
class PathContract(ModelContract):
    """The server's contract for one path predictor.

    Attributes:
        model: name of the served predictor; `revision`, `content_hash` (SHA-256, of base and adapter) and
            `prompt_version` pin what answers.
        architecture: "vlm"; `dtype`: of its computation, or its quantisation.
        adapter: who answers; None is the base.
        structured: whether only answers of the grammar can come, so that each is a path.
        view: how an image is shown to the model where a request does not say; `views`: what it may say.
        styles: of drawings.
        initial_open: the gripper's state before an answer's first tag, where a request does not say.
        limits: caps of this server by name.
    """

    FAMILY = "path"
    LISTS = ("views", "styles")

    adapter: Optional[str]
    structured: bool
    view: str
    views: Tuple[str, ...]
    styles: Tuple[str, ...]
    initial_open: bool
    limits: Mapping[str, float]
