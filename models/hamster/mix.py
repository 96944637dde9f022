"""What a path predictor is finetuned on besides its own domain, and in which proportions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SourceKind = Literal["points", "paths", "questions"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set of a mix.

    Attributes:
        name: of the data set.
        kind: what its answers are: points in an image, gripper paths, or answers to questions.
        examples: how many it has, over 0.
        weight: how often it is drawn, beside the others' weights; over 0.
    """

    name: str
    kind: SourceKind
    examples: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.examples < 1 or not 0.0 < self.weight < np.inf:
            raise ValueError(f"{self.name}: examples {self.examples} must be 1 or more, weight {self.weight:g} over 0")


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Sources that are drawn from at random.

    Raises:
        ValueError: no source, or two of one name.
    """

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"sources: {', '.join(names) or 'none'}; there must be one or more, each once")

    def shares(self) -> NDArray[np.float64]:
        """Return the probability of each source, float64 (n,), summing to 1."""
        weights = np.array([source.weight for source in self.sources])
        return np.asarray(weights / weights.sum())

    def repeats(self, draws: int) -> NDArray[np.float64]:
        """Return how often each example of each source is seen on average, float64 (n,), in that many draws."""
        return np.asarray(draws * self.shares() / [source.examples for source in self.sources])

    def draw(self, count: int, random: np.random.Generator) -> Sequence[Source]:
        """Return the sources of `count` draws; the same generator state gives the same ones."""
        return [self.sources[index] for index in random.choice(len(self.sources), size=count, p=self.shares())]


OFF_DOMAIN = Mix(
    sources=(
        Source(name="robopoint-pointing", kind="points", examples=770_000),
        Source(name="llava-vqa", kind="questions", examples=660_000),
        Source(name="rlbench-paths", kind="paths", examples=320_000),
        Source(name="droid-paths", kind="paths", examples=45_000),
        Source(name="bridge-paths", kind="paths", examples=10_000),
    )
)
"""HAMSTER's off-domain data (arXiv 2502.05485; sizes are rounded, after published notes on its appendix, and the names
of the sources stand in the public checkpoint's own). All weigh the same, so that an example of Bridge is seen 77 times
as often as one of RoboPoint; the questions keep the model from forgetting what it knew. No image is of the test
environment."""
