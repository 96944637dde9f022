"""A 50 Hz control loop against a policy that takes 200 ms: are ticks on time, and does any wait?

The robot has a 640x480 camera, which the link resizes and encodes while the loop runs.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.support import platforms, results
from benchmarks.support.processes import our_platform
from clients.contract import RobotInterface, Vector
from robot_client.link import LinkConfig, PolicyLink
from robot_client.loop import EpisodeConfig, run_episode
from robot_client.punctuality import prefer_punctuality
from robot_client.robot import RobotObservation

_RATE_HZ = 50.0
_CHUNK = {"chunk_length": 32, "execute": 16, "control_hz": _RATE_HZ, "state_size": 8, "action_size": 4}
POLICY = "models.policies.scripted:SlowPolicy"


class CameraRobot:
    """A robot whose sensors cost what a camera's frame costs to copy, and whose motors cost nothing."""

    def __init__(self) -> None:
        names = tuple(f"s{index}" for index in range(8))
        state = Vector(names, ("1",) * 8, ("absolute",) * 8, (-1e6,) * 8, (1e6,) * 8)
        moves = tuple(f"a{index}" for index in range(4))
        action = Vector(moves, ("1",) * 4, ("delta",) * 4, (-1.0,) * 4, (1.0,) * 4)
        self.interface = RobotInterface(cameras=("front",), state=state, action=action, control_hz=_RATE_HZ)
        self._frame = np.linspace(0, 255, 640 * 480 * 3).astype(np.uint8).reshape(480, 640, 3)
        self._state = np.zeros(8, np.float32)

    def reset(self, seed: int | None) -> None:
        """Start nowhere in particular."""

    def observe(self) -> RobotObservation:
        """Return a copy of the frame, as a camera driver hands it over."""
        return RobotObservation(images={"front": self._frame.copy()}, state=self._state)

    def act(self, action: np.ndarray[Any, Any]) -> None:
        """Take any command."""

    def finished(self) -> bool | None:
        """Go on until the time is up."""
        return None


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = results.parser("control_loop", str(__doc__))
    parser.add_argument("--seconds", type=float, default=30.0, help="of each episode")
    parser.add_argument("--forward-ms", type=float, default=200.0, help="what the policy takes")
    options = parser.parse_args(argv)
    if options.quick:
        options.seconds = 2.0
    screen = results.console()
    journal = results.Journal.open("control_loop", options)
    results.print_machine(screen, journal.common)
    config = {"base_ms": options.forward_ms, "per_item_ms": 0.0, "interface": _CHUNK}
    rows = []
    with screen.status("starting the platform"), our_platform([platforms.application("slow", POLICY, config)]) as port:
        for codec in ("jpeg", "raw"):
            report = _episode(f"ws://127.0.0.1:{port}/policy/slow", codec, options.seconds)
            journal.write({"codec": codec, **{name: asdict(report)[name] for name in _KEPT}})
            late, latency = report.lateness_ms, report.latency_ms
            rows.append(
                (
                    codec,
                    f"{report.within_2ms:.2%}",
                    f"{late['p50']:.3f} / {late['p99']:.3f} / {late['max']:.2f}",
                    str(report.missed_ticks),
                    f"{report.rate_hz:.2f}",
                    f"{latency['p50']:.0f} / {latency['p99']:.0f}",
                    str(sum(count for reason, count in report.holds.items() if reason != "waiting")),
                )
            )
    columns = ("codec", "within 2 ms", "late p50/p99/max ms", "missed ticks", "Hz", "act p50/p99 ms", "holds")
    results.print_table(screen, f"50 Hz loop, {options.forward_ms:g} ms policy", columns, rows)
    return 0


_KEPT = ("ticks", "missed_ticks", "rate_hz", "within_2ms", "lateness_ms", "latency_ms", "holds", "requests")


def _episode(server: str, codec: str, seconds: float) -> Any:
    robot = CameraRobot()
    prefer_punctuality()
    with PolicyLink(LinkConfig(server, codec=codec), robot.interface) as link:
        link.wait_ready(30.0)
        return run_episode(robot, link, EpisodeConfig(instruction="go", max_seconds=seconds, seed=0))


if __name__ == "__main__":
    raise SystemExit(main())
