"""Observations of a policy that is elsewhere, as vectors that become requests again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clients.policy import fit_images

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from clients.contract import Camera, PolicyContract
    from clients.images import WireImage

_BYTES_OF_A_CHARACTER = 4


class SentViews:
    """State, images and instruction as a vector, where a policy that is here has features; nothing is read from it.

    Args:
        contract: of the policy.
    """

    def __init__(self, contract: PolicyContract) -> None:
        self._contract = contract
        self._most = _BYTES_OF_A_CHARACTER * int(contract.limits["instruction_chars"])

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """Of the policy."""
        return self._contract.cameras

    @property
    def size(self) -> int:
        """Numbers of a vector: the state, a number for each byte of the images, and of the longest instruction."""
        return self._contract.state.size + sum(_bytes(camera) for camera in self.cameras) + self._most

    def encode(
        self, images: Mapping[str, NDArray[np.uint8]], state: NDArray[np.float32], instruction: str
    ) -> NDArray[np.float32]:
        """Return the vector of one observation, float32 (size,); bytes are exact in it.

        Args:
            images: by camera, uint8 (height, width, 3) as the policy has them.

        Raises:
            ValueError: the instruction is longer than the policy takes.
        """
        words = instruction.encode()
        if len(words) > self._most:
            raise ValueError(f"instruction: {len(words)} bytes, limit {self._most}")
        seen = [images[camera.name].ravel() for camera in self.cameras]
        text = np.zeros(self._most, np.uint8)
        text[: len(words)] = np.frombuffer(words, np.uint8)
        return np.concatenate([state, *seen, text], dtype=np.float32)

    def request(self, vector: NDArray[np.float32]) -> tuple[dict[str, WireImage], NDArray[np.float32], str]:
        """Return images, which lose nothing on their way, state and instruction of a vector."""
        first = self._contract.state.size
        state, images = vector[:first], {}
        for camera in self.cameras:
            after = first + _bytes(camera)
            images[camera.name] = vector[first:after].astype(np.uint8).reshape(camera.height, camera.width, 3)
            first = after
        words = vector[first:].astype(np.uint8).tobytes().rstrip(b"\0").decode()
        return fit_images(self._contract, images, codec="raw"), state, words


def _bytes(camera: Camera) -> int:
    return camera.height * camera.width * 3
