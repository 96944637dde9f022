"""A relabelling job that is killed and run again, against one that is left alone: are the files the same bytes?

Both run as a user runs them, `roboserve relabel`, each in a process group with a Ray of its own. At random moments the
whole group gets SIGKILL; the same command then goes on. Times are of whole runs, start of Ray included.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from benchmarks.support import results
from benchmarks.support.payloads import picture
from benchmarks.support.processes import environment
from finetune.relabel.job import report_path
from robot_client.dataset import DatasetWriter

if TYPE_CHECKING:
    import argparse

    from rich.progress import Progress

_SIDE = 96
_LIMIT_S = 1800.0
_GONE_LIMIT_S = 60.0
_JITTER_S = 0.5


@dataclass(kw_only=True)
class Kill:
    """One kill.

    Attributes:
        finished: episodes whose rows were on disk.
        processes: how many there were; `gone_s`: until the last of them had ended, seconds.
    """

    finished: int
    processes: int
    gone_s: float


@dataclass(kw_only=True)
class Outcome:
    """One job, all of its runs together."""

    seconds: float = 0.0
    kills: list[Kill] = field(default_factory=list)
    digest: str = ""
    report: dict[str, Any] = field(default_factory=dict)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring. Returns 1 where the files differ."""
    parser = results.parser("relabel_kill", str(__doc__))
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--frames", type=int, default=40, help="of an episode")
    parser.add_argument("--every", type=int, default=4, help="a value for every n-th frame")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="zoo:metaworld-robometer", help="as `roboserve relabel` takes it")
    options = parser.parse_args(argv)
    if options.quick:
        options.episodes, options.frames = 12, 16
    screen = results.console()
    journal = results.Journal.open("relabel_kill", options)
    results.print_machine(screen, journal.common)
    with tempfile.TemporaryDirectory(prefix="relabel-kill-") as name, results.progress(screen) as bars:
        folder = Path(name)
        dataset = _dataset(folder / "dataset", options)
        draw = np.random.default_rng(options.seed)
        moments = np.sort(draw.choice(np.arange(1, options.episodes - 1), options.kills, replace=False))
        whole = _run(dataset, folder / "whole", options, bars, [])
        kills = [(int(moment), draw.uniform(0, _JITTER_S)) for moment in moments]
        broken = _run(dataset, folder / "broken", options, bars, kills)
    same = whole.digest == broken.digest
    for case, outcome in (("unbroken", whole), ("killed", broken)):
        kept = {name: outcome.report[name] for name in ("kept", "cached", "labelled", "asked", "rows")}
        row = {"case": case, "seconds": round(outcome.seconds, 1), "sha256": outcome.digest, "identical": same, **kept}
        journal.write({**row, "kills": [vars(kill) for kill in outcome.kills]})
    _print(screen, whole, broken)
    screen.print("the files are identical" if same else "[red]the files differ[/red]")
    return 0 if same else 1


def _run(
    dataset: Path, folder: Path, options: argparse.Namespace, bars: Progress, moments: list[tuple[int, float]]
) -> Outcome:
    """Run a job to its end, killed once for each moment: (episodes on disk, seconds after that)."""
    folder.mkdir()
    out = folder / "labels.parquet"
    command = [sys.executable, "-m", "roboserve", "relabel", str(dataset), "--model", options.model, "--out", str(out)]
    command += ["--cache", str(folder / "cache"), "--workers", str(options.workers), "--every", str(options.every)]
    outcome = Outcome()
    bar = bars.add_task(folder.name, total=options.episodes)
    started = time.perf_counter()
    for moment in [*moments, None]:
        with (folder / "output.txt").open("ab") as sink:
            process = subprocess.Popen(  # noqa: S603  our own interpreter and arguments, no shell
                command, env=environment(), stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            ended = _watch(process, folder, moment, lambda count: bars.update(bar, completed=count))
            if ended != (moment is None):
                raise RuntimeError(f"relabel ended by itself: {(folder / 'output.txt').read_text('utf-8')[-2000:]}")
        finally:
            kill = _kill(process, folder)
        if moment is not None:
            outcome.kills.append(kill)
    outcome.seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"relabel failed: {(folder / 'output.txt').read_text('utf-8')[-2000:]}")
    outcome.digest = hashlib.sha256(out.read_bytes()).hexdigest()
    outcome.report = json.loads(report_path(out).read_text("utf-8"))
    return outcome


def _watch(process: subprocess.Popen[bytes], folder: Path, moment: tuple[int, float] | None, told: Any) -> bool:
    """Wait for the moment or the end; returns whether it ended."""
    give_up = time.monotonic() + _LIMIT_S
    while time.monotonic() < give_up:
        count = _finished(folder)
        told(count)
        if process.poll() is not None:
            return True
        if moment is not None and count >= moment[0]:
            time.sleep(moment[1])
            return process.poll() is not None
        time.sleep(0.05)
    raise RuntimeError(f"relabel was not done after {_LIMIT_S:g} s")


def _kill(process: subprocess.Popen[bytes], folder: Path) -> Kill:
    """Kill the process group and wait until all that it started is gone: Ray puts workers in groups of their own."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, psutil.NoSuchProcess):
        family = []
    killed = time.perf_counter()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=_GONE_LIMIT_S)
    for left in alive:
        left.kill()
    if alive:
        raise RuntimeError(f"{len(alive)} processes outlived the job by {_GONE_LIMIT_S:g} s")
    return Kill(finished=_finished(folder), processes=len(family), gone_s=time.perf_counter() - killed)


def _finished(folder: Path) -> int:
    return sum(1 for _ in (folder / ".labels.parquet.parts").glob("episode-*.parquet"))


def _dataset(root: Path, options: argparse.Namespace) -> Path:
    """Write episodes that pan over a picture, each over its own."""
    writer = DatasetWriter.create(
        root, fps=10, cameras={"front": (_SIDE, _SIDE)}, state_names=["x"], action_names=["x"], robot_type="none"
    )
    nothing = np.zeros(1, np.float32)
    for episode in range(options.episodes):
        scene = picture(_SIDE, _SIDE + options.frames, options.seed + episode)
        writer.begin()
        for frame in range(options.frames):
            writer.add({"front": np.ascontiguousarray(scene[:, frame : frame + _SIDE])}, nothing, nothing)
        writer.end(task=f"push button number {episode % 7}")
    writer.close()
    return root


def _print(screen: Any, whole: Outcome, broken: Outcome) -> None:
    columns = ("job", "seconds", "killed with", "processes", "all gone after", "kept", "cached", "labelled", "sha256")
    rows = []
    for name, outcome in (("left alone", whole), ("killed", broken)):
        report = outcome.report
        rows.append(
            (
                name,
                f"{outcome.seconds:.0f}",
                ", ".join(f"{kill.finished} done" for kill in outcome.kills) or "-",
                ", ".join(str(kill.processes) for kill in outcome.kills) or "-",
                ", ".join(f"{kill.gone_s:.1f} s" for kill in outcome.kills) or "-",
                *(str(report[part]) for part in ("kept", "cached", "labelled")),
                outcome.digest[:12],
            )
        )
    results.print_table(screen, "relabel, killed and run again", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
