"""Mutate valid messages: the decoder must read or refuse each, and never crash or take memory beyond its cap.

`python -m tests.clients.fuzz_wire --count 1000000`. Message number i of a seed is always the same, so a run can go on
where another ended (`--start`) and a crash can be repeated (`--start I --count 1`).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import resource
import sys
import tracemalloc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import Progress

from clients.errors import RoboserveError
from clients.wire import ARRAY_KINDS, DEFAULT_LIMITS, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Mutation = Callable[[bytearray, random.Random, list[bytes]], None]

COPIES = 3
"""Bytes of arrays and text exist at most so often at once: in msgpack's tree, in numpy's buffer, and one to spare."""
BYTES_PER_OBJECT = 400
"""Room for one value's Python object and its slot in a map."""

_INTERESTING = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63,
    2**64 - 1,
)
_TAGS = (*range(0xC0, 0xE0), 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF)
_DTYPES = (
    b"|O",
    b"|V8",
    b"<c8",
    b"<M8",
    b"<m8",
    b"|S4",
    b"<U4",
    b"<f16",
    b"<f2",
    b">f4",
    b"|b1",
    b"(2,)f4",
    b"f4,f4",
    b"?",
)


def allocation_cap(size: int) -> int:
    """Return the most bytes that decoding a message of `size` bytes may hold at once."""
    return COPIES * size + BYTES_PER_OBJECT * min(size, DEFAULT_LIMITS.objects) + 16 * 1024


@dataclass
class Findings:
    """What came of a run.

    Attributes:
        read: messages that decoded; refused: by error code.
        crashes: index and exception of every message that raised something other than a RoboserveError.
        broken: index and reason of every message that decoded to something that breaks the codec's promise.
        worst_allocation: largest traced peak over the cap's share (1.0 is the cap), on the sampled messages.
    """

    read: int = 0
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    crashes: list[tuple[int, str]] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)
    worst_allocation: float = 0.0
    peak_bytes: int = 0

    @property
    def clean(self) -> bool:
        return not self.crashes and not self.broken and self.worst_allocation <= 1.0


def corpus() -> list[bytes]:
    """Return valid messages of every shape the protocol uses; small ones, since a mutation should hit structure.

    The last one is of the size that robots send, for the allocations.
    """
    generator = np.random.default_rng(0)
    image, camera = (generator.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((6, 5), (224, 224)))
    arrays = {
        kind: np.arange(6).astype(kind).reshape(2, 3) for kind in ("?", "i1", "u2", "<i4", ">i8", "f2", "f4", "f8")
    }
    messages: list[Any] = [
        {},
        {"actions": np.array([[1, 2]], dtype=np.float32)},
        {"s": np.float32(1.5), "n": np.int8(-3), "b": np.bool_(1)},
        {"observation/image": image, "observation/state": np.zeros(8, np.float32), "prompt": "open the drawer"},
        {
            "type": "act",
            "images": {"corner": b"\xff\xd8\xff" + bytes(40)},
            "state": np.zeros(4, np.float32),
            "deadline_ms": 200,
        },
        arrays,
        {
            "empty": np.zeros((0, 7), np.float64),
            "scalar": np.array(2.5),
            "list": [1, [2, [3, ["x" * 40]]], None, True, -1e300],
        },
        {str(key): key for key in range(20)},
        [{"a": np.ones(3)}, b"bytes", "text" * 20, 2**40, -(2**40), 0.5],
        {"images": {"corner": camera, "wrist": camera}, "state": np.zeros(32, np.float32), "prompt": "open the drawer"},
    ]
    return [encode(message) for message in messages]


def _flip(data: bytearray, rng: random.Random, _others: list[bytes]) -> None:
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(data: bytearray, rng: random.Random, _others: list[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def _insert(data: bytearray, rng: random.Random, _others: list[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randint(1, 8))


def _delete(data: bytearray, rng: random.Random, _others: list[bytes]) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 8)]


def _splice(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    other = rng.choice(others)
    start = rng.randrange(len(other))
    at = rng.randrange(len(data))
    data[at : at + rng.randint(0, 16)] = other[start : start + rng.randint(1, 64)]


def _repeat(data: bytearray, rng: random.Random, _others: list[bytes]) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randint(1, 24)] * rng.randint(1, 40)


def _tag(data: bytearray, rng: random.Random, _others: list[bytes]) -> None:
    data[rng.randrange(len(data))] = rng.choice(_TAGS)


def _length(data: bytearray, rng: random.Random, _others: list[bytes]) -> None:
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(len(data))
    data[at : at + width] = (rng.choice(_INTERESTING) % (1 << 8 * width)).to_bytes(width, "big")


def _dtype(data: bytearray, rng: random.Random, _others: list[bytes]) -> None:
    at = data.find(b"dtype")
    name = (
        rng.choice(_DTYPES) if rng.random() < 0.5 else bytes(rng.randrange(32, 127) for _ in range(rng.randint(0, 9)))
    )
    if at >= 0:
        end = at + 6 + (data[at + 5] & 0x1F if at + 5 < len(data) else 0)
        data[at + 5 : end] = bytes([0xA0 | len(name)]) + name


def _shape(data: bytearray, rng: random.Random, _others: list[bytes]) -> None:
    at = data.find(b"shape")
    if at >= 0:
        pool = rng.choice(((0, 2**24), (0, 1, 2, 3, 7), (*_INTERESTING[:-2], -1, -(2**31), 2**24, 3)))
        sides = [rng.choice(pool) for _ in range(rng.randint(0, 7))]
        data[at + 5 : at + 6 + (data[at + 5] & 0x0F if at + 5 < len(data) else 0)] = encode(sides)


MUTATIONS: tuple[Mutation, ...] = (
    _flip,
    _truncate,
    _insert,
    _delete,
    _splice,
    _repeat,
    _tag,
    _length,
    _dtype,
    _shape,
)


def mutated(seed: int, index: int, messages: list[bytes]) -> bytes:
    """Return message number `index` of a seed: a valid message with one to three mutations."""
    rng = random.Random(seed * 1_000_003 + index)
    data = bytearray(messages[-1] if index % 40 == 0 else rng.choice(messages[:-1]))
    for _ in range(rng.choice((1, 1, 2, 3))):
        if data:
            rng.choice(MUTATIONS)(data, rng, messages)
    return bytes(data)


def leaves(value: Any) -> Iterator[Any]:
    """Yield every value of a decoded tree that is no map or list."""
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def promise_broken(value: Any, size: int) -> str | None:
    """Return how a decoded value breaks the codec's promise, or None."""
    for leaf in leaves(value):
        if isinstance(leaf, np.ndarray):
            if leaf.dtype.kind not in ARRAY_KINDS or leaf.dtype.itemsize > 8:
                return f"array of dtype {leaf.dtype}"
            if not (leaf.flags.writeable and leaf.flags.owndata and leaf.flags.c_contiguous):
                return "array that is no writable copy"
            if leaf.nbytes > size:
                return f"array of {leaf.nbytes} bytes out of a message of {size}"
    again = encode(value)
    if encode(decode(again)) != again:
        return "does not survive another round trip"
    return None


def run(
    count: int, *, seed: int = 0, start: int = 0, trace_every: int = 20, step: Callable[[], object] = lambda: None
) -> Findings:
    """Decode `count` mutated messages, measuring allocations on every `trace_every`-th."""
    found, messages = Findings(), corpus()
    _load_lazy_parts()
    for index in range(start, start + count):
        data = mutated(seed, index, messages)
        traced = index % trace_every == 0
        if traced:
            tracemalloc.start()
        try:
            value = decode(data)
        except RoboserveError as error:
            found.refused[error.code] += 1
        except Exception as error:  # noqa: BLE001  finding these is what a fuzzer is for
            found.crashes.append((index, f"{type(error).__name__}: {error}"))
        else:
            found.read += 1
            reason = None if traced else promise_broken(value, len(data))
            if reason:
                found.broken.append((index, reason))
        if traced:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            found.peak_bytes = max(found.peak_bytes, peak)
            found.worst_allocation = max(found.worst_allocation, peak / allocation_cap(len(data)))
        step()
    return found


def _load_lazy_parts() -> None:
    # numpy imports its dtype grammar on first use, which is no allocation of the message's
    for name in _DTYPES:
        with contextlib.suppress(RoboserveError):
            decode(encode({"a": np.ones(1, "f4")}).replace(b"\xa3<f4", bytes([0xA0 | len(name)]) + name))


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the status is 1 when anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with Progress(disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("messages", total=options.count)
        found = run(options.count, seed=options.seed, start=options.start, step=lambda: progress.advance(task))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{options.count} messages: {found.read} read, {sum(found.refused.values())} refused {dict(found.refused)}")
    print(f"traced peak {found.peak_bytes} bytes, at most {found.worst_allocation:.2f} of the cap")
    print(f"process peak {grown:.1f} MiB")
    for name, entries in (("crash", found.crashes), ("broken promise", found.broken)):
        print(f"{len(entries)} x {name}")
        for index, reason in entries[:20]:
            print(f"  --seed {options.seed} --start {index} --count 1: {reason}")
    return 0 if found.clean else 1


if __name__ == "__main__":
    sys.exit(main())
