"""What a reward server says of itself on connect."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, Mapping, Optional, Tuple

from clients.contract import PROTOCOL
from clients.errors import RoboserveError


@dataclass(frozen=True)
class RewardContract:
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

    model: str
    revision: str
    content_hash: str
    architecture: str
    dtype: str
    prompt_version: str
    image_size: Optional[Tuple[int, int]]
    max_frames: int
    frame_policy: str
    modes: Tuple[str, ...]
    supports: Tuple[str, ...]
    limits: Mapping[str, float]
    protocol: str = PROTOCOL
    family: str = "reward"

    def to_map(self) -> Dict[str, Any]:
        """Return the wire form (`type` is "contract")."""
        return {"type": "contract", **asdict(self)}

    @classmethod
    def from_map(cls, message: Mapping[str, Any]) -> RewardContract:
        """Read the wire form; entries that this version does not know are ignored.

        Raises:
            RoboserveError: `contract_mismatch` where it is of another protocol or family, or lacks an entry.
        """
        if message.get("protocol") != PROTOCOL or message.get("family") != "reward":
            raise RoboserveError(
                "contract_mismatch",
                f"protocol: {message.get('protocol')!r} of family {message.get('family', 'policy')!r}, this client "
                f"speaks {PROTOCOL} to the family 'reward'",
            )
        missing = [item.name for item in fields(cls) if item.name not in message]
        if missing:
            raise RoboserveError("contract_mismatch", f"contract: the server left out {', '.join(missing)}")
        known = {item.name: message[item.name] for item in fields(cls)}
        size = known["image_size"]
        known["image_size"] = None if size is None else (int(size[0]), int(size[1]))
        for name in ("modes", "supports"):
            known[name] = tuple(known[name])
        return cls(**known)
