"""Show an episode's first frame to a served path predictor, and write its path down; the control loop never waits.

The path steers nothing here: it is kept beside what the robot then did. `robot_client.planner` is for policies that
follow one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional

from clients.errors import RoboserveError
from clients.path import PathClient
from robot_client.subscribers.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from clients.images import Array
    from robot_client.records import EpisodeInfo, EpisodeReport, TickRecord
    from robot_client.robot import RobotObservation

FILE = "path.json"


class PathAsked:
    """Subscriber that shows the first frame to a path predictor and writes `path.json`.

    A server that is absent, lost or slow costs the episode its path, and the robot nothing.

    Args:
        server: websocket address of the platform, or of the predictor.
        model: name of the predictor; None where the address has its route already.
        folder_of: gives the folder of the running episode, as `TimingLog.folder` does.
        api_key: a key for paths.
        timeout_s: how long an answer is waited for at the episode's end.
    """

    needs_observations = True

    def __init__(
        self,
        server: str,
        folder_of: Callable[[], Optional[Path]],
        *,
        model: Optional[str] = None,
        api_key: Optional[str] = None,
        timeout_s: float = 30.0,
    ) -> None:
        self._server, self._model, self._api_key = server, model, api_key
        self._folder_of, self._timeout_s = folder_of, timeout_s
        self._client: Optional[PathClient] = None
        self._worker: Optional[Worker] = None
        self._instruction, self._camera = "", ""
        self._found: Dict[str, Any] = {}

    def on_episode_start(self, info: EpisodeInfo) -> None:
        """Remember what is to be done."""
        self._instruction, self._camera = info.instruction, info.interface.cameras[0]
        self._found = {}
        self._worker = Worker(self._ask, name="roboserve-path", capacity=1)

    def on_step(self, record: TickRecord, observation: Optional[RobotObservation]) -> None:
        """Hand over the first frame."""
        del record
        if observation is not None and self._worker is not None and not self._found:
            self._found = {"camera": self._camera, "instruction": self._instruction}
            self._worker.put(observation.images[self._camera])

    def on_episode_end(self, report: EpisodeReport) -> None:
        """Wait for the answer, and write it.

        Raises:
            OSError: it cannot be written.
        """
        del report
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.finish()
        folder = self._folder_of()
        if folder is not None and self._found:
            (folder / FILE).write_text(json.dumps(self._found) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _ask(self, image: Array) -> None:
        """Runs in the worker's thread."""
        try:
            if self._client is None:
                self._client = PathClient(
                    self._server, model=self._model, api_key=self._api_key, timeout_s=self._timeout_s
                )
            reply = self._client.path(image, self._instruction)
        except RoboserveError as error:
            self._found["fault"] = str(error)
            return
        contract = self._client.contract
        self._found.update(
            points=reply.points.round(4).tolist(),
            gripper_open=reply.gripper_open.tolist(),
            issues=[issue.code for issue in reply.issues],
            model=contract.model,
            revision=contract.revision,
        )
