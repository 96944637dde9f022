"""What a preference server says of itself on connect."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, Mapping, Optional, Tuple

from clients.contract import PROTOCOL
from clients.errors import RoboserveError


@dataclass(frozen=True)
class PreferenceContract:
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

    model: str
    revision: str
    content_hash: str
    architecture: str
    dtype: str
    prompt_version: str
    image_size: Optional[Tuple[int, int]]
    protocols: Tuple[str, ...]
    supports: Tuple[str, ...]
    limits: Mapping[str, float]
    protocol: str = PROTOCOL
    family: str = "preference"

    def to_map(self) -> Dict[str, Any]:
        """Return the wire form (`type` is "contract")."""
        return {"type": "contract", **asdict(self)}

    @classmethod
    def from_map(cls, message: Mapping[str, Any]) -> PreferenceContract:
        """Read the wire form; entries that this version does not know are ignored.

        Raises:
            RoboserveError: `contract_mismatch` where it is of another protocol or family, or lacks an entry.
        """
        if message.get("protocol") != PROTOCOL or message.get("family") != "preference":
            raise RoboserveError(
                "contract_mismatch",
                f"protocol: {message.get('protocol')!r} of family {message.get('family', 'policy')!r}, this client "
                f"speaks {PROTOCOL} to the family 'preference'",
            )
        missing = [item.name for item in fields(cls) if item.name not in message]
        if missing:
            raise RoboserveError("contract_mismatch", f"contract: the server left out {', '.join(missing)}")
        known = {item.name: message[item.name] for item in fields(cls)}
        size = known["image_size"]
        known["image_size"] = None if size is None else (int(size[0]), int(size[1]))
        for name in ("protocols", "supports"):
            known[name] = tuple(known[name])
        return cls(**known)


def read_preference_contract(message: Any) -> PreferenceContract:
    """Read the server's first message.

    Raises:
        RoboserveError: the server's own refusal, or `contract_mismatch` where it is no contract of a labeller.
    """
    if not isinstance(message, Mapping):
        raise RoboserveError("contract_mismatch", "the server's first message is not a map: it speaks another protocol")
    if message.get("type") == "error":
        raise RoboserveError.from_map(message)
    return PreferenceContract.from_map(message)
