"""`roboserve-robot`: run a robot on a served policy, or look at what a server offers."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Sequence

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from clients.contract import PolicyContract, Vector
    from robot_client.link import PolicyLink
    from robot_client.loop import EpisodeConfig
    from robot_client.planner import PlannerConfig
    from robot_client.records import EpisodeReport
    from robot_client.robot import Robot
    from robot_client.subscribers import Subscriber

_KEY_VARIABLE = "ROBOSERVE_API_KEY"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line.

    Returns:
        exit status: 0; 1 for a refusal or an episode that the server ended; 2 for wrong arguments; 130 interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments) if arguments.command == "run" else _check(arguments)
    except RoboserveError as error:
        sys.stderr.write(f"roboserve-robot: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("roboserve-robot: interrupted\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="roboserve-robot", description="Drive a robot with a served policy.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run episodes", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    check = commands.add_parser("check", help="print a policy's contract, and where a robot does not fit it")
    for command in (run, check):
        command.add_argument("--server", required=True, help="host:port, ws:// or wss:// address")
        command.add_argument("--policy", help="name of the policy; the server's default without it")
        command.add_argument(
            "--api-key-file", type=Path, help=f"file that holds the key; else the variable {_KEY_VARIABLE} is read"
        )
        command.add_argument("--task", help="the robot's task, where it has several")
    check.add_argument("--robot", help="metaworld, pointmass or module:Class")
    run.add_argument("--robot", required=True, help="metaworld, pointmass or module:Class")
    _add_run_arguments(run)
    return parser


def _add_run_arguments(run: argparse.ArgumentParser) -> None:
    run.add_argument("--instruction", help="what the policy is told; the robot's own wording without it")
    run.add_argument("--mode", default="async", choices=("async", "blocking", "ensemble", "weighted", "rtc"))
    run.add_argument("--execute", type=int, help="rows of a chunk to play before the next takes over")
    run.add_argument("--codec", default="jpeg", choices=("jpeg", "png", "raw"), help="of images on the wire")
    run.add_argument("--quality", type=int, default=90, help="of JPEG")
    run.add_argument("--episodes", type=int, default=1)
    run.add_argument("--seed", type=int, default=0, help="of the first episode; each later one adds 1")
    run.add_argument("--max-seconds", type=float, default=30.0, help="end of an episode at the latest")
    run.add_argument("--deadline-ms", type=float, default=2000.0, help="age at which an answer is of no use")
    run.add_argument("--max-age-ms", type=float, help="oldest observation to act on; deadline and chunk without it")
    run.add_argument("--max-step", type=float, help="largest change of an absolute dimension from tick to tick")
    run.add_argument("--integration-steps", type=int, help="of the flow; the policy's default without it")
    run.add_argument("--on-reconnect", default="resume", choices=("resume", "stop"))
    run.add_argument("--record", type=Path, help="folder of a LeRobot v3 dataset to append to")
    run.add_argument("--record-failures", type=float, help="record only the last SECONDS of episodes that fail")
    run.add_argument("--log", type=Path, help="folder for timings, one folder an episode")
    run.add_argument("--reward", help="address of a reward model that watches as it happens; its curve goes to --log")
    run.add_argument("--planner", help="address of a path service: asked on the first frame, drawn on every image")
    run.add_argument("--planner-camera", help="whose image is planned in; the policy's first without it")
    run.add_argument("--planner-view", choices=("none", "center_crop", "pad", "stretch"), help="how it is shown there")
    run.add_argument("--planner-every", type=float, metavar="SECONDS", help="ask anew so often; once without it")
    run.add_argument("--planner-key-file", type=Path, help="file that holds a key for paths; --api-key-file without it")
    run.add_argument("--quiet", action="store_true", help="no progress, only the table")


def _api_key(file: Optional[Path]) -> Optional[str]:
    if file is None:
        return os.environ.get(_KEY_VARIABLE)
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RoboserveError("unauthenticated", f"--api-key-file: cannot be read: {error.strerror}") from error


def _check(arguments: argparse.Namespace) -> int:
    from clients.contract import mismatches
    from clients.policy import PolicyClient

    with PolicyClient(arguments.server, policy=arguments.policy, api_key=_api_key(arguments.api_key_file)) as client:
        sys.stdout.write(_describe(client.contract) + f"ping     {client.ping():.1f} ms\n")
        contract = client.contract
    if arguments.robot is None:
        return 0
    from robot_client.robots.registry import make_robot

    found = mismatches(contract, make_robot(arguments.robot, arguments.task).interface)
    for sentence in found:
        sys.stdout.write(f"MISMATCH {sentence}\n")
    if not found:
        sys.stdout.write(f"robot    {arguments.robot} fits\n")
    return 1 if found else 0


def _describe(contract: PolicyContract) -> str:
    cameras = ", ".join(f"{camera.name} {camera.height} x {camera.width}" for camera in contract.cameras) or "none"
    steps = f", {contract.integration_steps} integration steps" if contract.integration_steps else ""
    lines = [
        f"policy   {contract.model} revision {contract.revision} ({contract.content_hash[:12]})",
        f"cameras  {cameras}",
        *_describe_vector("state ", contract.state),
        *_describe_vector("action", contract.action),
        f"chunk    {contract.chunk_length} rows at {contract.control_hz:g} Hz, {contract.execute} to execute{steps}",
        f"supports {', '.join(contract.supports) or 'nothing optional'}",
        f"adapters {', '.join(contract.adapters) or 'none'}",
        f"limits   {', '.join(f'{name} {value}' for name, value in sorted(contract.limits.items()))}",
    ]
    return "\n".join(lines) + "\n"


def _describe_vector(noun: str, vector: Vector) -> List[str]:
    rows = zip(vector.names, vector.units, vector.kinds, vector.low, vector.high)
    return [
        f"{noun if index == 0 else '      '}   {name} ({unit}, {kind}) {low:g} to {high:g}"
        for index, (name, unit, kind, low, high) in enumerate(rows)
    ]


def _run(arguments: argparse.Namespace) -> int:
    from robot_client.link import LinkConfig, PolicyLink
    from robot_client.punctuality import prefer_punctuality
    from robot_client.robots.registry import make_robot
    from robot_client.subscribers.console import print_table

    link_config = LinkConfig(
        arguments.server,
        policy=arguments.policy,
        api_key=_api_key(arguments.api_key_file),
        codec=arguments.codec,
        quality=arguments.quality,
        deadline_s=arguments.deadline_ms / 1e3,
        integration_steps=arguments.integration_steps,
    )
    robot = make_robot(arguments.robot, arguments.task)
    prefer_punctuality()
    reports: List[EpisodeReport] = []
    with PolicyLink(link_config, robot.interface) as link:
        link.wait_ready(30.0)
        try:
            _episodes(arguments, robot, link, reports)
        finally:
            if reports:
                print_table(reports)
    return 1 if any(report.ended in ("refused", "server_lost") for report in reports) else 0


def _episodes(
    arguments: argparse.Namespace,
    robot: Robot,
    link: PolicyLink,
    reports: List[EpisodeReport],
) -> None:
    from robot_client.loop import run_episode

    subscribers = _subscribers(arguments)
    for number in range(arguments.episodes):
        config = _episode_config(arguments, robot, seed=arguments.seed + number)
        reports.append(run_episode(robot, link, config, subscribers))
        if reports[-1].ended in ("refused", "server_lost"):
            return


def _episode_config(arguments: argparse.Namespace, robot: Robot, *, seed: int) -> EpisodeConfig:
    from robot_client.action_queue import QueueConfig
    from robot_client.loop import EpisodeConfig
    from robot_client.safety import SafetyConfig

    instruction = arguments.instruction or getattr(robot, "instruction", None)
    if not instruction:
        raise RoboserveError("invalid_request", f"--instruction: robot {arguments.robot!r} has no wording of its own")
    max_age_s = None if arguments.max_age_ms is None else arguments.max_age_ms / 1e3
    return EpisodeConfig(
        instruction=instruction,
        max_seconds=arguments.max_seconds,
        task=arguments.task or arguments.robot,
        seed=seed,
        queue=QueueConfig(mode=arguments.mode, execute=arguments.execute, max_age_s=max_age_s),
        safety=SafetyConfig(max_step=arguments.max_step),
        on_reconnect=arguments.on_reconnect,
        planner=_planner(arguments),
    )


def _planner(arguments: argparse.Namespace) -> Optional[PlannerConfig]:
    from robot_client.planner import PlannerConfig

    if arguments.planner is None:
        return None
    return PlannerConfig(
        arguments.planner,
        api_key=_api_key(arguments.planner_key_file or arguments.api_key_file),
        camera=arguments.planner_camera,
        view=arguments.planner_view,
        every_s=arguments.planner_every,
    )


def _subscribers(arguments: argparse.Namespace) -> List[Subscriber]:
    from robot_client.subscribers.console import ConsoleView
    from robot_client.subscribers.recorder import DatasetRecorder
    from robot_client.subscribers.reward_stream import RewardStream, RewardStreamConfig
    from robot_client.subscribers.timing_log import TimingLog

    if arguments.reward is not None and arguments.log is None:
        raise RoboserveError("invalid_request", "--reward: the curve needs a folder, give --log too")
    subscribers: List[Subscriber] = []
    if not arguments.quiet:
        subscribers.append(ConsoleView())
    if arguments.log is not None:
        log = TimingLog(arguments.log)
        subscribers.append(log)
        if arguments.reward is not None:
            reward = RewardStreamConfig(arguments.reward, api_key=_api_key(arguments.api_key_file))
            subscribers.append(RewardStream(reward, lambda: log.folder))
    if arguments.record is not None:
        subscribers.append(DatasetRecorder(arguments.record, failures_last_s=arguments.record_failures))
    return subscribers
