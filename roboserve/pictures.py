"""A picture as a command line names it: a file, or a frame of a film."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from clients.errors import RoboserveError
from clients.images import decode_image

_MOST_BYTES = 2**24
_MOST_FILM_BYTES = 2**30


def read_picture(named: str) -> bytes:
    """Return a picture, JPEG or PNG.

    Args:
        named: FILE, or FILM.mp4#N for the film's frame N, from 0; negative counts from its end.

    Raises:
        RoboserveError: `invalid_request` for a frame that is not there, `invalid_image`, or `too_large`.
        OSError: there is no such file.
    """
    file, mark, frame = named.partition("#")
    path = Path(file)
    limit = _MOST_FILM_BYTES if mark else _MOST_BYTES
    if (size := path.stat().st_size) > limit:
        raise RoboserveError("too_large", f"{path.name}: {size} bytes, limit {limit}")
    if mark:
        return _frame(path, frame)
    picture = path.read_bytes()
    decode_image(picture, field=path.name)
    return picture


def _frame(path: Path, wanted: str) -> bytes:
    try:
        number = int(wanted)
    except ValueError as error:
        raise RoboserveError("invalid_request", f"{path.name}#{wanted[:20]}: must be the number of a frame") from error
    try:
        import av
    except ImportError as error:
        raise RoboserveError("unavailable", "films need PyAV; install the extra `record`") from error
    count = 0
    kept: dict[int, Any] = {}
    try:
        with av.open(str(path), format="mp4") as film:
            for decoded in film.decode(video=0):
                if number < 0:
                    kept.pop(count + number, None)
                if number < 0 or count == number:
                    kept[count] = decoded
                count += 1
                if count > number >= 0:
                    break
    except (av.FFmpegError, IndexError) as error:
        raise RoboserveError("invalid_image", f"{path.name}: is not an mp4 film that can be read") from error
    place = number if number >= 0 else count + number
    if place not in kept:
        raise RoboserveError("invalid_request", f"{path.name}#{number}: the film has {count} frames")
    return _png(kept[place].to_image())


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
