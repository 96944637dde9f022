"""The frames of one episode while it is being labelled: small, packed, and on disk beyond a cap."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

MEMORY_BYTES = 64 * 2**20


class FrameStore:
    """Packed frames by index, appended as the video is decoded.

    A prefix shows frames from anywhere before its end, so a long episode cannot be cut into independent stretches, and
    holding it in memory would make its length the limit. Frames are therefore brought to the model's size and packed
    as they are decoded, and beyond `memory_bytes` the whole store moves to an unnamed temporary file: memory stays flat
    for an episode of any length, and every prefix still sees exactly the frames that its policy names. A streaming
    session on the server would hold the same frames there, and give one value a round trip.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=memory_bytes)  # noqa: SIM115  closed by `close`
        self._ends = [0]

    def add(self, packed: bytes) -> None:
        """Append a frame."""
        self._file.seek(self._ends[-1])
        self._file.write(packed)
        self._ends.append(self._ends[-1] + len(packed))

    def read(self, index: int) -> bytes:
        """Return a frame as it was added."""
        self._file.seek(self._ends[index])
        return self._file.read(self._ends[index + 1] - self._ends[index])

    def size(self, index: int) -> int:
        """Return the bytes of one frame."""
        return self._ends[index + 1] - self._ends[index]

    @property
    def nbytes(self) -> int:
        """Bytes of all frames."""
        return self._ends[-1]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
