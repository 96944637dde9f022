"""Frames for training: decoded once from the datasets' videos, resized as the policy sees them, kept on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from clients.images import resize_with_pad
from models.folders import files_hash
from robot_client.dataset import DatasetReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_NAMES = ("images", "state", "action", "instruction", "last")


@dataclass(frozen=True, kw_only=True)
class Frames:
    """All frames of some datasets, in order.

    Attributes:
        cameras: names of the cameras, in the order of `images`; none where images were not asked for.
        images: uint8 (n, cameras, S, S, 3), memory-mapped; `state`: float32 (n, state size); `action`: float32 (n,
            action size): the row that was recorded with the frame.
        instruction: int64 (n,), index into `instructions`.
        last: int64 (n,), index of the last frame of the frame's episode.
        instructions: the distinct wordings.
    """

    cameras: tuple[str, ...]
    images: NDArray[np.uint8]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    instruction: NDArray[np.int64]
    last: NDArray[np.int64]
    instructions: tuple[str, ...]

    def chunks(self, frames: NDArray[np.int64], length: int) -> NDArray[np.float32]:
        """Return the action chunks that start at `frames`, float32 (len(frames), length, action size).

        Beyond an episode's end its last action repeats: it is the one recorded after the task was done.
        """
        rows = np.minimum(frames[:, None] + np.arange(length), self.last[frames][:, None])
        return np.asarray(self.action[rows], dtype=np.float32)


def load_frames(
    folders: Sequence[Path], image_size: int | None, cache: Path, *, progress: Callable[[int, int], None] | None = None
) -> Frames:
    """Return the frames of LeRobot v3 datasets, from the cache where it holds exactly these.

    What the cache holds is known by the content of the datasets' files, wherever they lie: their bytes are read anew
    each time, which takes far less than decoding them.

    Args:
        image_size: side of the square images; None leaves them out.
        cache: folder for the decoded arrays.
        progress: told (episodes decoded, episodes in all).

    Raises:
        RoboserveError: a dataset is damaged or lacks a file.
        ValueError: the datasets differ in cameras, state or action names.
    """
    readers = [DatasetReader(folder) for folder in folders]
    first = readers[0].info
    for reader in readers[1:]:
        same = (reader.info.cameras.keys(), reader.info.state_names, reader.info.action_names)
        if same != (first.cameras.keys(), first.state_names, first.action_names):
            raise ValueError(f"datasets: {reader.root.name} differs from {readers[0].root.name} in cameras or names")
    key = _key(readers, image_size)
    if not (cache / "key.json").is_file() or json.loads((cache / "key.json").read_text("utf-8")) != key:
        _decode(readers, image_size, cache, progress)
        (cache / "key.json").write_text(json.dumps(key), "utf-8")
    arrays: dict[str, Any] = {
        name: np.load(cache / f"{name}.npy", mmap_mode="r" if name == "images" else None, allow_pickle=False)
        for name in _NAMES
    }
    instructions = tuple(json.loads((cache / "instructions.json").read_text("utf-8")))
    return Frames(cameras=_cameras(readers, image_size), instructions=instructions, **arrays)


def _cameras(readers: Sequence[DatasetReader], image_size: int | None) -> tuple[str, ...]:
    return () if image_size is None else tuple(readers[0].info.cameras)


def _key(readers: Sequence[DatasetReader], image_size: int | None) -> dict[str, Any]:
    return {"image_size": image_size, "datasets": [_content(reader) for reader in readers]}


def _content(reader: DatasetReader) -> str:
    """Return the SHA-256 of what a dataset's frames are decoded from, hex.

    Raises:
        RoboserveError: `invalid_request` where a file is missing.
    """
    paths = [reader.root / name for name in reader.files()]
    for path in paths:
        if not path.is_file():
            raise RoboserveError("invalid_request", f"dataset: {path.relative_to(reader.root)} is missing")
    return files_hash(paths)


def _decode(
    readers: Sequence[DatasetReader], image_size: int | None, cache: Path, progress: Callable[[int, int], None] | None
) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "key.json").unlink(missing_ok=True)
    (cache / "images.npy").unlink(missing_ok=True)  # whoever has it mapped keeps the old one
    total, cameras, side = sum(reader.frames for reader in readers), _cameras(readers, image_size), image_size or 1
    shape = (total, len(cameras), side, side, 3)
    images = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        cache / "images.npy", mode="w+", dtype=np.uint8, shape=shape
    )
    rows: dict[str, list[Any]] = {"state": [], "action": [], "instruction": [], "last": []}
    known: dict[str, int] = {}
    episodes = [(reader, episode) for reader in readers for episode in reader.episodes]
    at = 0
    for number, (reader, episode) in enumerate(episodes):
        columns = reader.columns(episode)
        for index, camera in enumerate(cameras):
            for row, image in enumerate(reader.images(episode, camera)):
                images[at + row, index] = resize_with_pad(image, side, side)
        rows["state"].append(columns["observation.state"])
        rows["action"].append(columns["action"])
        rows["instruction"].append(np.full(episode.length, known.setdefault(episode.tasks[0], len(known))))
        rows["last"].append(np.full(episode.length, at + episode.length - 1))
        at += episode.length
        if progress is not None:
            progress(number + 1, len(episodes))
    images.flush()
    for name, parts in rows.items():
        dtype = np.float32 if name in ("state", "action") else np.int64
        np.save(cache / f"{name}.npy", np.concatenate(parts).astype(dtype))
    (cache / "instructions.json").write_text(json.dumps(list(known)), "utf-8")
