"""What a policy server says of itself on connect, and the check that a robot makes of it before it moves."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, List, Mapping, Optional, Tuple, Type, TypeVar

from clients.errors import RoboserveError

PROTOCOL = "roboserve.v1"
"""Protocol name and version: the websocket subprotocol that a native client asks for."""

KINDS = ("absolute", "delta", "velocity")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Camera:
    """One camera image: RGB uint8, height x width x 3."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Vector:
    """A state or action vector: names, units, kinds and limits, one entry a dimension, in order.

    `kinds` says what holding means for each dimension: "absolute" repeats, "delta" and "velocity" are zero.
    """

    names: Tuple[str, ...]
    units: Tuple[str, ...]
    kinds: Tuple[str, ...]
    low: Tuple[float, ...]
    high: Tuple[float, ...]

    def __post_init__(self) -> None:
        if len({len(getattr(self, item.name)) for item in fields(self)}) != 1:
            raise RoboserveError("contract_mismatch", "vector: names, units, kinds, low and high differ in length")
        unknown = sorted(set(self.kinds) - set(KINDS))
        if unknown:
            raise RoboserveError(
                "contract_mismatch", f"vector kinds: {', '.join(unknown)}; allowed are {', '.join(KINDS)}"
            )

    @property
    def size(self) -> int:
        """Number of dimensions."""
        return len(self.names)


@dataclass(frozen=True)
class PolicyContract:
    """The server's contract for one policy.

    Attributes:
        model: name of the served model; `revision` and `content_hash` (SHA-256, hex) pin its weights.
        control_hz: rate at which rows of a chunk are meant to be played.
        chunk_length: rows of a chunk (H); `execute`: rows to play before the next chunk takes over.
        supports: which of "rtc", "seed", "integration_steps", "adapters", "noise", "summary", "context_noise", "path",
            "reset" the policy honours; "path": it was trained to follow one that is drawn on its first camera's image.
        context_size: numbers of context noise that it takes; 0 for a policy that was trained without.
        limits: caps of this server by name (message_bytes, instruction_chars, image_pixels ...).
    """

    model: str
    revision: str
    content_hash: str
    cameras: Tuple[Camera, ...]
    state: Vector
    action: Vector
    control_hz: float
    chunk_length: int
    execute: int
    integration_steps: int
    supports: Tuple[str, ...]
    adapters: Tuple[str, ...]
    normalization: str
    limits: Mapping[str, int]
    context_size: int = 0
    protocol: str = PROTOCOL

    def to_map(self) -> Dict[str, Any]:
        """Return the wire form (`type` is "contract")."""
        return {"type": "contract", **asdict(self)}

    @classmethod
    def from_map(cls, message: Mapping[str, Any]) -> PolicyContract:
        """Read the wire form; entries that this version does not know are ignored.

        Raises:
            RoboserveError: `contract_mismatch` naming the entry that is missing or of another protocol.
        """
        if message.get("protocol") != PROTOCOL:
            raise RoboserveError(
                "contract_mismatch", f"protocol: {message.get('protocol')!r}, this client speaks {PROTOCOL}"
            )
        known = _known(cls, message)
        known["cameras"] = tuple(Camera(**_known(Camera, item)) for item in known["cameras"])
        known["state"] = Vector(**_tuples(_known(Vector, known["state"])))
        known["action"] = Vector(**_tuples(_known(Vector, known["action"])))
        known["supports"] = tuple(known["supports"])
        known["adapters"] = tuple(known["adapters"])
        return cls(**known)


@dataclass(frozen=True)
class RobotInterface:
    """What a robot has and takes, in the contract's terms."""

    cameras: Tuple[str, ...]
    state: Vector
    action: Vector
    control_hz: float


def mismatches(contract: PolicyContract, robot: RobotInterface, *, rate_tolerance: float = 0.05) -> List[str]:
    """Return one sentence for each way in which the robot does not fit the contract; none when it fits.

    Args:
        rate_tolerance: relative difference of control rates that is let pass.
    """
    found = [
        f"camera {camera.name!r}: the policy needs it, the robot has {', '.join(robot.cameras) or 'none'}"
        for camera in contract.cameras
        if camera.name not in robot.cameras
    ]
    for noun, wanted, given in (("state", contract.state, robot.state), ("action", contract.action, robot.action)):
        found += _vector_mismatches(noun, wanted, given)
    if abs(contract.control_hz - robot.control_hz) > rate_tolerance * contract.control_hz:
        found.append(
            f"control_hz: the policy was made for {contract.control_hz:g}, the robot runs at {robot.control_hz:g}"
        )
    return found


def require_match(contract: PolicyContract, robot: RobotInterface) -> None:
    """Refuse a robot that does not fit, in one sentence.

    Raises:
        RoboserveError: `contract_mismatch`.
    """
    found = mismatches(contract, robot)
    if found:
        raise RoboserveError(
            "contract_mismatch", f"policy {contract.model!r} does not fit this robot: " + "; ".join(found)
        )


def _vector_mismatches(noun: str, wanted: Vector, given: Vector) -> List[str]:
    if wanted.size != given.size:
        return [f"{noun}: the policy has {wanted.size} dimensions ({', '.join(wanted.names)}), the robot {given.size}"]
    return [
        f"{noun}.{item}: the policy has {', '.join(getattr(wanted, item))}, the robot {', '.join(getattr(given, item))}"
        for item in ("names", "units", "kinds")
        if getattr(wanted, item) != getattr(given, item)
    ]


def _known(cls: Type[_T], message: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RoboserveError("contract_mismatch", f"{cls.__name__}: must be a map")
    required = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    missing = [name for name in required if name not in message]
    if missing:
        raise RoboserveError("contract_mismatch", f"{cls.__name__}: the server left out {', '.join(missing)}")
    return {name: message[name] for name in required}


def _tuples(values: Dict[str, Any]) -> Dict[str, Any]:
    return {name: tuple(value) for name, value in values.items()}
