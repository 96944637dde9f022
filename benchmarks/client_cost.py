"""What one observation costs the robot, by camera size, number of cameras and codec: ours against openpi-client.

First the preparation alone (resize, compress, pack), then whole round trips with each client's own class against a
server in another process that answers at once. CPU is this process's, in ms an observation: a robot's computer is
often the weakest of all.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.support import results
from benchmarks.support.payloads import INSTRUCTION, picture, state
from benchmarks.support.processes import baseline
from benchmarks.support.stats import summarize, turns
from clients import wire
from clients.contract import PROTOCOL, Camera, PolicyContract, Vector
from clients.images import encode_image, resize_with_pad
from clients.policy import PolicyClient, fit_images
from clients.policy_messages import act_message

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from clients.images import Array

ZERO = "models.policies.scripted:ZeroPolicy"
CODECS = ("jpeg", "png", "raw")
OPENPI = "openpi-client (raw)"
CAMERAS = {1: ("front",), 2: ("front", "wrist")}
SIZES = {"224x224": (224, 224), "640x480": (480, 640), "1280x720": (720, 1280)}
_SIDE = 224


@dataclass(kw_only=True)
class Contender:
    """One way to send an observation: `once` does it and returns the bytes that it puts on the wire."""

    name: str
    once: Callable[[], int]
    wire_bytes: int = 0
    milliseconds: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    def measure(self, repeats: int) -> None:
        """Do it again and again, after twice for warmth."""
        for _ in range(2):
            self.once()
        cpu = time.process_time()
        for _ in range(repeats):
            started = time.perf_counter()
            self.wire_bytes = self.once()
            self.milliseconds.append((time.perf_counter() - started) * 1e3)
        self.cpu_s += time.process_time() - cpu

    @property
    def cpu_ms(self) -> float:
        """CPU of this process for one observation."""
        return self.cpu_s / len(self.milliseconds) * 1e3


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = results.parser("client_cost", str(__doc__))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=20, help="per contender and round")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.repeats = 1, 3
    screen = results.console()
    journal = results.Journal.open("client_cost", options)
    results.print_machine(screen, journal.common)
    sizes = {"640x480": SIZES["640x480"]} if options.quick else SIZES
    _steps(screen, journal, options, sizes)
    for cameras, names in CAMERAS.items():
        for size, (height, width) in sizes.items():
            frames = {name: picture(height, width, options.seed + at) for at, name in enumerate(names)}
            title = f"{cameras} x {size} to {_SIDE}x{_SIDE}"
            _compare(screen, journal, options, f"prepare: {title}", _preparations(frames))
    for cameras, names in CAMERAS.items():
        frames = {name: picture(480, 640, options.seed + at) for at, name in enumerate(names)}
        with _round_trips(frames) as found:
            _compare(screen, journal, options, f"round trip: {cameras} x 640x480 to {_SIDE}x{_SIDE}", found)
    return 0


def _contract(cameras: tuple[str, ...]) -> PolicyContract:
    vector = Vector(names=("x",), units=("1",), kinds=("delta",), low=(-1.0,), high=(1.0,))
    return PolicyContract(
        model="none",
        revision="1",
        content_hash="0" * 64,
        cameras=tuple(Camera(name, _SIDE, _SIDE) for name in cameras),
        state=vector,
        action=vector,
        control_hz=20.0,
        chunk_length=16,
        execute=8,
        integration_steps=0,
        supports=(),
        adapters=(),
        normalization="none",
        limits={},
        protocol=PROTOCOL,
    )


def frame_bytes(message: bytes) -> int:
    """Return the size of a client's websocket frame with this message (RFC 6455, 5.2: header, length, mask)."""
    length = len(message)
    extended = 0 if length < 126 else 2 if length < 1 << 16 else 8
    return 2 + extended + 4 + length


def _ours(frames: dict[str, Array], contract: PolicyContract, codec: str) -> int:
    images = fit_images(contract, frames, codec=codec)
    message = act_message(
        "0" * 32,
        images=images,
        state=state(0),
        instruction=INSTRUCTION,
        session="s",
        deadline_ms=None,
        adapter=None,
        options=None,
    )
    return frame_bytes(wire.encode(message))


def _openpi_observation(frames: dict[str, Array]) -> dict[str, Any]:
    from openpi_client import image_tools  # optional: installed with the development tools

    images = {f"observation/{n}": image_tools.resize_with_pad(frame, _SIDE, _SIDE) for n, frame in frames.items()}
    return {**images, "observation/state": state(0), "prompt": INSTRUCTION}


def _has_openpi() -> bool:
    import importlib.util

    return importlib.util.find_spec("openpi_client") is not None


def _preparations(frames: dict[str, Array]) -> list[Contender]:
    contract = _contract(tuple(frames))
    found = [
        Contender(name=f"roboserve client, {codec}", once=lambda codec=codec: _ours(frames, contract, codec))  # type: ignore[misc]
        for codec in CODECS
    ]
    if _has_openpi():
        from openpi_client import msgpack_numpy

        packer = msgpack_numpy.Packer()
        found.append(Contender(name=OPENPI, once=lambda: frame_bytes(packer.pack(_openpi_observation(frames)))))
    return found


@contextlib.contextmanager
def _round_trips(frames: dict[str, Array]) -> Iterator[list[Contender]]:
    """Both clients, whole: ours against our application, openpi's against an openpi-style server, both unproxied."""
    config = {"interface": {"cameras": list(frames)}}
    contract = _contract(tuple(frames))
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(baseline("app", ZERO, config))
        client = stack.enter_context(PolicyClient(f"ws://127.0.0.1:{port}/"))

        def act(codec: str) -> int:
            images = fit_images(client.contract, frames, codec=codec)
            client.act(images=images, state=state(0), instruction=INSTRUCTION, session="s")
            return sizes[codec]

        sizes = {codec: _ours(frames, contract, codec) for codec in CODECS}
        found = [
            Contender(name=f"roboserve client, {codec}", once=lambda codec=codec: act(codec))  # type: ignore[misc]
            for codec in CODECS
        ]
        if _has_openpi():
            from openpi_client import msgpack_numpy
            from openpi_client.websocket_client_policy import WebsocketClientPolicy

            stock = WebsocketClientPolicy("127.0.0.1", stack.enter_context(baseline("openpi", ZERO, config)))
            size = frame_bytes(msgpack_numpy.packb(_openpi_observation(frames)))

            def infer() -> int:
                stock.infer(_openpi_observation(frames))
                return size

            found.append(Contender(name=OPENPI, once=infer))
        yield found


def _compare(
    screen: Console, journal: results.Journal, options: argparse.Namespace, title: str, found: list[Contender]
) -> None:
    with results.progress(screen) as bar:
        task = bar.add_task(title, total=options.rounds * len(found))
        for contender in turns(found, options.rounds, random.Random(options.seed)):
            contender.measure(options.repeats)
            bar.advance(task)
    reference = found[-1]  # openpi-client where it is installed, else our raw
    rows = []
    for contender in found:
        summary = summarize(contender.milliseconds)
        cpu_ratio, byte_ratio = contender.cpu_ms / reference.cpu_ms, contender.wire_bytes / reference.wire_bytes
        journal.write(
            {
                "case": title,
                "contender": contender.name,
                "reference": reference.name,
                "wire_bytes": contender.wire_bytes,
                "cpu_ms": round(contender.cpu_ms, 4),
                "wall_ms": summary.to_map(),
                "cpu_ratio": round(cpu_ratio, 3),
                "byte_ratio": round(byte_ratio, 4),
            }
        )
        size = f"{contender.wire_bytes / 1e3:.1f}"
        times = (f"{value:.2f}" for value in (contender.cpu_ms, summary.p50, summary.p99))
        rows.append((contender.name, f"{cpu_ratio:.2f}", f"{byte_ratio:.3f}", size, *times))
    columns = ("client", "CPU ratio", "bytes ratio", "kB on the wire", "CPU ms", "p50 ms", "p99")
    results.print_table(screen, f"{title}; ratio to: {reference.name}", columns, rows)


def _steps(
    screen: Console, journal: results.Journal, options: argparse.Namespace, sizes: dict[str, tuple[int, int]]
) -> None:
    """The parts of the preparation, each alone, for one camera."""
    small = picture(_SIDE, _SIDE, options.seed)
    frames = {name: picture(*size, options.seed) for name, size in sizes.items() if size != (_SIDE, _SIDE)}
    resize = [
        Contender(name=f"resize {name} to {_SIDE}", once=lambda frame=frame: _resized(frame))  # type: ignore[misc]
        for name, frame in frames.items()
    ]
    encode = [
        Contender(name=f"encode {_SIDE} {codec}", once=lambda codec=codec: _encoded(small, codec))  # type: ignore[misc]
        for codec in CODECS
    ]
    found = resize + encode
    for contender in turns(found, options.rounds, random.Random(options.seed)):
        contender.measure(options.repeats)
    rows = []
    for contender in found:
        summary = summarize(contender.milliseconds)
        journal.write({"case": "steps", "contender": contender.name, "wall_ms": summary.to_map()})
        rows.append((contender.name, f"{contender.cpu_ms:.2f}", f"{summary.p50:.2f}", f"{summary.p99:.2f}"))
    results.print_table(screen, "steps of the preparation, one camera", ("step", "CPU ms", "p50 ms", "p99"), rows)


def _resized(frame: Array) -> int:
    return resize_with_pad(frame, _SIDE, _SIDE).nbytes


def _encoded(frame: Array, codec: str) -> int:
    image = encode_image(frame, codec)
    return len(image) if isinstance(image, bytes) else image.nbytes


if __name__ == "__main__":
    sys.exit(main())
