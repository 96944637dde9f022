"""H.264 video of a dataset: encode frames as they come, join files without encoding again, read a stretch of frames.

Needs `av` (extra `record`). Streams carry no B-frames, so that a packet's decode and presentation times agree and files
of the same settings join by shifting times.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, Iterator, List, Tuple

import numpy as np

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from pathlib import Path

Array = np.ndarray[Any, Any]

CODEC = "libx264"
PIXEL_FORMAT = "yuv420p"
_KEYFRAME_EVERY = 10
_OPTIONS = {"preset": "veryfast", "crf": "20", "bf": "0", "g": str(_KEYFRAME_EVERY), "threads": "1"}


class VideoEncoder:
    """Encode one episode of one camera to an mp4 file.

    Args:
        path: file to write.
        fps: frames per second.
        size: (height, width), both even, as 4:2:0 chroma needs.
    """

    def __init__(self, path: Path, *, fps: float, size: Tuple[int, int]) -> None:
        av = _import_av()
        if size[0] % 2 or size[1] % 2:
            raise RoboserveError("invalid_request", f"camera size: {size[0]} x {size[1]}, both sides must be even")
        self._av = av
        self._size = size
        self._container = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream(CODEC, rate=_rate(fps), options=dict(_OPTIONS))
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = PIXEL_FORMAT
        self.frames = 0

    def check(self, image: Array) -> None:
        """Refuse a frame that is not uint8 (height, width, 3).

        Raises:
            RoboserveError: `invalid_image`.
        """
        if image.dtype != np.uint8 or image.shape != (*self._size, 3):
            raise RoboserveError("invalid_image", f"frame: {image.dtype} {image.shape}, needs uint8 {(*self._size, 3)}")

    def add(self, image: Array) -> None:
        """Encode one frame, RGB; see `check`."""
        self.check(image)
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts = self.frames
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        self.frames += 1

    def close(self) -> None:
        """Write what is still held back and the file's index."""
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()


def join(first: Path, second: Path, *, first_frames: int, fps: float) -> None:
    """Append the frames of `second` to `first` (which may not exist yet); `first` is replaced in one step.

    Args:
        first_frames: frames that `first` holds.
    """
    if not first.exists():
        first.parent.mkdir(parents=True, exist_ok=True)
        second.replace(first)
        return
    av = _import_av()
    partial = first.with_suffix(".partial")
    with av.open(str(first)) as head, av.open(str(second)) as tail, av.open(str(partial), "w", format="mp4") as out:
        stream = out.add_stream_from_template(head.streams.video[0])
        for source, shift in ((head, 0), (tail, first_frames)):
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is None:
                    continue
                ticks = int(Fraction(shift) / _rate(fps) / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = stream
                out.mux(packet)
    partial.replace(first)
    second.unlink()


def read_frames(path: Path, *, start: float, count: int, fps: float) -> Iterator[Array]:
    """Decode `count` frames from time `start` (s) on, each uint8 (height, width, 3), RGB.

    The file must be mp4, whatever it is called: playlists and the like could make the decoder read other files.

    Raises:
        RoboserveError: `invalid_request` where the file is damaged or ends too early.
    """
    av = _import_av()
    given = 0
    try:
        with av.open(str(path), format="mp4") as container:
            stream = container.streams.video[0]
            container.seek(max(0, int(start / stream.time_base)), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.time < start - 0.5 / fps:
                    continue
                yield frame.to_ndarray(format="rgb24")
                given += 1
                if given == count:
                    return
    except (av.FFmpegError, IndexError, OSError) as error:
        raise RoboserveError("invalid_request", f"dataset: the video {path.name} cannot be read") from error
    raise RoboserveError("invalid_request", f"dataset: the video {path.name} ends {count - given} frames too early")


def codec_info(size: Tuple[int, int], fps: float) -> List[Tuple[str, Any]]:
    """Return what a dataset's metadata says of a stream, in LeRobot v3 names."""
    return [
        ("video.height", size[0]),
        ("video.width", size[1]),
        ("video.codec", "h264"),
        ("video.pix_fmt", PIXEL_FORMAT),
        ("video.is_depth_map", False),
        ("video.fps", fps),
        ("video.channels", 3),
        ("has_audio", False),
    ]


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1000)


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise RoboserveError("unavailable", "dataset: PyAV is not installed; install the extra `record`") from error
    return av
