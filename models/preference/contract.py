"""The contract that every preference labeller keeps, whatever answers: a scripted truth, a reward model, a VLM.

A label is an index as in RL-VLM-F (arXiv 2402.03681): 0 where the first of two is better, 1 where the second is, -1
where they do not differ or nobody can tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

FIRST, SECOND, TIE = 0, 1, -1
"""The labels: the first is better, the second is, neither."""
PROTOCOLS = ("one_token", "two_stage", "direct")
"""How a labeller may be asked: label tokens' probabilities, analysis and then a label, or a model's own head."""
Protocols = Literal["one_token", "two_stage", "direct"]
Chances = tuple[float, float, float]
"""P(the first is better), P(the second is), P(tie); they sum to 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two observations and the goal that they are compared by.

    Attributes:
        goal: what is to be reached, in words.
        first, second: frames uint8 (h, w, 3) RGB each, in their order in time; one frame is an image.
        values: true values of both, for a labeller that is told the truth; None for all others.
    """

    goal: str
    first: tuple[NDArray[np.uint8], ...]
    second: tuple[NDArray[np.uint8], ...]
    values: tuple[float, float] | None = None

    @property
    def swapped(self) -> Pair:
        """The same two in the other order."""
        values = None if self.values is None else (self.values[1], self.values[0])
        return Pair(goal=self.goal, first=self.second, second=self.first, values=values)


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """How pairs are asked about. All but the protocol are extensions of RL-VLM-F, and off unless asked for.

    Attributes:
        protocol: one of the labeller's own.
        order_swap: ask in the other order too, and take the mean of both, mapped back.
        votes: times that the same is asked, 1 or more; over 1 with "two_stage" only, where answers are then drawn.
        tie_threshold: least |P(first) - P(second)| of a label other than -1, 0 to 1.
    """

    protocol: Protocols
    order_swap: bool = False
    votes: int = 1
    tie_threshold: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What answers took: questions put to a model, and tokens read and written."""

    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            answer_tokens=self.answer_tokens + other.answer_tokens,
        )

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One raw answer of a model, for whoever audits a label.

    Attributes:
        swapped: whether the pair was shown in the other order.
        vote: which of the votes, from 0.
        stage: "analysis", "label" or "one_token".
        text: what the model said; of "one_token", the labels with their log-probabilities.
    """

    swapped: bool
    vote: int
    stage: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One answer to one order of a pair, as it was shown.

    Attributes:
        chances: of the pair as shown; None where the model's answer tells nothing: it abstains.
        unparsed: whether an answer was no label and counts as a tie.
        mass: probability that the model's next token is a label at all; None where there is no such thing.
    """

    chances: Chances | None
    unparsed: bool = False
    mass: float | None = None
    usage: Usage = field(default_factory=Usage)
    replies: tuple[Reply, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What is said of a pair.

    Attributes:
        chances: mean over orders and votes, for the pair as it was asked; a third each where everybody abstained.
        label: 0, 1 or -1.
        abstained: no answer told anything, which is a label of -1 too.
        given, swapped: means of the two orders, both for the pair as it was asked; None where it was not asked or
            abstained.
        unparsed: answers that were no label.
        mass: least probability of a label token over the answers, see `Reading`.
    """

    chances: Chances
    label: int
    abstained: bool = False
    given: Chances | None = None
    swapped: Chances | None = None
    unparsed: int = 0
    mass: float | None = None
    usage: Usage = field(default_factory=Usage)
    replies: tuple[Reply, ...] = ()

    @property
    def order_gap(self) -> float | None:
        """Total variation between both orders, 0 to 1; None unless both were asked."""
        if self.given is None or self.swapped is None:
            return None
        return 0.5 * sum(abs(one - other) for one, other in zip(self.given, self.swapped, strict=True))

    @property
    def towards_first_shown(self) -> float | None:
        """How much more often the one shown first wins than the other, -1 to 1; None unless both orders were asked."""
        if self.given is None or self.swapped is None:
            return None
        return 0.5 * (self.given[0] - self.given[1] + self.swapped[1] - self.swapped[0])


@dataclass(frozen=True, kw_only=True)
class LabellerSpec:
    """What answers, and how it may be asked.

    Attributes:
        id, revision, content_hash: of the model, SHA-256 hex over all that decides an answer (an adapter too).
        architecture: "vlm", "robometer" or another family's name; "oracle" for a scripted truth.
        dtype: of the computation, or the kind of quantisation.
        prompt_id: version and hash of the template, or "none".
        protocols: that it knows, the one that holds without a choice first.
        image_size: (height, width) that frames are brought to; None takes each as it is.
        max_frames: most frames of one side of a pair.
        goal_chars: longest goal.
        wants_values: whether pairs must carry true values.
        equal_frames: whether both sides must show equally many frames.
    """

    id: str
    revision: str
    content_hash: str
    architecture: str
    dtype: str = "float32"
    prompt_id: str = "none"
    protocols: tuple[Protocols, ...] = ("direct",)
    image_size: tuple[int, int] | None = None
    max_frames: int = 1
    goal_chars: int = 512
    wants_values: bool = False
    equal_frames: bool = False


class Labeller(Protocol):
    """Tells which of two is nearer to a goal; called from one event loop, any number of calls at once.

    The same pair under the same options gets the same label from the same labeller, in a batch or alone (to float
    tolerance), so that labels can be kept.
    """

    @property
    def spec(self) -> LabellerSpec:
        """What it is; only revision and hash may change, where another model or adapter takes its place."""
        ...

    async def label(self, pairs: Sequence[Pair], options: LabelOptions) -> Sequence[Judgement]:
        """Label pairs, in order.

        Raises:
            ValueError: options or a pair that the spec excludes.
        """
        ...

    def check_health(self) -> None:
        """Raise RuntimeError when it can answer no more."""
        ...

    async def close(self) -> None:
        """Free what it holds."""
        ...
