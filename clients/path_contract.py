"""What a path server says of itself on connect."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, Mapping, Optional, Tuple

from clients.contract import PROTOCOL
from clients.errors import RoboserveError


@dataclass(frozen=True)
class PathContract:
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

    model: str
    revision: str
    content_hash: str
    architecture: str
    dtype: str
    prompt_version: str
    adapter: Optional[str]
    structured: bool
    view: str
    views: Tuple[str, ...]
    styles: Tuple[str, ...]
    initial_open: bool
    limits: Mapping[str, float]
    protocol: str = PROTOCOL
    family: str = "path"

    def to_map(self) -> Dict[str, Any]:
        """Return the wire form (`type` is "contract")."""
        return {"type": "contract", **asdict(self)}

    @classmethod
    def from_map(cls, message: Mapping[str, Any]) -> PathContract:
        """Read the wire form; entries that this version does not know are ignored.

        Raises:
            RoboserveError: `contract_mismatch` where it is of another protocol or family, or lacks an entry.
        """
        if message.get("protocol") != PROTOCOL or message.get("family") != "path":
            raise RoboserveError(
                "contract_mismatch",
                f"protocol: {message.get('protocol')!r} of family {message.get('family', 'policy')!r}, this client "
                f"speaks {PROTOCOL} to the family 'path'",
            )
        missing = [item.name for item in fields(cls) if item.name not in message]
        if missing:
            raise RoboserveError("contract_mismatch", f"contract: the server left out {', '.join(missing)}")
        known = {item.name: message[item.name] for item in fields(cls)}
        for name in ("views", "styles"):
            known[name] = tuple(known[name])
        return cls(**known)


def read_path_contract(message: Any) -> PathContract:
    """Read the server's first message.

    Raises:
        RoboserveError: the server's own refusal, or `contract_mismatch` where it is no contract of a path predictor.
    """
    if not isinstance(message, Mapping):
        raise RoboserveError("contract_mismatch", "the server's first message is not a map: it speaks another protocol")
    if message.get("type") == "error":
        raise RoboserveError.from_map(message)
    return PathContract.from_map(message)
