"""A reward service under 1 to 32 callers, against the usual kind of server and the bare model, with the same weights.

The usual kind is built as Robometer's evaluation server is: a request is one forward over all its expanded prefixes,
nothing is kept, requests are never merged. Both are asked about clips that they have not seen, and take turns, with the
bare batched forward, in this process, between them. Then one caller asks for a value at every frame of a long clip; and
a very long one shows how much memory that takes.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.support import results
from benchmarks.support.platforms import reward_application
from benchmarks.support.processes import evalserver, our_platform
from benchmarks.support.reward_lines import (
    ClientLine,
    FormLine,
    PeakMemory,
    ScoreLine,
    Turn,
    bare_clips_per_s,
    served_by,
    take_turn,
)
from benchmarks.support.stats import summarize, turns

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    import psutil
    from rich.console import Console

    from models.rewards.contract import RewardModel

FACTORY = "models.robometer.reward:RobometerReward"
OURS, USUAL, BARE = "roboserve", "a request is a forward", "bare batched forward"
POLICIES = ("floor-4", "linspace-8")
"""What Robometer's server shows of each prefix, and what its authors describe."""
_ONE_FORWARD = 10**9
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Server:
    """One contender: how a caller connects, and the process that holds its model."""

    name: str
    open: Callable[[], ScoreLine]
    process: psutil.Process


@dataclass(kw_only=True)
class Tally:
    """What all turns of one contender came to."""

    seconds: float = 0.0
    clips: int = 0
    labels: int = 0
    latencies_ms: list[float] = field(default_factory=list)

    def add(self, turn: Turn) -> None:
        """Add one turn."""
        self.seconds += turn.seconds
        self.clips += turn.clips
        self.labels += turn.labels
        self.latencies_ms += turn.latencies_ms

    def to_map(self) -> dict[str, Any]:
        """Return everything for the results file."""
        return {
            "seconds": round(self.seconds, 3),
            "clips": self.clips,
            "clips_per_s": round(self.clips_per_s, 3),
            "labels_per_s": round(self.labels_per_s, 2),
            "latency_ms": summarize(self.latencies_ms).to_map(),
        }

    @property
    def clips_per_s(self) -> float:
        """Clips answered in a second."""
        return self.clips / self.seconds

    @property
    def labels_per_s(self) -> float:
        """Values of frames in a second."""
        return self.labels / self.seconds


class Clips:
    """Clips of noise that nobody has seen before, at the model's own frame size."""

    def __init__(self, size: tuple[int, int], seed: int) -> None:
        self._size = size
        self._draw = np.random.default_rng(seed)

    def make(self, count: int, frames: int) -> list[np.ndarray[Any, Any]]:
        """Return `count` clips, uint8 (frames, h, w, 3)."""
        return [self._draw.integers(0, 256, (frames, *self._size, 3), dtype=np.uint8) for _ in range(count)]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _options(argv)
    screen = results.console()
    journal = results.Journal.open("rewards", options)
    results.print_machine(screen, journal.common)
    with contextlib.ExitStack() as running:
        with screen.status("starting servers"):
            config = _model_config(options.model, running)
            model = _bare(config)
            servers = running.enter_context(_servers(config, options))
        clips = Clips(model.spec.image_size or (256, 256), options.seed)
        _memory(servers, clips, options, journal, screen)
        _prefixes(servers, clips, options, journal, screen)
        _callers(servers, model, clips, options, journal, screen)
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = results.parser("rewards", str(__doc__))
    parser.add_argument("--model", default="zoo:metaworld-robometer", help="zoo:NAME, a checkpoint folder, or 'random'")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of all contenders")
    parser.add_argument("--callers", default="1,8,32", help="comma-separated numbers of callers at once")
    parser.add_argument("--clips", type=int, default=128, help="clips of a turn; a quarter of them for a lone caller")
    parser.add_argument("--frames", type=int, default=8, help="of a clip that is shown once")
    parser.add_argument("--long", type=int, default=64, help="frames of a clip that is asked for prefix by prefix")
    parser.add_argument("--longest", type=int, default=512, help="frames of the clip that shows the memory")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--codec", choices=("raw", "png", "jpeg"), default="raw", help="of our client's frames")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64", help="batch sizes that the bare forward tries")
    options = parser.parse_args(argv)
    if options.quick:
        options.callers, options.clips, options.rounds, options.batches = "1,4", 8, 1, "1,8"
        options.long, options.longest = 16, 48
    options.callers = [int(count) for count in options.callers.split(",")]
    options.batches = [int(size) for size in options.batches.split(",")]
    return options


def _model_config(model: str, running: contextlib.ExitStack) -> dict[str, Any]:
    if model != "random":
        return {"checkpoint": model}
    folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="roboserve-bench-"))) / "random"
    _save_random(folder)
    return {"checkpoint": str(folder)}


def _save_random(folder: Path) -> None:
    """Write a checkpoint of the embedded sizes with weights as they are before training."""
    import torch

    from finetune.robometer.embedded import Sizes, make_config, make_tokenizer
    from models.robometer.checkpoint import RobometerSettings, save_checkpoint
    from models.robometer.network import RobometerNetwork
    from models.robometer.prompt import EMBEDDED_PROMPT

    torch.manual_seed(0)
    sizes = Sizes()
    tokenizer = make_tokenizer([EMBEDDED_PROMPT.progress_before, EMBEDDED_PROMPT.preference_before], sizes)
    network = RobometerNetwork(make_config(tokenizer, sizes))
    settings = RobometerSettings(
        id="random", revision="0", prompt=EMBEDDED_PROMPT, image_size=(sizes.image, sizes.image)
    )
    save_checkpoint(folder, settings, network, tokenizer, card="random weights\n", dtype=torch.float32)


def _bare(config: dict[str, Any]) -> RewardModel:
    import torch

    from models.robometer.reward import RobometerReward

    torch.set_num_threads(1)  # as the servers have
    return RobometerReward(RobometerReward.Config(**config, forward_tokens=_ONE_FORWARD))


@contextlib.contextmanager
def _servers(config: dict[str, Any], options: argparse.Namespace) -> Iterator[list[Server]]:
    config = {**config, "device": options.device}
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(our_platform([reward_application("robometer", FACTORY, config)]))
        usual = stack.enter_context(evalserver(FACTORY, {**config, "forward_tokens": _ONE_FORWARD}))
        url = f"ws://127.0.0.1:{port}/reward/robometer"
        yield [
            Server(name=OURS, open=lambda: ClientLine(url, options.codec), process=served_by("RewardService")),
            Server(name=USUAL, open=lambda: FormLine(usual), process=served_by("benchmarks.support.evalserver")),
        ]


def _ask(server: Server, callers: int, clips: list[np.ndarray[Any, Any]], mode: str, policy: str) -> Turn:
    lines = [server.open() for _ in range(callers)]
    try:
        return take_turn(lines, clips, mode, policy)
    finally:
        for line in lines:
            line.close()


def _memory(
    servers: list[Server], clips: Clips, options: argparse.Namespace, journal: results.Journal, screen: Console
) -> None:
    [clip] = clips.make(1, options.longest)
    rows = []
    for server in servers:
        _ask(server, 1, clips.make(2, options.frames), "single_pass", "all")
        with PeakMemory(server.process) as watched:
            turn = _ask(server, 1, [clip], "prefix", POLICIES[0])
        growth = (watched.peak - watched.before) / _MIB
        measured = {"growth_mib": round(growth, 1), "before_mib": round(watched.before / _MIB, 1)}
        row = {"case": "memory", "contender": server.name, "frames": options.longest, "policy": POLICIES[0]}
        journal.write({**row, **measured, "seconds": round(turn.seconds, 3), "labels": turn.labels})
        rows.append((server.name, f"{growth:.0f}", f"{watched.before / _MIB:.0f}", f"{turn.seconds:.2f}"))
    title = f"a value at each of {options.longest} frames ({POLICIES[0]}), the server's resident memory"
    results.print_table(screen, title, ("server", "growth MiB", "before MiB", "seconds"), rows)


def _prefixes(
    servers: list[Server], clips: Clips, options: argparse.Namespace, journal: results.Journal, screen: Console
) -> None:
    rows = []
    for policy in POLICIES:
        tallies = {server.name: Tally() for server in servers}
        for server in turns(servers, options.rounds, random.Random(f"{options.seed}:{policy}")):
            tallies[server.name].add(_ask(server, 1, clips.make(2, options.long), "prefix", policy))
        ratio = tallies[OURS].labels_per_s / tallies[USUAL].labels_per_s
        for name, tally in tallies.items():
            row = {"case": "prefix", "contender": name, "frames": options.long, "policy": policy}
            journal.write({**row, **tally.to_map(), "ratio_to_usual": round(ratio, 3) if name == OURS else 1.0})
        figures = (f"{tallies[name].labels_per_s:.0f}" for name in (OURS, USUAL))
        rows.append((policy, f"{ratio:.2f}x", *figures))
    title = f"a value at each of {options.long} frames, one caller; gain over: {USUAL}"
    results.print_table(screen, title, ("frames shown of each prefix", "gain", "labels/s", "usual labels/s"), rows)


def _callers(
    servers: list[Server],
    model: RewardModel,
    clips: Clips,
    options: argparse.Namespace,
    journal: results.Journal,
    screen: Console,
) -> None:
    asked = [(server.name, callers) for server in servers for callers in options.callers]
    by_name = {server.name: server for server in servers}
    tallies = {who: Tally() for who in asked}
    bare: dict[int, list[float]] = {size: [] for size in options.batches}
    with results.progress(screen) as bar:
        task = bar.add_task("callers", total=options.rounds * (len(asked) + 1))
        for name, callers in turns([*asked, (BARE, 0)], options.rounds, random.Random(options.seed)):
            if name == BARE:
                for size in options.batches:
                    some = clips.make(max(size, options.clips // 4), options.frames)
                    bare[size].append(bare_clips_per_s(model, some, size))
            else:
                some = clips.make(options.clips if callers > 1 else options.clips // 4, options.frames)
                tallies[name, callers].add(_ask(by_name[name], callers, some, "single_pass", "all"))
            bar.advance(task)
    rates = {size: sum(found) / len(found) for size, found in bare.items()}
    best = max(rates, key=lambda size: rates[size])
    for size, rate in rates.items():
        journal.write({"case": "callers", "contender": BARE, "batch": size, "clips_per_s": round(rate, 3)})
    rows = []
    for callers in options.callers:
        ours, usual = tallies[OURS, callers], tallies[USUAL, callers]
        for name, tally in ((OURS, ours), (USUAL, usual)):
            ratios = {"ratio_to_usual": tally.clips_per_s / usual.clips_per_s}
            ratios["ratio_to_bare"] = tally.clips_per_s / rates[best]
            row = {"case": "callers", "contender": name, "callers": callers, "frames": options.frames}
            journal.write({**row, **tally.to_map(), **{key: round(value, 3) for key, value in ratios.items()}})
        cells = [str(callers), f"{ours.clips_per_s / usual.clips_per_s:.2f}x", f"{ours.clips_per_s / rates[best]:.0%}"]
        for tally in (ours, usual):
            latency = summarize(tally.latencies_ms)
            cells += [f"{tally.clips_per_s:.1f}", f"{tally.labels_per_s:.0f}", f"{latency.p50:.0f} / {latency.p99:.0f}"]
        rows.append(tuple(cells))
    each = ("clips/s", "labels/s", "p50 / p99 ms")
    columns = ("callers", "gain", "of bare", *each, *(f"usual {name}" for name in each))
    title = f"clips of {options.frames} frames shown once; {BARE}: {rates[best]:.1f} clips/s, {best} clips at once"
    results.print_table(screen, title, columns, rows)


if __name__ == "__main__":
    sys.exit(main())
