"""A labeller that is told the truth, and errs as often as one wants: what a learned one is measured against."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.preference.alike import side_key
from models.preference.combine import combined, one_hot, require_sane
from models.preference.contract import FIRST, SECOND, TIE, LabellerSpec, Reading, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.preference.contract import Judgement, LabelOptions, Pair


class OracleLabeller:
    """Compares the true values that come with each pair.

    Whether a pair is flipped is decided by its pixels, its values and the seed, not by when it is asked, so that labels
    can be kept and a run can be repeated; both orders of a pair are flipped alike.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Configuration.

        Attributes:
            flip_rate: share of decided pairs whose label is the wrong one, 0 to 1.
            tie_margin: difference of values up to which a pair is a tie, in the values' own unit.
            seed: of the flips.
            max_frames: most frames of one side.
        """

        flip_rate: float = 0.0
        tie_margin: float = 0.0
        seed: int = 0
        max_frames: int = 16

        def __post_init__(self) -> None:
            if not 0.0 <= self.flip_rate <= 1.0:
                raise ValueError(f"flip_rate: {self.flip_rate:g}, must be from 0 to 1")
            if not self.tie_margin >= 0.0:
                raise ValueError(f"tie_margin: {self.tie_margin:g}, must be 0 or more")

    def __init__(self, config: Config) -> None:
        self._config = config
        facts = json.dumps(asdict(config), sort_keys=True)
        self.spec = LabellerSpec(
            id="oracle",
            revision="1",
            content_hash=hashlib.sha256(facts.encode()).hexdigest(),
            architecture="oracle",
            max_frames=config.max_frames,
            wants_values=True,
        )

    async def label(self, pairs: Sequence[Pair], options: LabelOptions) -> list[Judgement]:
        """Label pairs by their values; see `Labeller.label`."""
        require_sane(pairs, options, self.spec)
        return [
            combined([self._read(pair)], [self._read(pair.swapped)] if options.order_swap else [], options)
            for pair in pairs
        ]

    def check_health(self) -> None:
        """Do nothing: there is nothing that could end."""

    async def close(self) -> None:
        """Do nothing."""

    def _read(self, pair: Pair) -> Reading:
        if pair.values is None or not np.isfinite(pair.values).all():
            raise ValueError(f"values: {pair.values}, must be two finite numbers")
        first, second = pair.values
        label = TIE if abs(first - second) <= self._config.tie_margin else FIRST if first > second else SECOND
        if label != TIE and self._flips(pair):
            label = SECOND if label == FIRST else FIRST
        return Reading(chances=one_hot(label), usage=Usage(calls=1))

    def _flips(self, pair: Pair) -> bool:
        if self._config.flip_rate <= 0.0:
            return False
        values = pair.values or (0.0, 0.0)
        sides = sorted(
            side_key(frames) + repr(float(value)).encode()
            for frames, value in zip((pair.first, pair.second), values, strict=True)
        )
        digest = hashlib.blake2b(b"|".join([str(self._config.seed).encode(), *sides]), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 < self._config.flip_rate
