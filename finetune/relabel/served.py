"""A served reward model: one connection a worker, long episodes in several requests, a lost server waited for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from clients.errors import RoboserveError
from clients.images import encode_image, resize_with_pad
from clients.reward import RewardClient
from clients.reward_messages import Clip, Scores
from finetune.relabel.labeller import ModelFacts, StopJobError, checked_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from clients.reward_contract import RewardContract
    from finetune.relabel.config import Plan, RelabelConfig
    from finetune.relabel.frames import FrameStore
    from finetune.relabel.labeller import Labels

_RAW_HEADER = 8
_MARGIN = 64 * 1024
"""Bytes of a message that are not frames."""
_FRAME_MARGIN = 64
_CLIPS_AT_ONCE = 64
_HOPELESS = frozenset({"unauthenticated", "forbidden", "not_found", "contract_mismatch"})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0


class ServedLabeller:
    """Asks a server.

    An episode that fits into one request goes there whole, in the mode that is wanted: each frame is sent once and the
    server batches all of its prefixes. A longer one goes as the windows that its frame policy shows, many to a request,
    which gives the same values for several times the bytes.

    Raises:
        StopJobError: the server cannot be reached for `config.wait_s`, or refuses this job.
    """

    def __init__(self, config: RelabelConfig) -> None:
        self._config = config
        self._client = _connected(config)
        contract = self._client.contract
        self._contract = contract
        self.facts = ModelFacts(
            id=contract.model,
            revision=contract.revision,
            content_hash=contract.content_hash,
            architecture=contract.architecture,
            dtype=contract.dtype,
            prompt_version=contract.prompt_version,
            frame_policy=contract.frame_policy,
            pixels=f"{_size_text(contract)} padded by the client, {'jpeg' if config.codec == 'jpeg' else 'exact'}",
        )

    def pack(self, frame: NDArray[np.uint8]) -> bytes:
        """Bring a frame to the contract's size and encode it."""
        if self._contract.image_size is not None:
            frame = resize_with_pad(frame, *self._contract.image_size)
        if self._config.codec != "raw":
            return bytes(encode_image(frame, self._config.codec))
        return np.array(frame.shape[:2], dtype="<u4").tobytes() + frame.tobytes()

    def score(self, frames: FrameStore, instruction: str, plan: Plan) -> Labels:
        """See `Labeller`."""
        if plan.mode == "prefix" and self._fits(frames):
            return self._whole(frames, instruction, plan)
        windows = plan.windows(len(frames))
        mode = "single_pass" if plan.mode == "single_pass" else "final"
        progress: list[NDArray[np.float32]] = []
        success: list[NDArray[np.float32]] = []
        for group in self._groups(frames, windows):
            clips = [Clip(instruction, [self._frame(frames, index) for index in window]) for window in group]
            scores = self._ask(
                lambda client, clips=clips: client.score(  # type: ignore[misc]
                    clips, mode=mode, frame_policy="all", timeout_s=self._config.wait_s
                )
            )
            progress += [clip.progress for clip in scores.clips]
            success += [clip.success for clip in scores.clips if clip.success is not None]
        known = np.concatenate(success) if success else None
        return checked_labels(plan, len(frames), np.concatenate(progress), known)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _whole(self, frames: FrameStore, instruction: str, plan: Plan) -> Labels:
        clip = Clip(instruction, [self._frame(frames, index) for index in range(len(frames))])
        scores = self._ask(
            lambda client: client.score(
                [clip],
                mode="prefix",
                frame_policy=plan.frame_policy,
                every=plan.every,
                timeout_s=self._config.wait_s,
            )
        )
        (found,) = scores.clips
        labelled = plan.labelled(len(frames))
        if list(found.indices) != labelled:
            raise RoboserveError("invalid_output", f"indices: not those of every {plan.every} frames of {len(frames)}")
        return checked_labels(plan, len(frames), found.progress, found.success)

    def _fits(self, frames: FrameStore) -> bool:
        limits = self._contract.limits
        spent = frames.nbytes + len(frames) * _FRAME_MARGIN + _MARGIN
        return bool(len(frames) <= limits["clip_frames"] and spent <= limits["message_bytes"])

    def _groups(self, frames: FrameStore, windows: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        limits = self._contract.limits
        most_clips, most_bytes = min(limits["clips"], _CLIPS_AT_ONCE), limits["message_bytes"] - _MARGIN
        group: list[tuple[int, ...]] = []
        spent = 0
        for window in windows:
            size = sum(frames.size(index) + _FRAME_MARGIN for index in window)
            if size > most_bytes or len(window) > limits["clip_frames"]:
                text = f"frame_policy: shows {len(window)} frames of {size} bytes, the server takes {most_bytes} bytes"
                raise RoboserveError("too_large", f"{text} and {limits['clip_frames']} frames a clip")
            if group and (len(group) == most_clips or spent + size > most_bytes):
                yield group
                group, spent = [], 0
            group.append(window)
            spent += size
        yield group

    def _frame(self, frames: FrameStore, index: int) -> bytes | NDArray[np.uint8]:
        packed = frames.read(index)
        if self._config.codec != "raw":
            return packed
        height, width = np.frombuffer(packed[:_RAW_HEADER], dtype="<u4")
        return np.frombuffer(packed, dtype=np.uint8, offset=_RAW_HEADER).reshape(int(height), int(width), 3)

    def _ask(self, call: Callable[[RewardClient], Scores]) -> Scores:
        """Ask; the client itself tries again what may pass, within `wait_s`."""
        try:
            scores = call(self._client)
        except RoboserveError as error:
            if error.code in _HOPELESS:
                raise StopJobError(f"the server refuses: {error}") from error
            if error.retryable or error.code == "deadline_exceeded":
                raise StopJobError(f"the server gave no answer for {self._config.wait_s:g} s: {error}") from error
            raise
        found, wanted = scores.model, self.facts
        if (found.content_hash, found.dtype, found.prompt_version) != (
            wanted.content_hash,
            wanted.dtype,
            wanted.prompt_version,
        ):
            raise StopJobError(
                f"the server's model changed from {wanted.revision} ({wanted.content_hash[:12]}) to {found.revision} "
                f"({found.content_hash[:12]}) during the job; run it again to label all with one model"
            )
        return scores


def _connected(config: RelabelConfig) -> RewardClient:
    """Connect, trying again for `wait_s` where the server is away or full."""
    give_up, pause_s = time.monotonic() + config.wait_s, _FIRST_PAUSE_S
    while True:
        try:
            return RewardClient(
                str(config.server),
                model=config.model,
                api_key=config.api_key,
                timeout_s=max(config.wait_s, _FIRST_PAUSE_S),
                codec=config.codec,
            )
        except RoboserveError as error:
            if not error.retryable:
                raise StopJobError(f"the server refuses: {error}") from error
            if time.monotonic() + pause_s > give_up:
                raise StopJobError(f"the server cannot be reached: {error}") from error
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _size_text(contract: RewardContract) -> str:
    return "own size" if contract.image_size is None else "x".join(map(str, contract.image_size))
