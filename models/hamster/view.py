"""Views of an image: what of it a model sees when it is cropped, padded or stretched to another size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

ViewKind = Literal["center_crop", "pad", "stretch"]


@dataclass(frozen=True, kw_only=True)
class View:
    """How normalised coordinates of the whole image and of a view of it belong together.

    A point p of the image (0 to 1 of its width and height) stands at `scale` * p + `offset` of the view.

    Attributes:
        scale, offset: (x, y).
    """

    scale: tuple[float, float]
    offset: tuple[float, float]

    @classmethod
    def stretch(cls) -> View:
        """The whole image, brought to any size: normalised coordinates stay what they are."""
        return cls(scale=(1.0, 1.0), offset=(0.0, 0.0))

    @classmethod
    def center_crop(cls, width: int, height: int) -> View:
        """The largest square in the middle of an image of that size, in pixels; an odd rest is left right or below.

        Raises:
            ValueError: a side below 1.
        """
        left, top, side = _square(width, height)
        return cls(scale=(width / side, height / side), offset=(-left / side, -top / side))

    @classmethod
    def pad(cls, width: int, height: int, *, size: tuple[int, int]) -> View:
        """The image resized without distortion to fit (width, height) `size`, and centred there.

        Sides are rounded down, as in openpi's `resize_with_pad`.

        Raises:
            ValueError: a side below 1.
        """
        left, top, inner_width, inner_height = _inner(width, height, size)
        return cls(scale=(inner_width / size[0], inner_height / size[1]), offset=(left / size[0], top / size[1]))

    def from_original(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bring (n, 2) coordinates of the whole image into the view; what it does not show is outside 0 to 1."""
        return np.asarray(points * np.asarray(self.scale) + np.asarray(self.offset))

    def to_original(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bring (n, 2) coordinates of the view into the whole image; outside 0 to 1 for points in a padding."""
        return np.asarray((points - np.asarray(self.offset)) / np.asarray(self.scale))


def seen(
    image: NDArray[np.uint8], kind: ViewKind, *, size: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], View]:
    """Return an image as a model is to see it, and the view that leads from its coordinates to the image's own.

    Args:
        image: uint8 (h, w, 3).
        kind: `center_crop` cuts the middle square, `pad` keeps everything and the proportions, `stretch` keeps
            everything and no proportions.
        size: (width, height) of the result, bilinear; None leaves pixels as they are (`pad` then pads to a square).

    Raises:
        ValueError: another shape, or a side below 1.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: shape {image.shape}, needs (h, w, 3)")
    height, width = image.shape[:2]
    if kind == "stretch":
        return _resized(image, size or (width, height)), View.stretch()
    if kind == "center_crop":
        left, top, side = _square(width, height)
        cut = image[top : top + side, left : left + side]
        return _resized(cut, size or (side, side)), View.center_crop(width, height)
    size = size or (max(width, height), max(width, height))
    left, top, inner_width, inner_height = _inner(width, height, size)
    padded = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    padded[top : top + inner_height, left : left + inner_width] = _resized(image, (inner_width, inner_height))
    return padded, View.pad(width, height, size=size)


def _square(width: int, height: int) -> tuple[int, int, int]:
    _positive(width, height)
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def _inner(width: int, height: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    _positive(width, height)
    _positive(*size)
    ratio = max(width / size[0], height / size[1])
    inner_width, inner_height = max(1, int(width / ratio)), max(1, int(height / ratio))
    return (size[0] - inner_width) // 2, (size[1] - inner_height) // 2, inner_width, inner_height


def _positive(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"size {width} x {height}: sides must be 1 or more")


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if (image.shape[1], image.shape[0]) == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
