"""Who is asked for labels: a served labeller, or one in this process. Both take and give the client's own types."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from clients.errors import RoboserveError
from clients.images import decode_image, resize_with_pad
from clients.preference import PreferenceClient
from clients.preference_messages import PreferenceLabel, RawReply
from clients.reward_messages import ModelIdentity
from finetune.rewards.judges import batches
from models.preference.alike import alike, side_key
from models.preference.contract import TIE, Judgement, LabelOptions, Pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from clients.preference_messages import LabelPair, Side
    from models.preference.contract import Labeller

_START_S = 600.0
_MARGIN, _PICTURE_MARGIN = 65_536, 2048


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """How pairs are asked about; see `clients.preference.PreferenceClient.label`. `protocol` None: the model's."""

    protocol: str | None = None
    order_swap: bool = False
    votes: int = 1
    tie_threshold: float = 0.0
    audit: bool = False


class PairJudge(Protocol):
    """Tells which of two is nearer to a goal."""

    @property
    def model(self) -> ModelIdentity:
        """What answers."""
        ...

    @property
    def protocols(self) -> tuple[str, ...]:
        """How it may be asked."""
        ...

    @property
    def batch(self) -> int:
        """Most pairs of one call."""
        ...

    def label(self, pairs: Sequence[LabelPair], options: AskOptions) -> list[PreferenceLabel]:
        """Return a label for each pair; raises RoboserveError."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class ServedLabeller:
    """A served labeller.

    Args:
        server: address with its route; `job`: whose budget pairs count in.
    """

    def __init__(self, server: str, *, api_key: str | None = None, job: str | None = None) -> None:
        self._client = PreferenceClient(server, api_key=api_key)
        self._job = job
        contract = self._client.contract
        self.protocols = contract.protocols
        self.batch = int(contract.limits["pairs"])
        self._room = int(contract.limits["message_bytes"]) - _MARGIN
        self._size = contract.image_size
        self.model = ModelIdentity(
            contract.model,
            contract.revision,
            contract.content_hash,
            contract.architecture,
            contract.dtype,
            contract.prompt_version,
        )

    def label(self, pairs: Sequence[LabelPair], options: AskOptions) -> list[PreferenceLabel]:
        """See `PairJudge`; as many requests as the pictures' bytes take.

        Raises:
            RoboserveError: `contract_mismatch` too, where another model took the place of the one that was met first.
        """
        found: list[PreferenceLabel] = []
        for group in batches(pairs, [self._bytes(pair) for pair in pairs], self._room):
            answer = self._client.label(
                group,
                protocol=options.protocol,
                order_swap=options.order_swap,
                votes=options.votes,
                tie_threshold=options.tie_threshold,
                audit=options.audit,
                job=self._job,
            )
            self._same(answer.model)
            found += answer.pairs
        return found

    def _same(self, model: ModelIdentity) -> None:
        wanted = self.model
        if (model.content_hash, model.prompt_version) != (wanted.content_hash, wanted.prompt_version):
            raise RoboserveError(
                "contract_mismatch",
                f"model: changed from {wanted.revision} ({wanted.content_hash[:12]}) to {model.revision} "
                f"({model.content_hash[:12]}) on the way; connect anew",
            )

    def _bytes(self, pair: LabelPair) -> int:
        """Return about the most that a pair takes on the wire."""
        size = 512 + 4 * len(pair.goal)
        for side in (pair.first, pair.second):
            single = isinstance(side, bytes) or (isinstance(side, np.ndarray) and side.ndim == 3)
            many: Any = [side] if single else side
            for frame in many if isinstance(many, (list, tuple, np.ndarray)) else ():
                own = frame.shape[:2] if self._size is None and isinstance(frame, np.ndarray) else self._size
                size += len(frame) if isinstance(frame, bytes) else _PICTURE_MARGIN + 3 * int(np.prod(own or (0, 0)))
        return size

    def close(self) -> None:
        """See `PairJudge`."""
        self._client.close()


class LocalLabeller:
    """A labeller in this process, on an event loop of its own in a thread.

    Args:
        make: makes it, on that loop.
    """

    batch = 16

    def __init__(self, make: Callable[[], Awaitable[Labeller]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="labeller", daemon=True)
        self._thread.start()
        try:
            self._labeller: Labeller = self._run(make())
        except BaseException:
            self._stop()
            raise
        spec = self._labeller.spec
        self.protocols: tuple[str, ...] = spec.protocols
        self.model = ModelIdentity(
            spec.id, spec.revision, spec.content_hash, spec.architecture, spec.dtype, spec.prompt_id
        )

    def label(self, pairs: Sequence[LabelPair], options: AskOptions) -> list[PreferenceLabel]:
        """See `PairJudge`."""
        spec = self._labeller.spec
        known = options.protocol or spec.protocols[0]
        asked: Any = LabelOptions(
            protocol=known,  # type: ignore[arg-type]  # the labeller refuses what it does not know
            order_swap=options.order_swap,
            votes=options.votes,
            tie_threshold=options.tie_threshold,
        )
        shown = [self._pair(pair, f"pairs[{index}]") for index, pair in enumerate(pairs)]
        differing = [index for index, pair in enumerate(shown) if not alike(pair)]
        try:
            judged = self._run(self._labeller.label([shown[index] for index in differing], asked))
        except ValueError as error:
            raise RoboserveError("invalid_request", str(error)) from error
        found = dict(zip(differing, judged, strict=True))
        same = Judgement(chances=(0.0, 0.0, 1.0), label=TIE)
        return [
            _label(found.get(index, same), pair, "asked" if index in found else "alike", audit=options.audit)
            for index, pair in enumerate(shown)
        ]

    def close(self) -> None:
        """See `PairJudge`."""
        if not self._loop.is_closed():
            self._run(self._labeller.close())
            self._stop()

    def _pair(self, pair: LabelPair, field: str) -> Pair:
        spec = self._labeller.spec
        sides = [
            tuple(
                frame if spec.image_size is None else resize_with_pad(frame, *spec.image_size)
                for frame in side_frames(side, f"{field}.{name}")
            )
            for name, side in (("first", pair.first), ("second", pair.second))
        ]
        return Pair(goal=pair.goal, first=sides[0], second=sides[1], values=pair.values if spec.wants_values else None)

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_S)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def side_frames(side: Side, field: str) -> Iterator[NDArray[np.uint8]]:
    """Give the frames of one side of a pair, RGB uint8 (h, w, 3); films are not read here.

    Raises:
        RoboserveError: `invalid_image`.
    """
    single = isinstance(side, bytes) or (isinstance(side, np.ndarray) and side.ndim == 3)
    many: Any = [side] if single else side
    if not isinstance(many, (list, tuple, np.ndarray)):
        raise RoboserveError("invalid_image", f"{field}: must be a picture or a list of pictures")
    for index, frame in enumerate(many):
        yield decode_image(frame, field=f"{field}[{index}]")


def _label(judgement: Judgement, pair: Pair, source: str, *, audit: bool) -> PreferenceLabel:
    replies = judgement.replies if audit else ()
    return PreferenceLabel(
        label=judgement.label,
        chances=judgement.chances,
        source=source,
        abstained=judgement.abstained,
        unparsed=judgement.unparsed,
        given=judgement.given,
        swapped=judgement.swapped,
        order_gap=judgement.order_gap,
        towards_first_shown=judgement.towards_first_shown,
        mass=judgement.mass,
        keys=(side_key(pair.first).hex(), side_key(pair.second).hex()),
        replies=tuple(RawReply(reply.swapped, reply.vote, reply.stage, reply.text) for reply in replies),
    )
