"""Many adapters on one policy: the round trip against one adapter and none, memory, and acts while they are swapped.

One server has one adapter in its folder, the other fifty; both answer from `zoo:metaworld-flow` in processes of their
own. Then robots ask the second one without pause while its adapters are replaced one after the other.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from benchmarks.support import results
from benchmarks.support.payloads import picture
from benchmarks.support.processes import baseline
from benchmarks.support.stats import summarize, turns
from clients.errors import RoboserveError
from clients.policy import PolicyClient, fit_images
from clients.policy_messages import ActOptions
from finetune.lora.artefacts import base_of, write_adapter
from finetune.lora.trainable import LoraSettings, make_trainable
from models.folders import checkpoint_folder
from models.policies.flow_vla.checkpoint import load_checkpoint

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

POLICY, BASE = "models.policies.flow_vla:FlowVLAPolicy", "zoo:metaworld-flow"
ONE, MANY, NONE = "one adapter", "fifty adapters", "fifty adapters there, none asked for"
_POLL_S = 0.1
_PATIENCE_S = 30.0


@dataclass(kw_only=True)
class Server:
    """A server of its own process: `url`, the folder of its adapters and their names."""

    url: str
    folder: Path
    process: psutil.Process

    @property
    def names(self) -> list[str]:
        """Names of its adapters."""
        return sorted(path.name for path in self.folder.iterdir())

    @property
    def mebibytes(self) -> float:
        """Memory of its process that is its own."""
        return float(self.process.memory_full_info().uss) / 2**20


@dataclass(kw_only=True)
class Load:
    """Robots that ask without pause; `go` ends them."""

    go: threading.Event = field(default_factory=threading.Event)
    acts: int = 0
    dropped: list[str] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = results.parser("adapters", str(__doc__))
    parser.add_argument("--count", type=int, default=50, help="adapters on the base")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=100, help="requests of a contender and round")
    parser.add_argument("--robots", type=int, default=8)
    parser.add_argument("--swaps", type=int, default=200)
    options = parser.parse_args(argv)
    if options.quick:
        options.count, options.rounds, options.repeats, options.swaps = 5, 1, 10, 5
    screen, journal = results.console(), results.Journal.open("adapters", options)
    results.print_machine(screen, journal.common)
    with tempfile.TemporaryDirectory(prefix="roboserve-bench-") as place:
        root = Path(place)
        made = [_make(root / "made", f"a{index:02d}", seed=index, rank=options.rank) for index in range(options.count)]
        fresh = [_make(root / "new", path.name, seed=1000 + at, rank=options.rank) for at, path in enumerate(made)]
        with _serving(root / "one", made[:1]) as one, _serving(root / "many", made) as many:
            _latency(screen, journal, options, one, many)
            _together(screen, journal, options, one, many)
            _swaps(screen, journal, options, many, (fresh, made))
    return 0


def _make(folder: Path, name: str, *, seed: int, rank: int) -> Path:
    config, network, content_hash = load_checkpoint(checkpoint_folder(BASE))
    torch.manual_seed(seed)
    made = make_trainable(network, "lora", LoraSettings(rank=rank, alpha=2 * rank))
    for parameter, value in network.named_parameters():
        if "lora_B" in parameter:
            torch.nn.init.normal_(value, std=0.02)
    base = base_of(config, content_hash)
    write_adapter(made.peft, folder / name, config=replace(config, id=name), base=base, revision=str(seed), card="\n")
    return folder / name


@contextlib.contextmanager
def _serving(folder: Path, adapters: Sequence[Path]) -> Iterator[Server]:
    for path in adapters:
        shutil.copytree(path, folder / path.name)
    config = {"checkpoint": BASE, "device": "cpu", "threads": 1, "adapters": str(folder), "adapters_poll_s": _POLL_S}
    before = set(psutil.Process().children())
    with baseline("app", POLICY, config) as port:
        (process,) = set(psutil.Process().children()) - before
        yield Server(url=f"ws://127.0.0.1:{port}/", folder=folder, process=process)


def _asker(client: PolicyClient) -> Callable[[str | None], Any]:
    images: Any = fit_images(client.contract, {"front": picture(64, 64, 0)}, codec="raw")
    state = torch.zeros(client.contract.state.size).numpy()

    def ask(adapter: str | None) -> Any:
        return client.act(
            images=images, state=state, instruction="open the drawer", adapter=adapter, options=ActOptions(seed=1)
        )

    return ask


def _latency(screen: Any, journal: results.Journal, options: argparse.Namespace, one: Server, many: Server) -> None:
    """One robot; with fifty, each request is for the next one."""
    taken: dict[str, list[float]] = {ONE: [], MANY: [], NONE: []}
    with PolicyClient(one.url) as first, PolicyClient(many.url) as second:
        ask = {ONE: _asker(first), MANY: _asker(second), NONE: _asker(second)}
        names: dict[str, list[Any]] = {ONE: one.names, MANY: many.names, NONE: [None]}
        for contender in turns(list(taken), options.rounds, random.Random(options.seed)):
            ask[contender](names[contender][0])
            for index in range(options.repeats):
                started = time.perf_counter()
                ask[contender](names[contender][index % len(names[contender])])
                taken[contender].append((time.perf_counter() - started) * 1e3)
    _tell(screen, journal, "one robot: round trip", taken)


def _together(screen: Any, journal: results.Journal, options: argparse.Namespace, one: Server, many: Server) -> None:
    """Robots at once: all with one adapter, or each with the next of the fifty at each request."""
    taken: dict[str, list[float]] = {ONE: [], MANY: [], NONE: []}
    batches: dict[str, list[int]] = {ONE: [], MANY: [], NONE: []}
    servers = {ONE: one, MANY: many, NONE: many}
    for contender in turns(list(taken), max(1, options.rounds // 2), random.Random(options.seed)):
        names: list[Any] = [None] if contender == NONE else servers[contender].names
        load = Load()
        with _robots(servers[contender], options.robots, names, load):
            time.sleep(0.2 if options.quick else 2.0)
        taken[contender] += load.milliseconds
        batches[contender] += load.batches
        if load.dropped:
            raise RuntimeError(f"{contender}: {load.dropped[0]}")
    sizes = {name: sum(values) / len(values) for name, values in batches.items()}
    _tell(screen, journal, f"{options.robots} robots at once: round trip", taken, sizes)


@contextlib.contextmanager
def _robots(server: Server, count: int, names: Sequence[Any], load: Load) -> Iterator[None]:
    lock = threading.Lock()
    load.go.set()

    def robot(number: int) -> None:
        with PolicyClient(server.url) as client:
            ask, at = _asker(client), number * 7
            while load.go.is_set():
                started = time.perf_counter()
                try:
                    size, error = ask(names[at % len(names)]).batch_size, None
                except RoboserveError as raised:
                    size, error = 0, str(raised)
                with lock:
                    load.acts += 1
                    load.milliseconds.append((time.perf_counter() - started) * 1e3)
                    load.batches.append(size)
                    load.dropped += [] if error is None else [error]
                at += 1

    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(robot, number) for number in range(count)]
        try:
            yield
        finally:
            load.go.clear()
        for one in running:
            one.result()


def _swaps(
    screen: Any,
    journal: results.Journal,
    options: argparse.Namespace,
    server: Server,
    versions: tuple[Sequence[Path], Sequence[Path]],
) -> None:
    """Replace adapters while robots ask; each swap is over when a robot is answered by the new version."""
    load, waits = Load(), []
    memory = [("before", server.mebibytes)]
    with PolicyClient(server.url) as client, _robots(server, options.robots, server.names, load):
        ask = _asker(client)
        for swap in range(options.swaps):
            count = len(versions[0])
            path = versions[swap // count % 2][swap % count]
            old, started = ask(path.name).model.id, time.perf_counter()
            shutil.copytree(path, server.folder / path.name, dirs_exist_ok=True)
            while ask(path.name).model.id == old:
                if time.perf_counter() - started > _PATIENCE_S:
                    raise RuntimeError(f"{path.name}: the new version was not served within {_PATIENCE_S:g} s")
            waits.append((time.perf_counter() - started) * 1e3)
            if (swap + 1) % max(1, options.swaps // 4) == 0:
                memory.append((f"after {swap + 1} swaps", server.mebibytes))
    told, latency = summarize(waits), summarize(load.milliseconds)
    journal.write(
        {
            "case": "swaps",
            "swaps": len(waits),
            "acts": load.acts,
            "dropped": len(load.dropped),
            "memory_mib": {name: round(value, 1) for name, value in memory},
            "swap_ms": told.to_map(),
            "act_ms": latency.to_map(),
        }
    )
    rows = [(f"memory {name}", f"{value:.1f} MiB") for name, value in memory]
    rows += [
        ("acts asked for meanwhile", str(load.acts)),
        ("acts dropped or refused", str(len(load.dropped))),
        ("file in place to first answer, p50 / p99", f"{told.p50:.0f} / {told.p99:.0f} ms"),
        ("round trip meanwhile, p50 / p99", f"{latency.p50:.2f} / {latency.p99:.2f} ms"),
    ]
    title = f"{len(waits)} swaps under {options.robots} robots, a look every {_POLL_S:g} s"
    results.print_table(screen, title, ("", ""), rows)


def _tell(
    screen: Any,
    journal: results.Journal,
    case: str,
    taken: dict[str, list[float]],
    sizes: dict[str, float] | None = None,
) -> None:
    reference = summarize(taken[ONE])
    rows = []
    for name, samples in taken.items():
        found = summarize(samples)
        size = None if sizes is None else round(sizes[name], 2)
        ratios = found.p50 / reference.p50, found.p99 / reference.p99
        row = {"case": case, "contender": name, "ms": found.to_map(), "mean_batch": size}
        journal.write(row | {"p50_ratio": round(ratios[0], 3), "p99_ratio": round(ratios[1], 3)})
        shown = "" if size is None else f"{size:.1f}"
        rows.append((name, f"{found.p50:.2f}", f"{found.p99:.2f}", f"{ratios[0]:.2f}", f"{ratios[1]:.2f}", shown))
    columns = (case, "p50 ms", "p99 ms", "p50 to one", "p99 to one", "mean batch")
    results.print_table(screen, f"{case}, {len(taken[MANY])} of fifty's", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
