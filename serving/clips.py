"""Clips on the wire, frame by frame: arrays, JPEG and PNG lists, mp4, and .npy without pickle.

Sizes and counts are checked before anything is decoded, and each frame is handed on before the next one is made, so
that a clip never stands in memory at its own size.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from clients.images import decode_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

_NPY_HEADER = 4096
_DECODER_SLACK = 2
"""The decoder counts whole blocks, so that its limit lies above ours."""
_MOST_SLENDER = 200
"""Times that one side of a frame may be the other: a model that takes whole patches makes a line of pixels a band."""
_SAMPLED_FROM = 100
"""Frames that may be decoded for each that may be given."""
_PIXELS_FROM = 4
"""Pixels that may be decoded for each that may be given: decoding takes a thread that all callers share."""


@dataclass(frozen=True, kw_only=True)
class ClipLimits:
    """Caps on one clip: frames, and pixels of one frame."""

    frames: int
    pixels: int


def clip_frames(value: Any, *, field: str, limits: ClipLimits) -> Iterator[NDArray[np.uint8]]:
    """Give the frames of a clip, each RGB uint8 (h, w, 3), in order.

    Args:
        value: what stood in the message: an array (T, h, w, 3), a list of frames, {"video": mp4, "fps": rate or None}
            or {"npy": bytes}.
        field: what the client calls it.

    Raises:
        RoboserveError: `invalid_image` or `too_large`, naming the field, the value and the limit; while iterating too.
    """
    if isinstance(value, np.ndarray):
        return _array(value, field, limits)
    if isinstance(value, list):
        return _list(value, field, limits)
    if isinstance(value, dict) and set(value) <= {"video", "fps"} and isinstance(value.get("video"), bytes):
        return _video(value, field, limits)
    if isinstance(value, dict) and set(value) == {"npy"} and isinstance(value["npy"], bytes):
        return _array(read_npy(value["npy"], field=f"{field}.npy"), field, limits)
    raise RoboserveError(
        "invalid_image",
        f"{field}: must be a uint8 array (T, h, w, 3), a list of frames, or a map with 'video' or 'npy'",
    )


def read_npy(data: bytes, *, field: str) -> NDArray[Any]:
    """Read an array of plain numbers from the bytes of a .npy file; nothing is unpickled.

    Raises:
        RoboserveError: `invalid_image` for other bytes, object arrays, or a size that is not what the header says.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream, max_header_size=_NPY_HEADER)  # type: ignore[no-untyped-call,call-arg]
    except (ValueError, KeyError, SyntaxError, TypeError, EOFError, MemoryError, RecursionError) as error:
        raise RoboserveError("invalid_image", f"{field}: is no .npy file of version 1 or 2") from error
    if dtype.kind not in "biuf" or dtype.hasobject:
        raise RoboserveError("invalid_image", f"{field}: dtype {dtype}, needs numbers")
    if any(side < 0 for side in shape):
        raise RoboserveError("invalid_image", f"{field}: shape {shape!s:.80}, no side may be negative")
    size = math.prod(shape) * dtype.itemsize
    rest = len(data) - stream.tell()
    if size != rest or fortran:
        raise RoboserveError("invalid_image", f"{field}: {rest} bytes follow the header, which says {size} in C order")
    return np.frombuffer(data, dtype=dtype, offset=stream.tell()).reshape(shape)


def _count(count: int, field: str, limits: ClipLimits) -> None:
    if count < 1:
        raise RoboserveError("invalid_image", f"{field}: has no frames, needs at least one")
    if count > limits.frames:
        raise RoboserveError("too_large", f"{field}: {count} frames, limit {limits.frames}")


def _array(value: NDArray[Any], field: str, limits: ClipLimits) -> Iterator[NDArray[np.uint8]]:
    if value.dtype != np.uint8:
        raise RoboserveError("invalid_image", f"{field}: dtype {value.dtype}, needs uint8 (0 to 255)")
    if value.ndim != 4 or value.shape[3] != 3:
        raise RoboserveError("invalid_image", f"{field}: shape {tuple(value.shape)}, needs (frames, height, width, 3)")
    _count(len(value), field, limits)
    return (decode_frame(frame, f"{field}[{index}]", limits) for index, frame in enumerate(value))


def _list(value: list[Any], field: str, limits: ClipLimits) -> Iterator[NDArray[np.uint8]]:
    _count(len(value), field, limits)
    return (decode_frame(frame, f"{field}[{index}]", limits) for index, frame in enumerate(value))


def decode_frame(value: Any, field: str, limits: ClipLimits) -> NDArray[np.uint8]:
    """Decode one frame, JPEG or PNG bytes or a uint8 array; raises as `clip_frames`."""
    frame: NDArray[np.uint8] = decode_image(value, field=field, max_pixels=limits.pixels)
    _check_shape(frame.shape[1], frame.shape[0], field, limits)
    return frame


def _check_shape(width: int, height: int, field: str, limits: ClipLimits) -> None:
    if width * height > limits.pixels:
        raise RoboserveError("too_large", f"{field}: {width} x {height} pixels, limit {limits.pixels} in all")
    if max(width, height) > _MOST_SLENDER * min(width, height):
        raise RoboserveError(
            "invalid_image", f"{field}: {width} x {height} pixels, one side over {_MOST_SLENDER} times the other"
        )


def _video(value: Mapping[str, Any], field: str, limits: ClipLimits) -> Iterator[NDArray[np.uint8]]:
    fps = value.get("fps")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= 1000):
        raise RoboserveError("invalid_request", f"{field}.fps: {fps!r:.40}, must be over 0 and at most 1000, or null")
    return _decoded(value["video"], None if fps is None else float(fps), f"{field}.video", limits)


def _decoded(data: bytes, fps: float | None, field: str, limits: ClipLimits) -> Iterator[NDArray[np.uint8]]:
    """Decode a video, picking the first frame at or after each sampling time.

    The container must be mp4: another format could make the decoder read other files or addresses.
    """
    try:
        import av
    except ImportError as error:
        raise RoboserveError("unavailable", f"{field}: this server has no video decoder (extra `record`)") from error
    given = 0
    try:
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or getattr(stream, "codec_context", None) is None:
                raise RoboserveError("invalid_image", f"{field}: has no video stream that can be decoded")
            _check_shape(stream.width, stream.height, field, limits)
            if fps is None and stream.frames > limits.frames:
                raise RoboserveError("too_large", f"{field}: {stream.frames} frames, limit {limits.frames}")
            stream.thread_count = 1
            # Pictures may grow within a stream: the decoder itself must refuse, or memory would be taken before we see.
            stream.codec_context.options = {"max_pixels": str(_DECODER_SLACK * limits.pixels)}
            decoded = pixels = 0
            pictures: Iterator[Any] = container.decode(stream)
            for frame in pictures:
                decoded, pixels = decoded + 1, pixels + frame.width * frame.height
                if decoded > _SAMPLED_FROM * limits.frames or pixels > _PIXELS_FROM * limits.frames * limits.pixels:
                    text = f"{field}: over {decoded - 1} frames of {frame.width} x {frame.height} before sampling"
                    raise RoboserveError("too_large", text)
                if fps is not None and frame.time is not None and frame.time + 1e-6 < given / fps:
                    continue
                given += 1
                if given > limits.frames:
                    raise RoboserveError("too_large", f"{field}: more than {limits.frames} frames, which is the limit")
                _check_shape(frame.width, frame.height, field, limits)
                yield frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, ValueError, OSError) as error:
        raise RoboserveError("invalid_image", f"{field}: is no mp4 video that can be decoded") from error
    if not given:
        raise RoboserveError("invalid_image", f"{field}: has no frames, needs at least one")
