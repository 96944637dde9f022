"""Observations to send: smooth pictures with some noise, since plain noise would make any compression look bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.images import encode_image

if TYPE_CHECKING:
    from clients.images import WireImage

INSTRUCTION = "pick up the red block and put it on the shelf"
STATE_SIZE = 8


def picture(height: int, width: int, seed: int) -> np.ndarray[Any, Any]:
    """Return a synthetic camera image, uint8 (height, width, 3): a lit background, blocks, sensor noise (sigma 2)."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = 120 + 60 * np.sin(x / width * 3 + draw.uniform(0, 6)) + 40 * np.cos(y / height * 2 + draw.uniform(0, 6))
    image = np.stack([light, light * 0.9, light * 0.8], axis=-1)
    for _ in range(6):
        top, left = int(draw.integers(0, height * 3 // 4)), int(draw.integers(0, width * 3 // 4))
        image[top : top + height // 6, left : left + width // 6] = draw.uniform(0, 255, 3)
    image += draw.normal(0, 2, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def state(seed: int) -> np.ndarray[Any, Any]:
    """Return a proprioceptive state, float32 (8,)."""
    return np.random.default_rng(seed).uniform(-1, 1, STATE_SIZE).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Payload:
    """One observation as it goes on the wire: camera name to raw array or compressed bytes."""

    name: str
    images: dict[str, WireImage]
    state: np.ndarray[Any, Any]
    instruction: str = INSTRUCTION

    def native(self) -> dict[str, Any]:
        """Return the observation in the native protocol's form."""
        return {"images": self.images, "state": self.state, "instruction": self.instruction}

    def openpi(self) -> dict[str, Any]:
        """Return it in openpi's form: one flat map."""
        images = {f"observation/{camera}": image for camera, image in self.images.items()}
        return {**images, "observation/state": self.state, "prompt": self.instruction}

    @property
    def size(self) -> int:
        """Bytes of the images and the state, before any framing."""
        return sum(len(i) if isinstance(i, bytes) else i.nbytes for i in self.images.values()) + self.state.nbytes


def payload(cameras: tuple[str, ...], codec: str, seed: int, *, side: int = 224) -> Payload:
    """Return an observation with square images, already of the size that the policy wants.

    Args:
        codec: "raw", "jpeg" or "png".
        side: pixels.
    """
    images = {name: encode_image(picture(side, side, seed + index), codec) for index, name in enumerate(cameras)}
    plural = "camera" if len(cameras) == 1 else "cameras"
    return Payload(name=f"{len(cameras)} {plural}, {side}x{side} {codec}", images=images, state=state(seed))
