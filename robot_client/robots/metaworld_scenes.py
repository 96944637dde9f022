"""Other looks for a simulated scene: colours, textures, lights, camera and things that lie about.

Physics stays as it is. Looks of the training split and of the held-out one share no texture pattern, no shape of things
that lie about and no hue, so that what was trained on the first can be judged on the second.
"""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, AbstractSet, Any, Dict, List, Sequence, Set, Tuple

import numpy as np

from clients.errors import RoboserveError
from robot_client.robots.metaworld import Decoration
from robot_client.robots.metaworld_textures import HELD_OUT_PATTERNS, TRAINING_PATTERNS, pattern, upload

if TYPE_CHECKING:
    from robot_client.robots.metaworld import MetaWorldRobot

Array = np.ndarray[Any, Any]

CELLS = ("colours", "textures", "lights", "camera", "distractors")
"""What can be varied, each on its own."""
SPLITS = ("training", "held_out")

_HUES: Dict[str, Tuple[Tuple[float, float], ...]] = {
    "training": ((0.0, 0.07), (0.2, 0.45), (0.62, 1.0)),
    "held_out": ((0.1, 0.17), (0.48, 0.59)),
}
"""Stretches of the circle of hues, red at 0 and 1."""
_PATTERNS = {"training": TRAINING_PATTERNS, "held_out": HELD_OUT_PATTERNS}
_SHAPES = {
    "training": ("mjGEOM_BOX", "mjGEOM_CYLINDER", "mjGEOM_SPHERE"),
    "held_out": ("mjGEOM_CAPSULE", "mjGEOM_ELLIPSOID"),
}
_COVERED = ("T_table", "T_floor", "T_wallmetal")
_SURFACES = ("basic_floor", "table_wood", "wall_metal")
_ARM = ("right_", "hand", "pedestal", "head", "screen", "torso", "controller_box", "mocap")
_FINGERS = ("leftpad", "rightpad", "leftclaw", "rightclaw")
_MIX = {"surface": 0.9, "arm": 0.5, "object": 0.7}
"""How far a colour goes from its own to a drawn one, at full strength."""
_AZIMUTH, _ELEVATION, _DISTANCE, _LOOK_AT = 8.0, 5.0, 0.06, 0.03
"""Largest changes of the camera at full strength: degrees, degrees, share, m."""
_TABLE = ((-0.35, 0.35), (0.42, 0.92))
_MOST_THINGS, _TRIES = 5, 20


class SceneLooks:
    """Changes how a robot's scene looks, and puts it back.

    Args:
        robot: its own looks are remembered here.
    """

    def __init__(self, robot: MetaWorldRobot) -> None:
        self._robot = robot
        model = robot.simulation.model
        light = model.vis.headlight
        self._arrays: List[Tuple[Any, Array]] = [
            (array, np.array(array))
            for array in (
                *(model.geom_rgba, model.mat_rgba, model.light_diffuse, model.light_dir),
                *(light.ambient, light.diffuse, robot.simulation.camera.lookat),
            )
        ]
        camera = robot.simulation.camera
        self._view = (camera.distance, camera.azimuth, camera.elevation)
        self._textures = {
            index: np.array(_pixels(model, index))
            for index in range(model.ntex)
            if model.texture(index).name in _COVERED
        }
        self._covered: Set[int] = set()

    def restore(self) -> None:
        """Put everything back as it was."""
        self._uncover(self._covered)
        self._covered = set()
        self._rewind()

    def _rewind(self) -> None:
        for array, original in self._arrays:
            array[:] = original
        camera = self._robot.simulation.camera
        camera.distance, camera.azimuth, camera.elevation = self._view
        self._robot.decorate(())

    def _uncover(self, textures: AbstractSet[int]) -> None:
        for index in textures:
            _pixels(self._robot.simulation.model, index)[:] = self._textures[index]
        upload(self._robot.simulation, sorted(textures))

    def randomise(
        self,
        random: np.random.Generator,
        *,
        cells: Sequence[str] = CELLS,
        strength: float = 1.0,
        split: str = "training",
    ) -> None:
        """Draw new looks, starting from the scene's own; call it after `reset`, since things are kept off objects.

        Args:
            cells: which of `CELLS` are varied.
            strength: 0 (nothing changes) to 1.
            split: one of `SPLITS`.

        Raises:
            RoboserveError: `invalid_request` for an unknown cell or split or a strength outside its range.
        """
        unknown = sorted(set(cells) - set(CELLS))
        if unknown or split not in SPLITS or not 0.0 <= strength <= 1.0:
            raise RoboserveError(
                "invalid_request",
                f"looks: cells {list(cells)} (known are {', '.join(CELLS)}), split {split!r} (known are "
                f"{', '.join(SPLITS)}), strength {strength:g} (0 to 1)",
            )
        self._rewind()
        if "textures" not in cells:
            self._uncover(self._covered)
            self._covered = set()
        change = {
            "colours": self._colours,
            "textures": self._cover,
            "lights": self._lights,
            "camera": self._camera,
            "distractors": self._distractors,
        }
        for number, cell in enumerate(CELLS):
            own = np.random.default_rng(
                [int(random.integers(2**32)), number]
            )  # a cell looks alike with and without others
            if cell in cells:
                change[cell](own, strength, split)

    def _colours(self, random: np.random.Generator, strength: float, split: str) -> None:
        model = self._robot.simulation.model
        for index in range(model.nmat):
            kind = "surface" if model.material(index).name in _SURFACES else "object"
            _mix(model.mat_rgba[index], _colour(random, split, pale=kind == "surface"), _MIX[kind] * strength)
        drawn: Dict[Tuple[Any, ...], Array] = {}
        for index in range(model.ngeom):
            body = model.body(model.geom_bodyid[index]).name
            if model.geom_matid[index] >= 0 or body in _FINGERS:
                continue
            kind = "arm" if body.startswith(_ARM) else "object"
            key = (kind, *np.round(model.geom_rgba[index], 3).tolist())
            if key not in drawn:
                drawn[key] = _colour(random, split)
            _mix(model.geom_rgba[index], drawn[key], _MIX[kind] * strength)

    def _cover(self, random: np.random.Generator, strength: float, split: str) -> None:
        model = self._robot.simulation.model
        covered: Set[int] = set()
        for index, original in self._textures.items():
            if random.random() < strength:
                kind = _PATTERNS[split][int(random.integers(len(_PATTERNS[split])))]
                colours = np.stack([_colour(random, split, pale=True)[:3] for _ in range(2)])
                _pixels(model, index)[:] = pattern(kind, random, original.shape[0], original.shape[1], colours)
                covered.add(index)
        self._uncover(self._covered - covered)
        upload(self._robot.simulation, sorted(covered))
        self._covered = covered

    def _lights(self, random: np.random.Generator, strength: float, split: str) -> None:
        del split  # brightness has no families
        model = self._robot.simulation.model
        model.vis.headlight.ambient[:] *= 1 + strength * random.uniform(-0.5, 0.4)
        model.vis.headlight.diffuse[:] *= 1 + strength * random.uniform(-0.5, 0.4)
        for index in range(model.nlight):
            tint = random.uniform(0.85, 1.15, 3) ** strength
            model.light_diffuse[index] *= tint * (1 + strength * random.uniform(-0.6, 0.6))
            turned = model.light_dir[index] + strength * random.normal(0.0, 0.25, 3)
            model.light_dir[index] = turned / np.linalg.norm(turned)

    def _camera(self, random: np.random.Generator, strength: float, split: str) -> None:
        del split  # nor has the camera's place
        camera = self._robot.simulation.camera
        camera.azimuth += strength * random.uniform(-_AZIMUTH, _AZIMUTH)
        camera.elevation += strength * random.uniform(-_ELEVATION, _ELEVATION)
        camera.distance *= 1 + strength * random.uniform(-_DISTANCE, _DISTANCE)
        camera.lookat[:] += strength * random.uniform(-_LOOK_AT, _LOOK_AT, 3)

    def _distractors(self, random: np.random.Generator, strength: float, split: str) -> None:
        import mujoco

        taken = self._taken()
        things: List[Decoration] = []
        for _ in range(int(random.integers(1, _MOST_THINGS + 1))):
            size = tuple(float(side) for side in random.uniform(0.012, 0.035, 3))
            place = self._free_place(random, taken, max(size))
            if place is None or random.random() > strength:
                continue
            shape = _SHAPES[split][int(random.integers(len(_SHAPES[split])))]
            taken.append((place, max(size)))
            things.append(
                Decoration(
                    shape=int(getattr(mujoco.mjtGeom, shape)),
                    size=(size[0], size[1], size[2]),
                    position=(place[0], place[1], size[2]),
                    turn=float(random.uniform(0.0, np.pi)),
                    colour=tuple(_colour(random, split).tolist()),  # type: ignore[arg-type,unused-ignore]
                )
            )
        self._robot.decorate(things)

    def _taken(self) -> List[Tuple[Array, float]]:
        """Return places (x, y) and radii, m, that the scene's objects and goals take up."""
        simulation = self._robot.simulation
        model, data = simulation.model, simulation.data
        found = []
        for index in range(model.ngeom):
            body = model.body(model.geom_bodyid[index]).name
            if body in ("world", "tablelink", "RetainingWall") or body.startswith(_ARM) or body in _FINGERS:
                continue
            found.append((np.array(data.geom_xpos[index][:2]), min(0.2, float(model.geom_rbound[index]))))
        goal = self._robot.privileged_observation[36:38]
        return [*found, (goal, 0.04), (self._robot.fingertips[:2], 0.05)]

    @staticmethod
    def _free_place(random: np.random.Generator, taken: Sequence[Tuple[Array, float]], radius: float) -> Any:
        for _ in range(_TRIES):
            place = np.array([random.uniform(*side) for side in _TABLE])
            if all(np.linalg.norm(place - other) > radius + reach + 0.01 for other, reach in taken):
                return place
        return None


def _pixels(model: Any, index: int) -> Array:
    """Return a texture as it lies in the model, uint8 (height, width, 3); writing to it changes it."""
    height, width = int(model.tex_height[index]), int(model.tex_width[index])
    start = int(model.tex_adr[index])
    return np.asarray(model.tex_data[start : start + height * width * 3]).reshape(height, width, 3)


def _colour(random: np.random.Generator, split: str, *, pale: bool = False) -> Array:
    """Return a colour of a split, float64 (4,), opaque; pale ones are those that large surfaces have."""
    stretches = _HUES[split]
    lengths = np.array([high - low for low, high in stretches])
    low, high = stretches[int(random.choice(len(stretches), p=lengths / lengths.sum()))]
    saturation = random.uniform(0.1, 0.6) if pale else random.uniform(0.4, 1.0)
    rgb = colorsys.hsv_to_rgb(random.uniform(low, high), saturation, random.uniform(0.3, 1.0))
    return np.array([*rgb, 1.0])


def _mix(colour: Array, other: Array, share: float) -> None:
    """Bring a colour nearer to another in place; what was see-through stays so."""
    colour[:3] = (1 - share) * colour[:3] + share * other[:3]
