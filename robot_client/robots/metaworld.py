"""A simulated Sawyer arm in one MetaWorld v3 task, as a robot.

Needs the extra `sim` (metaworld, mujoco). Frames are rendered without shadows, reflections and multisampling, which
costs a tenth of MuJoCo's default look; a run on a machine without a display uses EGL unless MUJOCO_GL says otherwise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Sequence, Tuple

import numpy as np

from clients.contract import RobotInterface, Vector
from clients.errors import RoboserveError
from robot_client.robot import RobotObservation
from robot_client.robots.metaworld_tasks import find_task

if TYPE_CHECKING:
    from robot_client.robots.metaworld_task import MetaWorldTask

Array = np.ndarray[Any, Any]

CAMERA = "front"
CONTROL_HZ = 20.0
MAX_STEPS = 200
_UNSEEN = ("head", "screen", "torso", "pedestal", "controller_box", "right_arm_base_link", "right_l0", "right_l1")
"""Bodies of the arm that lie outside the camera's square view: more than half of the scene's triangles."""
_LOOK_AT, _DISTANCE, _AZIMUTH, _ELEVATION = (-0.03, 0.68, 0.12), 1.03, 135.0, -40.0

INTERFACE = RobotInterface(
    cameras=(CAMERA,),
    state=Vector(
        names=("hand_x", "hand_y", "hand_z", "gripper_opening"),
        units=("m", "m", "m", "fraction"),
        kinds=("absolute", "absolute", "absolute", "absolute"),
        low=(-0.525, 0.348, -0.0525, 0.0),
        high=(0.525, 1.025, 0.7, 1.0),
    ),
    action=Vector(
        names=("delta_x", "delta_y", "delta_z", "gripper"),
        units=("cm", "cm", "cm", "effort"),
        kinds=("delta", "delta", "delta", "absolute"),
        low=(-1.0, -1.0, -1.0, -1.0),
        high=(1.0, 1.0, 1.0, 1.0),
    ),
    control_hz=CONTROL_HZ,
)
"""Action: how far the hand's target moves in one step (1 is the simulator's largest step, 1 cm), and the gripper's
effort, -1 (open) to 1 (closed)."""


@dataclass(frozen=True)
class Decoration:
    """A thing that is drawn and touches nothing.

    Attributes:
        shape: a MuJoCo geometry type (`mujoco.mjtGeom`) that three sizes describe.
        size: its half sizes or radii, m, as that type has them; `position`: of its centre, m.
        turn: angle about the vertical, rad; `colour`: red, green, blue and opacity, 0 to 1.
    """

    shape: int
    size: Tuple[float, float, float]
    position: Tuple[float, float, float]
    turn: float
    colour: Tuple[float, float, float, float]


@dataclass(frozen=True)
class Simulation:
    """What draws a robot's scene, for those who change its looks: MuJoCo's model, data, renderer and free camera."""

    model: Any
    data: Any
    renderer: Any
    camera: Any


class MetaWorldRobot:
    """One task of MetaWorld v3; a seed draws the scene (object and goal positions), and the same seed the same scene.

    One `act` is one simulator step whatever the wall clock does, so that an episode does not depend on the machine.

    Args:
        task: a name of `metaworld_tasks.TASKS`.
        image_size: (height, width) of the camera image in pixels.
        max_steps: steps after which the episode ends without success.

    Raises:
        RoboserveError: `not_found` for an unknown task, `invalid_request` for a size or limit below 1, `unavailable`
            where the simulator is not installed.
    """

    interface: RobotInterface = INTERFACE

    def __init__(self, task: str, *, image_size: Tuple[int, int] = (224, 224), max_steps: int = MAX_STEPS) -> None:
        if max_steps < 1 or min(image_size) < 1:
            raise RoboserveError(
                "invalid_request", f"max_steps {max_steps} and image_size {image_size} must be 1 or more"
            )
        self.task: MetaWorldTask = find_task(task)
        self._max_steps = max_steps
        self._env = _make_environment(self.task)
        self._camera = _dress(self._env)
        self._image_size = image_size
        self._made_renderer: Optional[Any] = None
        self._scene: Optional[Array] = None
        self._decorations: Tuple[Decoration, ...] = ()
        self._steps = 0
        self._success = False
        self._outcome = (0.0, False)

    @property
    def instruction(self) -> str:
        """The canonical wording of the task."""
        return self.task.instruction

    @property
    def privileged_observation(self) -> Array:
        """The simulator's own observation, float64 (39,), with object and goal positions: no served policy sees it."""
        return self._require_scene().copy()

    @property
    def fingertips(self) -> Array:
        """The point between the tips of the fingers, float64 (3,), m."""
        self._require_scene()
        return np.asarray(self._env.tcp_center, dtype=np.float64)

    @property
    def simulation(self) -> Simulation:
        """What draws the scene; its looks may be changed, its physics may not."""
        return Simulation(model=self._env.model, data=self._env.data, renderer=self._renderer, camera=self._camera)

    @property
    def outcome(self) -> Tuple[float, bool]:
        """The simulator's own dense reward for the latest action, and whether the task is solved now: never served."""
        return self._outcome

    def reset(self, seed: Optional[int] = None) -> None:
        """Draw the scene from `seed` (None: from fresh entropy) and put the hand at its start."""
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        self._env.seed(int(seed))
        self._scene = self._env.reset()[0]
        self._steps, self._success, self._outcome = 0, False, (0.0, False)

    def observe(self) -> RobotObservation:
        """Render the camera and read hand position (m) and gripper opening (0 closed to 1 open)."""
        return RobotObservation(images={CAMERA: self._render()}, state=self.feel())

    def feel(self) -> Array:
        """Read hand position (m) and gripper opening without rendering, float32 (4,)."""
        return np.asarray(self._require_scene()[:4], dtype=np.float32)

    def act(self, action: Array) -> None:
        """Play one action, float32 (4,); values beyond [-1, 1] are cut to it.

        Raises:
            RoboserveError: `invalid_request` before the first reset or for another shape or a value that is not finite.
        """
        self._require_scene()
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise RoboserveError("invalid_request", f"action: shape {action.shape}, needs 4 finite values")
        self._scene, reward, _, _, info = self._env.step(np.clip(action, -1.0, 1.0))
        self._steps += 1
        self._outcome = (float(reward), float(info["success"]) > 0.0)
        self._success = self._success or self._outcome[1]

    def decorate(self, decorations: Sequence[Decoration]) -> None:
        """Draw these things from now on, and no others that were asked for before."""
        self._decorations = tuple(decorations)

    def finished(self) -> Optional[bool]:
        """Return True once the task was solved, False when the steps ran out, None before."""
        if self._success:
            return True
        return False if self._steps >= self._max_steps else None

    def close(self) -> None:
        """Release the renderer and the simulator; the robot cannot be used after it."""
        if self._made_renderer is not None:
            self._made_renderer.close()
        self._env.close()

    def _require_scene(self) -> Array:
        if self._scene is None:
            raise RoboserveError("invalid_request", "robot: reset must come before the first observation or action")
        return self._scene

    @property
    def _renderer(self) -> Any:
        """Made for the first picture: it takes 150 MB, and who looks at the state alone needs none."""
        import mujoco

        if self._made_renderer is None:
            height, width = self._image_size
            self._made_renderer = mujoco.Renderer(self._env.model, height=height, width=width)
        return self._made_renderer

    def _render(self) -> Array:
        import mujoco

        self._renderer.update_scene(self._env.data, self._camera)
        for decoration in self._decorations:
            _draw(self._renderer.scene, decoration)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return np.array(self._renderer.render(), dtype=np.uint8)


def _draw(scene: Any, thing: Decoration) -> None:
    import mujoco

    turn = np.array([[np.cos(thing.turn), -np.sin(thing.turn), 0.0], [np.sin(thing.turn), np.cos(thing.turn), 0.0]])
    pose = np.vstack([turn, [0.0, 0.0, 1.0]]).ravel()
    drawn = scene.geoms[scene.ngeom]
    colour = np.array(thing.colour, dtype=np.float32)
    mujoco.mjv_initGeom(drawn, thing.shape, np.array(thing.size), np.array(thing.position), pose, colour)
    scene.ngeom += 1


def _make_environment(task: MetaWorldTask) -> Any:
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        from metaworld import ALL_V3_ENVIRONMENTS  # type: ignore[attr-defined,unused-ignore]
    except ImportError as error:
        raise RoboserveError("unavailable", "robot: MetaWorld is not installed; install the extra `sim`") from error
    env = ALL_V3_ENVIRONMENTS[task.environment]()
    # the simulator has no public way to draw a fresh scene from a seed of ours
    env._freeze_rand_vec = False  # noqa: SLF001
    env.seeded_rand_vec = True
    env._set_task_called = True  # noqa: SLF001
    env._partially_observable = False  # noqa: SLF001
    # the space that observations are clipped to was cached while the goal was hidden, and would clip the goal to zero
    env.__dict__.pop("sawyer_observation_space", None)
    env.max_path_length = 1_000_000
    return env


def _dress(env: Any) -> Any:
    """Take what no camera shall see out of the scene, and return the camera."""
    import mujoco

    for body in _UNSEEN:
        geoms = env.model.geom_bodyid == env.model.body(body).id
        env.model.geom_matid[geoms] = -1  # a material would overrule the colour
        env.model.geom_rgba[geoms, 3] = 0.0
    env.model.vis.quality.offsamples = 0  # read when the renderer makes its frame buffer
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = _LOOK_AT
    camera.distance, camera.azimuth, camera.elevation = _DISTANCE, _AZIMUTH, _ELEVATION
    return camera
