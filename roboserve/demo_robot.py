"""One process of the demo: a simulated robot that works through its share of the tasks."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robot_client.subscribers.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from robot_client.loop import Episode
    from robot_client.records import EpisodeInfo, EpisodeReport, TickRecord
    from robot_client.robot import RobotObservation
    from robot_client.subscribers import Subscriber
    from robot_client.subscribers.reward_stream import RewardStreamConfig

_FRAMES_WAITING = 512
_JUDGED_HZ = 10.0
"""The rate of the rollouts that the embedded reward model learned from."""
_PLAN_S = 20.0
_JUDGE_S = 10.0
"""The reward model yields the cores to the policy, so on a busy machine a value may take seconds."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Episodes of one task: one for each seed."""

    task: str
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a robot tells the demo: `success` is None until the episode ended, `progress` without a reward model."""

    task: str
    seed: int
    ended: str | None = None
    success: bool | None = None
    rate_hz: float = 0.0
    latency_p50_ms: float = 0.0
    progress: float | None = None
    error: str | None = None


class EpisodeVideo:
    """Subscriber that films every tick into `video.mp4` of the episode's folder, from a thread of its own."""

    needs_observations = True

    def __init__(self, folder_of: Any) -> None:
        self._folder_of = folder_of
        self._worker: Worker | None = None
        self._encoder: Any = None
        self._camera = ""
        self._rate_hz = 0.0

    def on_episode_start(self, info: EpisodeInfo) -> None:
        """Remember what to film; the file is made with the first frame, whose size it takes."""
        self._camera, self._rate_hz = info.interface.cameras[0], info.rate_hz
        self._worker = Worker(self._add, name="roboserve-demo-video", capacity=_FRAMES_WAITING)

    def on_step(self, record: TickRecord, observation: RobotObservation | None) -> None:
        """Hand a frame to the encoder's thread."""
        del record
        if observation is not None and self._worker is not None:
            self._worker.put(observation.images[self._camera])

    def on_episode_end(self, report: EpisodeReport) -> None:
        """Finish the file."""
        del report
        if self._worker is not None:
            self._worker.finish()
        if self._encoder is not None:
            self._encoder.close()
        self._worker = self._encoder = None

    def _add(self, image: Any) -> None:
        if self._encoder is None:
            from robot_client.video import VideoEncoder

            path = self._folder_of() / "video.mp4"
            self._encoder = VideoEncoder(path, fps=self._rate_hz, size=image.shape[:2])
        self._encoder.add(image)


@dataclass(frozen=True, kw_only=True)
class Services:
    """Whom the robots talk to.

    Attributes:
        server: websocket address of the platform.
        reward: name of the reward model that watches; None for none.
        path: name of the path predictor that is shown the first frame; None for none.
    """

    server: str
    reward: str | None = None
    path: str | None = None


def drive(services: Services, folder: Path, jobs: Any, told: Any) -> None:
    """Work through jobs until there are none left; runs in a process of its own.

    Args:
        services: whom to talk to.
        folder: where each episode gets its folder.
        jobs: queue of `Job`, None at its end.
        told: queue that gets a `Progress` before and after every episode.
    """
    interrupted: list[Episode] = []

    def stop(_signal: int, _frame: Any) -> None:
        for episode in interrupted:
            episode.interrupt()
        raise SystemExit(0) if not interrupted else KeyboardInterrupt

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the demo decides when its robots stop
    signal.signal(signal.SIGTERM, stop)
    while (job := jobs.get()) is not None:
        try:
            _work(services, folder, job, told, interrupted)
        except KeyboardInterrupt:
            return
        except Exception as error:  # noqa: BLE001
            told.put(Progress(task=job.task, seed=job.seeds[0], error=f"{type(error).__name__}: {error}"))


def _work(services: Services, folder: Path, job: Job, told: Any, running: list[Episode]) -> None:
    from robot_client.link import LinkConfig, PolicyLink
    from robot_client.loop import Episode, EpisodeConfig
    from robot_client.punctuality import prefer_punctuality
    from robot_client.robots.metaworld import CONTROL_HZ, MAX_STEPS, MetaWorldRobot
    from robot_client.subscribers.path_ask import PathAsked
    from robot_client.subscribers.reward_stream import RewardStream
    from robot_client.subscribers.timing_log import TimingLog

    robot = MetaWorldRobot(job.task)
    log = TimingLog(folder / job.task)
    subscribers: list[Subscriber] = [log, EpisodeVideo(lambda: log.folder)]
    stream = asked = None
    if services.reward is not None:
        stream = RewardStream(_reward_config(services.server, services.reward), lambda: log.folder)
        subscribers.append(stream)
    if services.path is not None:
        asked = PathAsked(services.server, lambda: log.folder, model=services.path, timeout_s=_PLAN_S)
        subscribers.append(asked)
    prefer_punctuality()
    try:
        with PolicyLink(LinkConfig(services.server), robot.interface) as link:
            for seed in job.seeds:
                told.put(Progress(task=job.task, seed=seed))
                limit_s = MAX_STEPS / CONTROL_HZ + 1.0
                config = EpisodeConfig(instruction=robot.instruction, max_seconds=limit_s, task=job.task, seed=seed)
                episode = Episode(robot, link, config, subscribers)
                running[:] = [episode]
                report = episode.run()
                running.clear()
                told.put(_outcome(report, seed, None if stream is None else stream.latest))
    finally:
        for watcher in (stream, asked):
            if watcher is not None:
                watcher.close()
        robot.close()


def _reward_config(server: str, reward: str) -> RewardStreamConfig:
    from robot_client.subscribers.reward_stream import RewardStreamConfig

    # Raw: the frames are small by then, the server is this machine, and encoding would cost the robot's process.
    return RewardStreamConfig(server, model=reward, rate_hz=_JUDGED_HZ, codec="raw", timeout_s=_JUDGE_S)


def _outcome(report: EpisodeReport, seed: int, progress: float | None) -> Progress:
    return Progress(
        task=report.info.task,
        seed=seed,
        ended=report.ended,
        success=bool(report.success),
        rate_hz=report.rate_hz,
        latency_p50_ms=report.latency_ms.get("p50", 0.0),
        progress=progress,
    )
