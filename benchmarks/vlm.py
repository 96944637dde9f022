"""Preference labels and paths of a vision-language model under many callers, engine against engine, same weights.

The baseline is what a lab's own script does: transformers' `generate`, one question after the other. Against it stand
our engine on transformers and, where it is installed, vLLM: preference pairs read as label probabilities, and written
as text; paths with and without structured decoding. Then the same pairs with four images of five seen before, where an
engine that keeps images by their content can save the work.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.support import results
from models.folders import checkpoint_folder
from models.hamster.grammar import answer_regex
from models.hamster.prompt import read_prompt
from models.preference.contract import Pair
from models.preference.prompt import FILE as PREFERENCE_FILE
from models.preference.prompt import PreferencePrompt
from models.vlm.checkpoint import load_checkpoint
from models.vlm.messages import Message, user
from serving.vlm.contract import Constraint, Sampling, VlmRequest
from serving.vlm.engines import TransformersSettings, VllmSettings, make_engine, vllm_is_installed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Sequence

    from serving.vlm.contract import VlmEngine

SERIAL = "generate, one at a time"
REPEATED = 0.8


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked: `labels` reads probabilities, otherwise an answer is written.

    Attributes:
        name: of the case.
        questions: one conversation for each request.
        adapter: who answers.
        labels: words whose probabilities are read; None writes an answer.
        max_tokens: of a written answer; `constraint`: its form.
    """

    name: str
    questions: Sequence[tuple[Message, ...]]
    adapter: str | None
    labels: tuple[str, ...] | None = None
    max_tokens: int = 1
    constraint: Constraint | None = None


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = results.parser("vlm", str(__doc__))
    parser.add_argument("--model", default="zoo:metaworld-vlm", help="zoo:NAME or a checkpoint folder with its prompts")
    parser.add_argument("--callers", type=int, default=32, help="at once")
    parser.add_argument("--requests", type=int, default=256, help="of each contender and case")
    parser.add_argument("--side", type=int, default=96, help="of the images, pixels")
    parser.add_argument("--engines", default="transformers,vllm", help="comma-separated")
    options = parser.parse_args(argv)
    if options.quick:
        options.callers, options.requests = 4, 8
    screen = results.console()
    journal = results.Journal.open("vlm", options)
    results.print_machine(screen, journal.common)
    tasks = _tasks(options)
    serial = _serial_rates(options, tasks)
    table = [_row(journal, SERIAL, task.name, rate, rate) for task, rate in zip(tasks, serial, strict=True)]
    for kind in options.engines.split(","):
        if kind == "vllm" and not vllm_is_installed():
            screen.print("vLLM is not installed: left out", style="yellow")
            continue
        rates = asyncio.run(_engine_rates(kind, options, tasks))
        for task, rate, base in zip(tasks, rates, serial, strict=True):
            table.append(_row(journal, kind, task.name, rate, base))
    columns = ("case, engine", "gain", "a second")
    results.print_table(screen, f"{options.callers} callers", columns, sorted(table))
    return 0


def _row(journal: results.Journal, contender: str, case: str, rate: float, base: float) -> tuple[str, str, str]:
    gain = rate / base
    journal.write({"case": case, "contender": contender, "per_s": round(rate, 3), "gain": round(gain, 3)})
    return f"{case}: {contender}", f"{gain:.2f}x", f"{rate:.1f}"


def _tasks(options: argparse.Namespace) -> list[Task]:
    """Return the cases; each has its own images, so that what one leaves in a cache helps no other."""
    folder = checkpoint_folder(options.model)
    preference = PreferencePrompt.read(folder / PREFERENCE_FILE)
    path = read_prompt(folder)
    adapters = folder / "adapters"
    labeller = "preference" if (adapters / "preference").is_dir() else None
    planner = "path" if (adapters / "path").is_dir() else None
    if preference.one_token is None:
        raise ValueError(f"{PREFERENCE_FILE}: has no one_token protocol")
    words = preference.one_token.labels.listed
    rng = np.random.default_rng(options.seed)

    def pairs(repeated: float) -> list[tuple[Message, ...]]:
        pool = [_picture(rng, options.side) for _ in range(8)]
        return [
            preference.ask_one_token(
                Pair(
                    goal="the drawer is open",
                    first=(_drawn(rng, pool, options.side, repeated),),
                    second=(_drawn(rng, pool, options.side, repeated),),
                )
            )
            for _ in range(options.requests)
        ]

    def paths() -> list[tuple[Message, ...]]:
        content = path.content("open the drawer")
        return [
            (user(*(_picture(rng, options.side) if part["type"] == "image" else part["text"] for part in content)),)
            for _ in range(options.requests)
        ]

    form = Constraint(kind="regex", value=answer_regex(path.answer.style))
    tokens = path.decoding.max_tokens
    return [
        Task(name="preference, read", questions=pairs(0.0), adapter=labeller, labels=words),
        Task(name="preference, written", questions=pairs(0.0), adapter=labeller, max_tokens=1),
        Task(name="preference, 80 % of images seen", questions=pairs(REPEATED), adapter=labeller, labels=words),
        Task(name="path", questions=paths(), adapter=planner, max_tokens=tokens),
        Task(name="path, structured", questions=paths(), adapter=planner, max_tokens=tokens, constraint=form),
    ]


def _picture(rng: np.random.Generator, side: int) -> Any:
    return rng.integers(0, 255, (side, side, 3), dtype=np.uint8)


def _drawn(rng: np.random.Generator, pool: Sequence[Any], side: int, repeated: float) -> Any:
    return pool[int(rng.integers(len(pool)))] if rng.random() < repeated else _picture(rng, side)


def _serial_rates(options: argparse.Namespace, tasks: Sequence[Task]) -> list[float]:
    """Return requests a second of transformers' own `generate` behind a lock, asked by all callers at once."""
    checkpoint = load_checkpoint(checkpoint_folder(options.model))
    network: Any = checkpoint.network
    lock = threading.Lock()
    adapted = _with_adapters(network, options)

    async def ask(task: Task, question: tuple[Message, ...]) -> None:
        def work() -> None:
            with lock:
                adapted(task.adapter)
                tensors = checkpoint.composer.batch([checkpoint.composer.compose(question)]).tensors
                network.generate(**tensors, max_new_tokens=task.max_tokens, do_sample=False)

        await asyncio.to_thread(work)

    return [asyncio.run(_rate(options.callers, task, ask)) for task in tasks]


def _with_adapters(network: Any, options: argparse.Namespace) -> Callable[[str | None], None]:
    from models.vlm.adapters import Adapters

    adapters = Adapters(network)
    found = sorted((checkpoint_folder(options.model) / "adapters").glob("*/adapter_config.json"))
    slots = {path.parent.name: adapters.load(path.parent.name, path.parent) for path in found}
    return lambda name: adapters.use(None if name is None else slots[name])


async def _engine_rates(kind: str, options: argparse.Namespace, tasks: Sequence[Task]) -> list[float]:
    settings: dict[str, Any] = {"checkpoint": options.model, "max_batch": options.callers}
    engine = await make_engine(
        VllmSettings(**settings) if kind == "vllm" else TransformersSettings(device="cpu", **settings)
    )

    async def ask(task: Task, question: tuple[Message, ...]) -> None:
        await _ask(engine, task, question)

    try:
        return [await _rate(options.callers, task, ask) for task in tasks]
    finally:
        await engine.close()


async def _ask(engine: VlmEngine, task: Task, question: tuple[Message, ...]) -> None:
    if task.labels is not None:
        await engine.labels(question, task.labels, adapter=task.adapter)
        return
    sampling = Sampling(max_tokens=task.max_tokens)
    request = VlmRequest(messages=question, sampling=sampling, constraint=task.constraint, adapter=task.adapter)
    async for _ in engine.stream(request):
        pass


async def _rate(callers: int, task: Task, ask: Callable[[Task, tuple[Message, ...]], Awaitable[None]]) -> float:
    """Return requests a second, every caller asking again as soon as it is answered; the first question warms up."""
    await ask(task, task.questions[0])
    left = iter(task.questions[1:])

    async def caller() -> None:
        for question in left:
            await ask(task, question)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return (len(task.questions) - 1) / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
