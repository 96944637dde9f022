"""How a relabelling job grows: two workers against one with the model inside, two replicas against one with it served.

The model waits a set time for every frame that it is shown, so that the figures are of the job and its service and not
of who has the cores. Start-up is not counted: the clock runs from the first episodes done to the last.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.support import results
from benchmarks.support.processes import our_platform
from finetune.relabel.config import RelabelConfig
from finetune.relabel.job import Watch, run
from robot_client.dataset import DatasetWriter

if TYPE_CHECKING:
    import argparse

    from finetune.relabel.worker import Outcome

MODEL = "models.rewards.scripted:BrightnessReward"
INSIDE, SERVED = "model in the workers", "served model"
COUNTS = (1, 2)
_SIDE = 32
_WORKERS_A_REPLICA = 2


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = results.parser("relabel", str(__doc__))
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--frames", type=int, default=40, help="of an episode")
    parser.add_argument("--seconds-per-frame", type=float, default=0.001, help="of the model, for every shown frame")
    options = parser.parse_args(argv)
    if options.quick:
        options.episodes, options.frames = 8, 16
    screen = results.console()
    journal = results.Journal.open("relabel", options)
    results.print_machine(screen, journal.common)
    rows = []
    with tempfile.TemporaryDirectory(prefix="relabel-") as name:
        folder = Path(name)
        dataset = _dataset(folder / "dataset", options)
        for kind in (INSIDE, SERVED):
            rates = [_rate(kind, count, dataset, folder / f"{kind}-{count}", options) for count in COUNTS]
            for count, rate in zip(COUNTS, rates, strict=True):
                ratio = rate / rates[0]
                journal.write(
                    {"case": kind, "count": count, "labels_per_s": round(rate, 2), "ratio_to_one": round(ratio, 3)}
                )
                rows.append((f"{kind}: {count}", f"{ratio:.2f}", f"{rate:.1f}"))
    results.print_table(screen, "relabel", ("workers or replicas", "ratio to one", "labels/s"), rows)
    return 0


def _rate(kind: str, count: int, dataset: Path, folder: Path, options: argparse.Namespace) -> float:
    model = {"seconds_per_frame": options.seconds_per_frame}
    settings: dict[str, Any] = {"dataset": dataset, "out": folder / "labels.parquet", "cache": folder / "cache"}
    if kind == INSIDE:
        return _run(RelabelConfig(model=MODEL, model_config=model, workers=count, **settings))
    application = {
        "name": "reward-brightness",
        "route_prefix": "/reward/brightness",
        "import_path": "serving.reward:build",
        "args": {"name": "brightness", "reward": {"factory": MODEL, "config": model}},
        "deployments": [{"name": "RewardService", "num_replicas": count, "ray_actor_options": {"num_cpus": 0.5}}],
    }
    with our_platform([application]) as port:
        server = f"ws://127.0.0.1:{port}/reward/brightness"
        return _run(RelabelConfig(server=server, workers=_WORKERS_A_REPLICA * max(COUNTS), **settings))


def _run(config: RelabelConfig) -> float:
    """Return labels a second, once every worker has finished an episode or would have had the time."""
    done: list[tuple[float, int]] = []

    def finished(outcome: Outcome) -> None:
        done.append((time.perf_counter(), outcome.asked))

    report = run(config, Watch(finished=finished))
    if report.failed or report.cached or report.kept:
        raise RuntimeError(f"not every episode was labelled: {report.failed}")
    begin = config.workers - 1
    return sum(asked for _, asked in done[begin + 1 :]) / (done[-1][0] - done[begin][0])


def _dataset(root: Path, options: argparse.Namespace) -> Path:
    writer = DatasetWriter.create(
        root, fps=10, cameras={"front": (_SIDE, _SIDE)}, state_names=["x"], action_names=["x"], robot_type="none"
    )
    rng, nothing = np.random.default_rng(options.seed), np.zeros(1, np.float32)
    for _ in range(options.episodes):
        writer.begin()
        for level in rng.integers(0, 256, options.frames):
            writer.add({"front": np.full((_SIDE, _SIDE, 3), level, np.uint8)}, nothing, nothing)
        writer.end(task="push the green button")
    writer.close()
    return root


if __name__ == "__main__":
    sys.exit(main())
