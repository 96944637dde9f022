"""A relabelling job from beginning to end: list, label, merge, report."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clients.errors import RoboserveError
from finetune.common.ray_session import ray_session
from finetune.relabel import files
from finetune.relabel.cluster import describe_in_worker, outcomes, require_ray_data
from finetune.relabel.config import Plan
from finetune.relabel.labeller import StopJobError, open_labeller
from finetune.relabel.merge import merge
from finetune.relabel.parts import Parts
from finetune.relabel.schema import metadata, schema
from finetune.relabel.sources import generic_text, open_source
from finetune.relabel.worker import Job, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune.relabel.config import RelabelConfig
    from finetune.relabel.labeller import ModelFacts
    from finetune.relabel.sources import Source


@dataclass(frozen=True, kw_only=True)
class RelabelReport:
    """What a job did; `OUT.report.json` has the same.

    Attributes:
        out: the parquet file; None where no episode could be labelled.
        rows: frames in it.
        asked: values that the model was asked for in this run.
        labelled: episodes labelled by the model in this run; `cached`: from the cache; `kept`: from an interrupted run.
        failed: episode index to what is wrong with it.
    """

    out: Path | None
    model: ModelFacts
    plan: Plan
    cameras: tuple[str, ...]
    episodes: int
    rows: int
    asked: int
    labelled: int
    cached: int
    kept: int
    failed: dict[int, str]
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """Return the report file's text."""
        return json.dumps(asdict(self) | {"out": None if self.out is None else self.out.name}, indent=2) + "\n"


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told how the job goes."""

    begin: Callable[[int], None] = lambda _episodes: None
    finished: Callable[[Outcome], None] = lambda _outcome: None
    warn: Callable[[str], None] = lambda _text: None


def run(config: RelabelConfig, watch: Watch | None = None) -> RelabelReport:
    """Label a dataset; go on where an earlier run of the same job was stopped.

    Every finished episode is on disk at once, in a folder beside the output, and in the cache. At the end the episodes'
    rows are merged, sorted by (episode_index, frame_index); the folder stays while an episode has failed. A model whose
    values do not depend on what else is in its batch gives the same bytes however often the job was killed.

    Raises:
        RoboserveError: the dataset, a setting or the model's name is wrong.
        StopJobError: the server is lost or refuses, or a disk is full; all that was finished is kept.
    """
    watch, config = watch or Watch(), _absolute(config)
    source = open_source(config.dataset, cameras=config.cameras, task=config.task)
    warnings = _warnings(source)
    for text in warnings:
        watch.warn(text)
    watch.begin(len(source.items))
    facts = _served_facts(config) if config.server is not None else None
    require_ray_data()
    with ray_session(config.workers):
        facts = facts or describe_in_worker(config)
        out = (config.out or config.dataset / f"{_file_name(facts.id)}_progress.parquet").resolve()
        plan = Plan(mode=config.mode, frame_policy=config.frame_policy or facts.frame_policy, every=config.every)
        folder = out.with_name(f".{out.name}.parts")
        job = Job(config=config, plan=plan, facts=facts, parts=folder)
        parts = Parts(folder)
        with parts.owned():
            found = _label_all(job, source, watch)
            failed = {outcome.episode: outcome.error for outcome in found if outcome.status == "failed"}
            done = [folder / outcome.part for outcome in found if outcome.part]
            values = metadata(facts, plan, source, config.task)
            rows = merge(done, out, schema=schema(source.cameras), metadata=values) if done else 0
            report = RelabelReport(
                out=out if done else None,
                model=facts,
                plan=plan,
                cameras=source.cameras,
                episodes=len(found),
                rows=rows,
                asked=sum(outcome.asked for outcome in found),
                **{status: sum(o.status == status for o in found) for status in ("labelled", "cached", "kept")},
                failed=failed,
                warnings=warnings,
            )
            files.write(report_path(out), report.to_json().encode())
            if not failed:
                parts.remove()
    return report


def report_path(out: Path) -> Path:
    """Return where the report on an output file lies."""
    return out.with_name(f"{out.stem}.report.json")


def _label_all(job: Job, source: Source, watch: Watch) -> list[Outcome]:
    """Return the outcome of every episode, in the order of the dataset."""
    found: dict[int, Outcome] = {}
    for row in outcomes(job, [item.to_json() for item in source.items]):
        outcome = Outcome(**row)
        watch.finished(outcome)
        if outcome.status == "stopped":
            done = sum(bool(other.part) for other in found.values())
            raise StopJobError(
                f"{outcome.error}. {done} of {len(source.items)} episodes are done and kept; the same command goes on"
            )
        found[outcome.episode] = outcome
    missing = [item.index for item in source.items if item.index not in found]
    if missing or len(found) != len(source.items):
        raise RoboserveError("internal", f"relabel: no outcome for episodes {missing[:10]}")
    return [found[index] for index in sorted(found)]


def _absolute(config: RelabelConfig) -> RelabelConfig:
    """Return the config with paths that mean the same in every worker."""
    model = config.model
    if config.server is None and model is not None and Path(model).is_dir():
        model = str(Path(model).resolve())
    return replace(config, dataset=config.dataset.resolve(), cache=config.cache.resolve(), model=model)


def _served_facts(config: RelabelConfig) -> ModelFacts:
    labeller = open_labeller(replace(config, wait_s=0.0))  # nobody waits yet: a wrong address is told at once
    try:
        return labeller.facts
    finally:
        labeller.close()


def _warnings(source: Source) -> tuple[str, ...]:
    text = generic_text(source.items)
    if text is None:
        return ()
    said = f"all {len(source.items)} episodes share the instruction {text!r:.80}, which names no goal"
    return (f"{said}: the labels will mean little. Put each episode's task into the dataset, or give one with --task.",)


def _file_name(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", model).strip("._") or "model"
