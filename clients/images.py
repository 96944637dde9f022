"""Images on the wire: JPEG or PNG bytes, or raw arrays; sized and checked before anything is decoded.

A decoder's own messages never leave this module (Pillow's carry object addresses).
"""

from __future__ import annotations

import io
from typing import Any, Optional, Tuple, Union

import numpy as np
from PIL import Image

from clients.errors import RoboserveError

Array = np.ndarray[Any, Any]
WireImage = Union[bytes, Array]

_MAGIC = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"))
DEFAULT_PIXELS = 4096 * 4096
_MAX_SCANS = 100


def encode_image(image: Array, codec: str = "jpeg", *, quality: int = 90) -> WireImage:
    """Encode an RGB uint8 image (height, width, 3) for the wire.

    Args:
        codec: "jpeg" (smallest; shifts pixels), "png" (exact) or "raw" (exact; the array itself).
        quality: of JPEG, 1 to 95.

    Raises:
        RoboserveError: `invalid_image` for another shape, dtype or codec.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise RoboserveError("invalid_image", f"image: {image.dtype} {image.shape}, needs uint8 (height, width, 3)")
    if codec == "raw":
        return np.ascontiguousarray(image)
    buffer = io.BytesIO()
    if codec == "jpeg":
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    elif codec == "png":
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    else:
        raise RoboserveError("invalid_image", f"codec: {codec!r}; allowed are jpeg, png, raw")
    return buffer.getvalue()


def decode_image(
    value: Any, *, field: str, max_pixels: int = DEFAULT_PIXELS, size: Optional[Tuple[int, int]] = None
) -> Array:
    """Decode an image from an untrusted peer to RGB uint8 (height, width, 3).

    The size in the header is checked before a pixel is decoded, so that a small file cannot claim gigabytes.

    Args:
        size: (height, width) that it must have; None lets any size within `max_pixels` pass.

    Raises:
        RoboserveError: `invalid_image` naming the field, or `too_large` over `max_pixels`.
    """
    if isinstance(value, np.ndarray):
        return _raw(value, field, max_pixels, size)
    if not isinstance(value, bytes):
        raise RoboserveError("invalid_image", f"{field}: must be JPEG or PNG bytes or a uint8 array")
    kind = next((name for magic, name in _MAGIC if value.startswith(magic)), None)
    if kind is None:
        raise RoboserveError("invalid_image", f"{field}: neither JPEG nor PNG")
    if kind == "JPEG" and value.count(b"\xff\xda") > _MAX_SCANS:
        raise RoboserveError("too_large", f"{field}: over {_MAX_SCANS} scans, each as dear as a picture")
    try:
        with Image.open(io.BytesIO(value), formats=(kind,)) as image:
            width, height = image.size
            _check_size(field, (height, width), max_pixels, size)
            if image.mode not in ("RGB", "RGBA"):
                raise RoboserveError("invalid_image", f"{field}: colour mode {image.mode}, needs RGB")
            return np.array(image.convert("RGB"), dtype=np.uint8)
    except RoboserveError:
        raise
    except Image.DecompressionBombError as error:
        raise RoboserveError("too_large", f"{field}: more pixels than the limit, {max_pixels} in all") from error
    except Exception as error:  # Pillow raises many types on hostile bytes, and their texts leak addresses
        raise RoboserveError("invalid_image", f"{field}: the {kind} data is damaged or cut short") from error


def _check_size(field: str, given: Tuple[int, int], max_pixels: int, wanted: Optional[Tuple[int, int]]) -> None:
    height, width = given
    if width * height > max_pixels:
        raise RoboserveError("too_large", f"{field}: {width} x {height} pixels, limit {max_pixels} in all")
    if wanted is not None and given != wanted:
        text = f"{field}: {width} x {height} pixels, must be {wanted[1]} x {wanted[0]}"
        raise RoboserveError("invalid_image", text)


def _raw(value: Array, field: str, max_pixels: int, size: Optional[Tuple[int, int]]) -> Array:
    if value.dtype != np.uint8:
        raise RoboserveError("invalid_image", f"{field}: dtype {value.dtype}, needs uint8")
    if value.ndim != 3 or value.shape[2] != 3:
        raise RoboserveError("invalid_image", f"{field}: shape {tuple(value.shape)}, needs (height, width, 3)")
    _check_size(field, (value.shape[0], value.shape[1]), max_pixels, size)
    if not value.size:
        raise RoboserveError("invalid_image", f"{field}: shape {tuple(value.shape)}, has no pixels")
    return value


def fitted_size(size: Tuple[int, int], target: Tuple[int, int]) -> Tuple[int, int]:
    """Return the (height, width) that fills `target` without distortion, truncated to whole pixels, at least 1."""
    ratio = max(size[1] / target[1], size[0] / target[0])
    return max(1, int(size[0] / ratio)), max(1, int(size[1] / ratio))


def resize_with_pad(image: Array, height: int, width: int) -> Array:
    """Resize (bilinear) without distortion and centre on black; the convention of openpi's image_tools.

    Args:
        image: uint8 (h, w, 3).

    Returns:
        uint8 (height, width, 3).
    """
    if image.shape[:2] == (height, width):
        return image
    inner_height, inner_width = fitted_size((image.shape[0], image.shape[1]), (height, width))
    resized = Image.fromarray(image).resize((inner_width, inner_height), resample=Image.Resampling.BILINEAR)
    padded = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    padded[top : top + inner_height, left : left + inner_width] = np.asarray(resized)
    return padded
