"""The smallest things that can be asked for the progress of clips: our client, the usual form, and the bare model."""

from __future__ import annotations

import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import httpx
import numpy as np
import psutil

from clients.reward import Clip, RewardClient
from models.rewards.contract import Query

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from models.rewards.contract import RewardModel

TASK = "push the green button"


class ScoreLine(Protocol):
    """A connection that can be asked."""

    def ask(self, frames: np.ndarray[Any, Any], mode: str, policy: str) -> np.ndarray[Any, Any]:
        """Return the progress of a clip, uint8 (T, h, w, 3), in the modes "single_pass" and "prefix"."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class ClientLine:
    """Our own typed client on a websocket."""

    def __init__(self, url: str, codec: str) -> None:
        self._client = RewardClient(url, codec=codec, timeout_s=600.0)

    def ask(self, frames: np.ndarray[Any, Any], mode: str, policy: str) -> np.ndarray[Any, Any]:
        """See `ScoreLine`."""
        scores = self._client.score([Clip(TASK, frames)], mode=mode, frame_policy=policy)
        progress: np.ndarray[Any, Any] = scores.clips[0].progress
        return progress

    def close(self) -> None:
        """See `ScoreLine`."""
        self._client.close()


class FormLine:
    """A kept-alive HTTP connection that posts the form of Robometer's example client."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/evaluate_batch_npy"
        self._client = httpx.Client(timeout=600.0)

    def ask(self, frames: np.ndarray[Any, Any], mode: str, policy: str) -> np.ndarray[Any, Any]:
        """See `ScoreLine`."""
        stream = io.BytesIO()
        np.save(stream, frames)
        key = "sample_0_trajectory_frames"
        trajectory = {"frames": {"__numpy_file__": key}, "frames_shape": list(frames.shape), "task": TASK, "id": "0"}
        sample = json.dumps({"sample_type": "progress", "trajectory": trajectory})
        fields = {"sample_0": sample, "use_frame_steps": str(mode == "prefix").lower(), "policy": policy}
        files = {key: (f"{key}.npy", stream.getvalue(), "application/octet-stream")}
        reply = self._client.post(self._url, data=fields, files=files).raise_for_status()
        return np.asarray(reply.json()["outputs_progress"]["progress_pred"][0], np.float32)

    def close(self) -> None:
        """See `ScoreLine`."""
        self._client.close()


def bare_clips_per_s(model: RewardModel, clips: Sequence[np.ndarray[Any, Any]], batch: int) -> float:
    """Return the clips a second of batched forwards in this process: prepared frames in, values out, nothing around."""
    started = time.perf_counter()
    for start in range(0, len(clips), batch):
        some = clips[start : start + batch]
        seen = iter(model.encode([frame for clip in some for frame in clip]))
        model.score([Query(instruction=TASK, frames=tuple(next(seen) for _ in clip)) for clip in some])
    return len(clips) / (time.perf_counter() - started)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a number of callers: seconds from the first question to the last answer, and ms of each answer."""

    seconds: float
    clips: int
    labels: int
    latencies_ms: tuple[float, ...]


def take_turn(lines: Sequence[ScoreLine], clips: Sequence[np.ndarray[Any, Any]], mode: str, policy: str) -> Turn:
    """Let every line ask in a thread of its own for every n-th clip, one after the other."""

    def ask(index: int) -> list[tuple[float, int]]:
        found = []
        for clip in clips[index :: len(lines)]:
            started = time.perf_counter()
            labels = len(lines[index].ask(clip, mode, policy))
            found.append(((time.perf_counter() - started) * 1e3, labels))
        return found

    with ThreadPoolExecutor(max_workers=len(lines)) as pool:
        started = time.perf_counter()
        answers = [answer for some in pool.map(ask, range(len(lines))) for answer in some]
        seconds = time.perf_counter() - started
    return Turn(
        seconds=seconds,
        clips=len(answers),
        labels=sum(labels for _, labels in answers),
        latencies_ms=tuple(latency for latency, _ in answers),
    )


class PeakMemory:
    """Watches the resident memory of a process, from a thread, while the block runs.

    Attributes:
        before, peak: bytes at the start and at the most.
    """

    def __init__(self, process: psutil.Process, *, interval_s: float = 0.005) -> None:
        self._process = process
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before = self.peak = 0

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __enter__(self) -> Self:
        self.before = self.peak = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def served_by(word: str) -> psutil.Process:
    """Return the process below this one whose command line has a word.

    Raises:
        RuntimeError: there is none, or there are several.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(word in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue  # ended since it was listed
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} processes have {word!r} in their command line, expected one")
    return found[0]
