"""What a preference client is given and gives back, and replies of the server, refused where they are unusable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from clients.errors import RoboserveError
from clients.reward_asks import wire_frames
from clients.reward_messages import Frame, Frames, ModelIdentity

if TYPE_CHECKING:
    from clients.preference_contract import PreferenceContract

Side = Union[Frame, Frames]
Chances = Tuple[float, float, float]
SOURCES = ("asked", "cached", "joined", "alike")
"""Where a label comes from: the model, the server's memory, another caller's question under way, or nobody, since both
sides are the same picture."""


@dataclass(frozen=True)
class LabelPair:
    """Two observations to be compared by how near they are to a goal.

    Attributes:
        goal: what is to be reached, in words.
        first, second: an image, uint8 (h, w, 3) or JPEG or PNG bytes, or a short clip in any form a `Clip` takes.
        values: true values of both, for a labeller that is told the truth; not sent to any other.
    """

    goal: str
    first: Side
    second: Side
    values: Optional[Tuple[float, float]] = None


@dataclass(frozen=True)
class RawReply:
    """One raw answer of the model: whether it saw the pair in the other order, which vote and stage, and its text."""

    swapped: bool
    vote: int
    stage: str
    text: str


@dataclass(frozen=True)
class PreferenceLabel:
    """What is said of a pair.

    Attributes:
        label: 0 where the first is better, 1 where the second is, -1 for neither.
        chances: P(first), P(second), P(tie); a third each where the model abstained.
        source: one of `SOURCES`.
        abstained: nothing was told; the label is -1.
        unparsed: answers of the model that were no label and count as ties.
        given, swapped: chances by each order, both for the pair as it was asked; None where that was not asked.
        order_gap: total variation between both orders, 0 to 1; `towards_first_shown`: advantage of whichever is shown
            first, -1 to 1; None unless both orders were asked.
        mass: least probability that the model's next token was a label at all; None for other protocols.
        keys: hashes of both sides' pixels, hex: what the label is filed under.
        replies: raw answers, where they were asked for.
    """

    label: int
    chances: Chances
    source: str
    abstained: bool = False
    unparsed: int = 0
    given: Optional[Chances] = None
    swapped: Optional[Chances] = None
    order_gap: Optional[float] = None
    towards_first_shown: Optional[float] = None
    mass: Optional[float] = None
    keys: Tuple[str, str] = ("", "")
    replies: Tuple[RawReply, ...] = ()


@dataclass(frozen=True)
class PreferenceLabels:
    """An answer: one label for each pair, in order, and how it came about.

    Attributes:
        protocol: how the model was asked.
        counts: pairs by what became of them: "asked", "cached", "joined", "alike", "ties", "abstained", "unparsed".
        usage: "calls", "prompt_tokens", "answer_tokens" that this request caused.
        left: what is left of budgets, "labels", "tokens", "job_labels", "job_tokens"; those without a limit are absent.
        timings: ms on the server.
    """

    pairs: Tuple[PreferenceLabel, ...]
    model: ModelIdentity
    protocol: str
    counts: Mapping[str, int]
    usage: Mapping[str, int]
    left: Mapping[str, int]
    timings: Mapping[str, float]


@dataclass(frozen=True)
class LabelAsk:
    """What `label` was called with; see `clients.preference.PreferenceClient.label`."""

    pairs: Sequence[LabelPair]
    protocol: Optional[str]
    order_swap: bool
    votes: int
    tie_threshold: float
    audit: bool
    job: Optional[str]
    deadline_ms: Optional[float]
    stream: bool = False

    def message(self, contract: PreferenceContract, codec: str) -> Dict[str, Any]:
        """Return the wire form; raises as `clients.reward_asks.wire_frames`, and `too_large` for too many pairs."""
        limit = int(contract.limits["pairs"])
        if len(self.pairs) > limit:
            raise RoboserveError("too_large", f"pairs: {len(self.pairs)}, limit {limit} in one request")
        truth = "values" in contract.supports
        options = {
            "protocol": self.protocol,
            "order_swap": self.order_swap,
            "votes": self.votes,
            "tie_threshold": float(self.tie_threshold),
            "audit": self.audit,
        }
        return {
            "type": "label",
            "pairs": [_wire_pair(pair, contract, codec, truth, f"pairs[{i}]") for i, pair in enumerate(self.pairs)],
            "options": {name: value for name, value in options.items() if value is not None},
            "job": self.job,
            "deadline_ms": self.deadline_ms,
            "stream": True if self.stream else None,
        }


def read_labels(message: Mapping[str, Any], *, pairs: int) -> PreferenceLabels:
    """Read a reply to `label`.

    Raises:
        RoboserveError: `invalid_output` for a reply of another type or form.
    """
    if message.get("type") != "labels":
        raise RoboserveError("invalid_output", f"reply type: {message.get('type')!r:.40}, expected 'labels'")
    found = message.get("pairs")
    if not isinstance(found, list) or len(found) != pairs:
        raise RoboserveError("invalid_output", f"pairs: the server answered other than the {pairs} that were asked")
    return PreferenceLabels(
        pairs=tuple(read_label(pair, f"pairs[{index}]") for index, pair in enumerate(found)),
        model=_model(message),
        protocol=str(message.get("protocol")),
        counts=_integers(message, "counts"),
        usage=_integers(message, "usage"),
        left=_integers(message, "left"),
        timings={name: float(value) for name, value in _map(message, "timings").items()},
    )


def read_label(pair: Any, field: str) -> PreferenceLabel:
    """Read what is said of one pair; raises as `read_labels`."""
    if not isinstance(pair, Mapping):
        raise RoboserveError("invalid_output", f"{field}: is not a map")
    label, chances = pair.get("label"), _chances(pair, "chances", field)
    if type(label) is not int or label not in (-1, 0, 1) or chances is None:
        raise RoboserveError("invalid_output", f"{field}: needs a label of -1, 0 or 1, and chances")
    return PreferenceLabel(
        label=label,
        chances=chances,
        source=str(pair.get("source")),
        abstained=bool(pair.get("abstained")),
        unparsed=int(pair.get("unparsed", 0)),
        given=_chances(pair, "given", field),
        swapped=_chances(pair, "swapped", field),
        order_gap=_share(pair, "order_gap", field),
        towards_first_shown=_share(pair, "towards_first_shown", field),
        mass=_share(pair, "mass", field),
        keys=_keys(pair.get("keys")),
        replies=tuple(_reply(reply) for reply in pair.get("replies") or ()),
    )


def _wire_pair(pair: LabelPair, contract: PreferenceContract, codec: str, truth: bool, field: str) -> Dict[str, Any]:  # noqa: FBT001
    wired: Dict[str, Any] = {"goal": pair.goal}
    for name, side in (("first", pair.first), ("second", pair.second)):
        single = isinstance(side, bytes) or (isinstance(side, np.ndarray) and side.ndim == 3)
        frames: Any = [side] if single else side
        wired[name] = wire_frames(frames, contract, codec=codec, field=f"{field}.{name}")
    if truth and pair.values is not None:
        wired["values"] = [float(value) for value in pair.values]
    return wired


def _chances(pair: Mapping[str, Any], name: str, field: str) -> Optional[Chances]:
    value = pair.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(part, float) for part in value):
        raise RoboserveError("invalid_output", f"{field}.{name}: must be three numbers")
    if not all(-1e-6 <= part <= 1.0 + 1e-6 for part in value):
        raise RoboserveError("invalid_output", f"{field}.{name}: holds a value that is no probability")
    return value[0], value[1], value[2]


def _share(pair: Mapping[str, Any], name: str, field: str) -> Optional[float]:
    value = pair.get(name)
    if value is None:
        return None
    if not isinstance(value, float) or not math.isfinite(value):
        raise RoboserveError("invalid_output", f"{field}.{name}: must be a finite number")
    return value


def _keys(value: Any) -> Tuple[str, str]:
    return (str(value[0]), str(value[1])) if isinstance(value, list) and len(value) == 2 else ("", "")


def _reply(reply: Any) -> RawReply:
    if not isinstance(reply, Mapping):
        raise RoboserveError("invalid_output", "replies: must be maps")
    return RawReply(
        bool(reply.get("swapped")), int(reply.get("vote", 0)), str(reply.get("stage")), str(reply.get("text"))
    )


def _model(message: Mapping[str, Any]) -> ModelIdentity:
    model = _map(message, "model")
    names = ("id", "revision", "content_hash", "architecture", "dtype", "prompt_version")
    return ModelIdentity(*(str(model.get(name, "")) for name in names))


def _integers(message: Mapping[str, Any], name: str) -> Dict[str, int]:
    return {str(key): int(value) for key, value in _map(message, name).items()}


def _map(message: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = message.get(name)
    if not isinstance(value, Mapping):
        raise RoboserveError("invalid_output", f"reply: needs {name} as a map")
    return value
