"""What one worker of a job does: an episode's row in, its part file on disk, an outcome's row out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from clients.errors import RoboserveError
from finetune.relabel.cache import LabelCache, content_key
from finetune.relabel.frames import FrameStore
from finetune.relabel.labeller import StopJobError, open_labeller
from finetune.relabel.parts import Parts, part_key
from finetune.relabel.schema import episode_table
from finetune.relabel.sources import EpisodeItem

if TYPE_CHECKING:
    from pathlib import Path

    from finetune.relabel.config import Plan, RelabelConfig
    from finetune.relabel.labeller import Labeller, Labels, ModelFacts
    from finetune.relabel.sources import View

Status = Literal["labelled", "cached", "kept", "failed", "stopped"]
_ATTEMPTS = 2
ROW = pa.schema(
    [
        ("episode", pa.int64()),
        ("status", pa.string()),
        ("asked", pa.int64()),
        ("part", pa.string()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job with everything decided that its config left open.

    Attributes:
        facts: the model that every label comes from.
        parts: folder of the ledger.
    """

    config: RelabelConfig
    plan: Plan
    facts: ModelFacts
    parts: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one episode.

    Attributes:
        status: `labelled` by the model, `cached` from labels of an earlier run, `kept` as an interrupted run left it,
            `failed`, or `stopped` where no further episode can be labelled either.
        asked: values that the model was asked for.
        part: file of its rows; "" where it failed.
        error: a sentence; "" where it did not.
    """

    episode: int
    status: Status
    asked: int = 0
    part: str = ""
    error: str = ""


class EpisodeWorker:
    """Labels episodes one after another; the class that Ray Data makes an actor of.

    The model is reached only when an episode needs it.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._parts = Parts(job.parts)
        self._cache = LabelCache(job.config.cache)
        self._labeller: Labeller | None = None

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Turn rows of episodes (column `item`) into rows of outcomes (`ROW`)."""
        outcomes = [self.process(EpisodeItem.from_json(text)) for text in rows.column("item").to_pylist()]
        return pa.Table.from_pylist([asdict(outcome) for outcome in outcomes], schema=ROW)

    def process(self, item: EpisodeItem) -> Outcome:
        """Label one episode and put its rows on disk; what is wrong with it or the server is in the outcome."""
        try:
            before = self._parts.attempt(item.index)
            outcome = self._refused(item, before) or self._label(item)
        except RoboserveError as error:
            outcome = Outcome(episode=item.index, status="failed", error=str(error))
        except (StopJobError, OSError) as error:
            outcome = Outcome(episode=item.index, status="stopped", error=str(error))
        self._parts.attempted(item.index)
        return outcome

    def close(self) -> None:
        """Let go of the model."""
        if self._labeller is not None:
            self._labeller.close()
            self._labeller = None

    def _refused(self, item: EpisodeItem, before: int) -> Outcome | None:
        """Name what forbids an episode. A file that crashes the decoder would otherwise be tried again for ever."""
        fault = item.fault
        if before >= _ATTEMPTS:
            fault = f"the worker process died of it {before} times"
        elif not fault and not item.instruction.strip():
            fault = "it has no instruction; give one with --task"
        elif not fault and item.frames < 1:
            fault = "it has no frames"
        return Outcome(episode=item.index, status="failed", error=fault) if fault else None

    def _label(self, item: EpisodeItem) -> Outcome:
        keys = {view.camera: self._key(item, view) for view in item.views}
        key = part_key(item, keys)
        path = self._parts.path(item.index, key)
        if self._parts.holds(item.index, key, item.frames):
            return Outcome(episode=item.index, status="kept", part=path.name)
        labels: dict[str, Labels] = {}
        asked = 0
        for view in item.views:
            found = self._cache.get(keys[view.camera])
            if found is None:
                found = self._ask(item, view)
                self._cache.put(keys[view.camera], found)
                asked += len(found.frames)
            labels[view.camera] = found
        self._parts.write(item.index, key, episode_table(item, labels))
        status: Status = "labelled" if asked else "cached"
        return Outcome(episode=item.index, status=status, asked=asked, part=path.name)

    def _key(self, item: EpisodeItem, view: View) -> str:
        return content_key(
            facts=self._job.facts,
            plan=self._job.plan,
            instruction=item.instruction,
            camera=view.camera,
            video=view.digest(item.frames),
            frames=item.frames,
        )

    def _ask(self, item: EpisodeItem, view: View) -> Labels:
        labeller = self._opened()
        with FrameStore() as frames:
            for frame in view.read(item.frames):
                frames.add(labeller.pack(frame))
            return labeller.score(frames, item.instruction, self._job.plan)

    def _opened(self) -> Labeller:
        if self._labeller is None:
            labeller = open_labeller(self._job.config)
            if labeller.facts != self._job.facts:
                labeller.close()
                raise StopJobError("the model changed since the job began; run it again to label all with one model")
            self._labeller = labeller
        return self._labeller
