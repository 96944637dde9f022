"""What a sampler of training clips knows of an episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quality = Literal["successful", "suboptimal", "failure"]


@dataclass(frozen=True, kw_only=True)
class EpisodeInfo:
    """What the sampler knows of one episode.

    Attributes:
        task: the task's key; `instruction`: its words.
        length: frames.
        source: name of the data source.
        cutoff: share of the episode after which the task is done, set for each source.
        partial_success: how far it got in the end, where that was judged; decides pairs before quality does.
        preference_only: its progress is not trusted, only that it is better or worse.
    """

    task: str
    instruction: str
    quality: Quality
    length: int
    source: str
    cutoff: float
    partial_success: float | None = None
    preference_only: bool = False
