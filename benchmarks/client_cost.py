"""What an observation costs the robot: CPU to resize, encode and pack it, and bytes on the wire, by codec and cameras.

The baseline is openpi-client's way with the same frames: resize_with_pad, then raw arrays in msgpack-numpy.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from openpi_client import image_tools, msgpack_numpy

from benchmarks.support import results
from benchmarks.support.stats import summarize
from clients import wire
from clients.images import encode_image, resize_with_pad

if TYPE_CHECKING:
    from collections.abc import Callable

_SIDE = 224
BASELINE = "openpi-client, raw"


def frame(seed: int) -> np.ndarray[Any, Any]:
    """Return a 640x480 frame with smooth shades and some texture, as cameras give."""
    y, x = np.mgrid[0:480, 0:640]
    shades = np.stack([x * 255 // 640, y * 255 // 480, (x + y) * 255 // 1120], axis=2)
    noise = np.random.default_rng(seed).integers(-8, 9, shades.shape)
    return np.clip(shades + noise, 0, 255).astype(np.uint8)


def ours(frames: list[np.ndarray[Any, Any]], codec: str) -> bytes:
    """Pack an observation as our client does."""
    images = {
        f"camera{index}": encode_image(resize_with_pad(item, _SIDE, _SIDE), codec) for index, item in enumerate(frames)
    }
    observation = {"images": images, "state": np.zeros(32, np.float32), "instruction": "open the drawer"}
    return wire.encode(
        {"type": "act", "request_id": "0" * 32, "session": "s", "observation": observation, "options": {}}
    )


def openpi(frames: list[np.ndarray[Any, Any]]) -> bytes:
    """Pack an observation as openpi's examples do."""
    images = {
        f"observation/camera{index}": image_tools.resize_with_pad(item, _SIDE, _SIDE)
        for index, item in enumerate(frames)
    }
    packed: bytes = msgpack_numpy.Packer().pack(
        {**images, "observation/state": np.zeros(32, np.float32), "prompt": "open the drawer"}
    )
    return packed


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = results.parser("client_cost", str(__doc__))
    parser.add_argument("--rounds", type=int, default=300, help="observations of each kind")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds = 10
    screen = results.console()
    journal = results.Journal.open("client_cost", options)
    results.print_machine(screen, journal.common)
    for cameras in (1, 2):
        frames = [frame(options.seed + index) for index in range(cameras)]
        _report(screen, journal, cameras, _measure(_makers(frames), options.rounds))
    return 0


def _makers(frames: list[np.ndarray[Any, Any]]) -> dict[str, Callable[[], bytes]]:
    made: dict[str, Callable[[], bytes]] = {
        f"ours, {codec}": functools.partial(ours, frames, codec) for codec in ("jpeg", "png", "raw")
    }
    return {**made, BASELINE: functools.partial(openpi, frames)}


def _measure(makers: dict[str, Callable[[], bytes]], rounds: int) -> dict[str, tuple[list[float], int]]:
    """Take turns, so that drift of the machine hits all alike; CPU time of this thread, ms."""
    found: dict[str, tuple[list[float], int]] = {name: ([], len(make())) for name, make in makers.items()}
    for _ in range(rounds):
        for name, make in makers.items():
            started = time.thread_time()
            make()
            found[name][0].append((time.thread_time() - started) * 1e3)
    return found


def _report(screen: Any, journal: results.Journal, cameras: int, found: dict[str, tuple[list[float], int]]) -> None:
    base_ms, base_bytes = summarize(found[BASELINE][0]).p50, found[BASELINE][1]
    rows = []
    for name, (times, size) in found.items():
        summary = summarize(times)
        journal.write({"contender": name, "cameras": cameras, "bytes": size, "cpu_ms": summary.to_map()})
        cells = (f"{summary.p50:.2f}", f"{summary.p99:.2f}", f"{summary.p50 / base_ms:.2f}", f"{size / 1e3:.1f}")
        rows.append((name, *cells, f"{size / base_bytes:.3f}"))
    columns = ("client", "CPU p50 ms", "p99", "ratio", "kB", "ratio")
    results.print_table(screen, f"{cameras} camera(s), 640x480 to {_SIDE}x{_SIDE}", columns, rows)


if __name__ == "__main__":
    raise SystemExit(main())
