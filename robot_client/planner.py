"""A path for an episode: asked for on the first frame, or anew, and laid over every image that the policy then sees.

HAMSTER (arXiv 2502.05485) steers a policy so: a vision-language model draws the gripper's path, and the policy follows
the drawing. The service draws it, on black and at the policy's size, for drawing needs code and styles that training
shares; here it is only laid over each image, which is what drawing on that image would give, to the pixel.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Tuple

import numpy as np

from clients.errors import RoboserveError
from clients.images import resize_with_pad
from clients.path import PathClient, one_path
from clients.path_messages import PathAsk, PathQuery, laid_over

if TYPE_CHECKING:
    from clients.contract import PolicyContract
    from clients.reward_messages import ModelIdentity
    from robot_client.robot import RobotObservation

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PlannerConfig:
    """Where an episode's path comes from.

    Attributes:
        server: the path service's address, ".../path/NAME".
        api_key: a key for paths; a robot's own covers its policy only.
        camera: whose image is planned in and drawn on; None is the policy's first.
        style: of the drawing: "policy" or "demo".
        view: how the model sees the frame; None leaves it to the service.
        timeout_s: how long a path is waited for.
        every_s: how often a new path is asked for while the robot moves; None keeps the first to the end.
    """

    server: str
    api_key: Optional[str] = field(default=None, repr=False)
    camera: Optional[str] = None
    style: str = "policy"
    view: Optional[str] = None
    timeout_s: float = 60.0
    every_s: Optional[float] = None

    def __post_init__(self) -> None:
        for name in ("timeout_s", "every_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RoboserveError("invalid_request", f"planner {name}: {value}, must be above 0")


@dataclass(frozen=True)
class PlannedPath:
    """An episode's path.

    Attributes:
        camera: whose image it runs through.
        points: float64 (n, 2), 0 to 1 of that camera's own image.
        gripper_open: bool (n,), from each point on.
        issues: codes of what was odd about the answer.
        model, adapter: who drew it.
        latency_ms: from the first frame to the path.
        drawing: uint8 (h, w, 3), on black, of the size in which the policy sees the camera.
    """

    camera: str
    points: Array
    gripper_open: Array
    issues: Tuple[str, ...]
    model: ModelIdentity
    adapter: Optional[str]
    latency_ms: float
    drawing: Array = field(repr=False)

    def drawn_on(self, images: Mapping[str, Array]) -> Dict[str, Array]:
        """Return the images with the path on its camera's, which comes at the policy's size.

        An image that no policy could be shown passes as it is, and is refused where all are checked.
        """
        found = dict(images)
        image = found.get(self.camera)
        if image is not None and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            height, width = self.drawing.shape[:2]
            found[self.camera] = laid_over(resize_with_pad(image, height, width), self.drawing)
        return found

    def to_map(self) -> Dict[str, Any]:
        """Return plain values, for a report."""
        return {
            "camera": self.camera,
            "points": np.round(self.points, 6).tolist(),
            "gripper_open": self.gripper_open.tolist(),
            "issues": list(self.issues),
            "model": {**vars(self.model), "adapter": self.adapter},
            "latency_ms": round(self.latency_ms, 3),
        }


def plan_path(
    config: PlannerConfig, observation: RobotObservation, contract: PolicyContract, instruction: str
) -> PlannedPath:
    """Ask for the path through a frame; waits on the network, so it is not for the control loop's thread.

    Raises:
        RoboserveError: the service's refusal, `invalid_output` where its model drew no path, `unavailable`; or
            `contract_mismatch` where the policy or the robot has no such camera.
    """
    cameras = {camera.name: camera for camera in contract.cameras}
    name = config.camera or next(iter(cameras), "")
    if name not in cameras or name not in observation.images:
        known = ", ".join(sorted(set(cameras) & set(observation.images))) or "none"
        raise RoboserveError("contract_mismatch", f"planner camera: {name!r}; policy and robot share {known}")
    camera, started = cameras[name], time.monotonic()
    ask = PathAsk(view=config.view, draw=config.style, form="concat", canvas=(camera.height, camera.width))
    with PathClient(config.server, api_key=config.api_key, timeout_s=config.timeout_s) as client:
        replies = client.paths([PathQuery(observation.images[name], instruction)], ask)
    path = one_path(replies)
    if path.drawing is None or path.drawing.shape != (camera.height, camera.width, 3):
        raise RoboserveError("invalid_output", "drawing: the service sent none of the size that was asked for")
    return PlannedPath(
        camera=name,
        points=path.points,
        gripper_open=path.gripper_open,
        issues=tuple(issue.code for issue in path.issues),
        model=replies.model,
        adapter=replies.adapter,
        latency_ms=(time.monotonic() - started) * 1e3,
        drawing=path.drawing,
    )


class Replanning:
    """Asks for new paths in a thread of its own while the robot moves; until one comes the old one is followed.

    Args:
        plan: asks for a path through an observation; may wait, and may raise RoboserveError.
        follow: takes the path from now on; `note`: told (kind, message) of what came of each question.
    """

    def __init__(
        self,
        plan: Callable[[RobotObservation], PlannedPath],
        *,
        follow: Callable[[PlannedPath], None],
        note: Callable[[str, str], None],
    ) -> None:
        self._plan, self._follow, self._note = plan, follow, note
        self._asked = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def ask(self) -> None:
        """Ask about the next observation; safe from any thread."""
        self._asked.set()

    @property
    def wants(self) -> bool:
        """Whether an observation is waited for."""
        return self._asked.is_set() and not (self._thread is not None and self._thread.is_alive())

    def offer(self, observation: RobotObservation) -> None:
        """Hand over an observation, whose arrays must not be written to again; the question does not wait."""
        self._asked.clear()
        self._thread = threading.Thread(target=self._run, args=(observation,), name="roboserve-planner", daemon=True)
        self._thread.start()

    def _run(self, observation: RobotObservation) -> None:
        try:
            path = self._plan(observation)
        except RoboserveError as error:
            self._note("path_failed", error.message)
            return
        self._follow(path)
        self._note("path", f"{len(path.points)} points after {path.latency_ms:.0f} ms")
