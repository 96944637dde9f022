"""What the contracts of reward models, labellers and path predictors share: who answers, in what form it travels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Dict, Mapping, Tuple

from clients.contract import PROTOCOL
from clients.errors import RoboserveError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ModelContract:
    """A server's contract for one model.

    Attributes:
        model: name of the served model; `revision`, `content_hash` (SHA-256) and `prompt_version` pin what answers.
        architecture: family of the model; `dtype`: of its computation, or its quantisation.
    """

    FAMILY: ClassVar[str]
    LISTS: ClassVar[Tuple[str, ...]] = ()
    """Entries that are tuples here and lists on the wire."""

    model: str
    revision: str
    content_hash: str
    architecture: str
    dtype: str
    prompt_version: str

    def to_map(self) -> Dict[str, Any]:
        """Return the wire form (`type` is "contract")."""
        return {"type": "contract", "protocol": PROTOCOL, "family": self.FAMILY, **asdict(self)}

    @classmethod
    def from_map(cls, message: Mapping[str, Any]) -> Self:
        """Read the wire form; entries that this version does not know are ignored.

        Raises:
            RoboserveError: `contract_mismatch` where it is of another protocol or family, or lacks an entry.
        """
        if message.get("protocol") != PROTOCOL or message.get("family") != cls.FAMILY:
            raise RoboserveError(
                "contract_mismatch",
                f"protocol: {message.get('protocol')!r} of family {message.get('family', 'policy')!r}, this client "
                f"speaks {PROTOCOL} to the family {cls.FAMILY!r}",
            )
        missing = [item.name for item in fields(cls) if item.name not in message]
        if missing:
            raise RoboserveError("contract_mismatch", f"contract: the server left out {', '.join(missing)}")
        known = {item.name: message[item.name] for item in fields(cls)}
        size = known.get("image_size")
        if size is not None:
            known["image_size"] = (int(size[0]), int(size[1]))
        for name in cls.LISTS:
            known[name] = tuple(known[name])
        return cls(**known)

    @classmethod
    def read(cls, message: Any) -> Self:
        """Read the server's first message.

        Raises:
            RoboserveError: the server's own refusal, or `contract_mismatch` where it is no contract of this family.
        """
        if not isinstance(message, Mapping):
            raise RoboserveError(
                "contract_mismatch", "the server's first message is not a map: it speaks another protocol"
            )
        if message.get("type") == "error":
            raise RoboserveError.from_map(message)
        return cls.from_map(message)
