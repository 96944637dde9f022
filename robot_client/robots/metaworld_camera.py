"""The simulated camera as a pinhole: intrinsics and extrinsics, for whoever projects points of the world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Tuple

import numpy as np

if TYPE_CHECKING:
    from robot_client.robots.metaworld import Simulation

Array = np.ndarray[Any, Any]


def camera_matrices(simulation: Simulation, *, width: int, height: int) -> Tuple[Array, Array]:
    """Return the matrices of the simulation's free camera as it stands now.

    A free camera looks at its point from a distance, turned by azimuth and raised by elevation; its vertical field of
    view is the model's (MuJoCo's documentation, "Abstract visualization").

    Args:
        width, height: of the image, pixels.

    Returns:
        intrinsics float64 (3, 3), pixels; extrinsics float64 (4, 4), world to camera, m, with axes x right, y down, z
        into the scene.
    """
    camera = simulation.camera
    azimuth, elevation = np.deg2rad(camera.azimuth), np.deg2rad(camera.elevation)
    forward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    turn = np.stack([right, np.cross(forward, right), forward])
    position = np.asarray(camera.lookat) - camera.distance * forward
    focal = 0.5 * height / np.tan(np.deg2rad(simulation.model.vis.global_.fovy) / 2)
    intrinsics = np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    extrinsics = np.eye(4)
    extrinsics[:3, :3], extrinsics[:3, 3] = turn, -turn @ position
    return intrinsics, extrinsics
