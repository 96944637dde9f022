"""Episodes whose frames go up the wire once as they come, and again only where the server that had them is lost."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Union

import numpy as np

from clients.errors import RoboserveError
from clients.images import Array, resize_with_pad
from clients.patient import FIRST_PAUSE_S, LONGEST_PAUSE_S

if TYPE_CHECKING:
    from clients.reward import RewardClient, RewardSession
    from clients.reward_messages import Value

View = Union[Array, Mapping[str, Array]]
"""What is seen at one time: RGB uint8 (h, w, 3), or such by the camera's name."""

_ONLY = "front"
_MAY_PASS = ("unavailable", "not_found", "deadline_exceeded", "timeout", "overloaded")
"""The server, its session or its answer is lost, or it has no room for now."""
_MARGIN = 64 * 1024
"""Bytes of a message that are not pixels."""


class EpisodeStream:
    """Streams one episode after another to a served reward model, from one thread at a time.

    Args:
        client: any number of streams may share it.
        frame_policy: which frames the model is shown; None for its own.
        patience_s: how long a lost server is waited for. A new session then gets the episode's frames again, so that
            values are those of an unbroken one. 0 raises at once, and keeps no frames.

    Raises:
        RoboserveError: `contract_mismatch` where the server has no sessions.
    """

    def __init__(self, client: RewardClient, *, frame_policy: Optional[str] = None, patience_s: float = 0.0) -> None:
        if "sessions" not in client.contract.supports:
            raise RoboserveError("contract_mismatch", f"sessions: {client.contract.model} does not have them")
        self._client = client
        self._frame_policy, self._patience_s = frame_policy, patience_s
        self._name = uuid.uuid4().hex  # opening a name anew replaces its session: none is left behind on the server
        self._session: Optional[RewardSession] = None
        self._instruction = ""
        self._views: List[Dict[str, Array]] = []
        self._seen, self._sent = 0, 0
        self._running = False

    def begin(self, instruction: str, view: View) -> Value:
        """Begin an episode and return the value of its first frame; raises as `append`."""
        self._instruction, self._session = instruction, None
        self._views, self._seen, self._sent = [], 0, 0
        self._running = True
        return self.append(view)

    def append(self, view: View) -> Value:
        """Return the value after the next frame; an episode that raises has ended.

        Raises:
            RoboserveError: the server's refusal; `unavailable`, `not_found`, `deadline_exceeded` or `overloaded` where
                that lasts longer than the patience; `invalid_image` for what is no frame; `invalid_request` before
                `begin`.
        """
        if not self._running:
            raise RoboserveError("invalid_request", "episode: none is running, begin one")
        self._running = False
        if self._patience_s <= 0:
            self._views.clear()
        self._views.append(self._cameras(view))
        self._seen += 1
        value = self._patiently()
        if value.frame != self._seen - 1:
            raise RoboserveError("invalid_output", f"frame: the server has {value.frame}, must be {self._seen - 1}")
        self._running = True
        return value

    def close(self) -> None:
        """Have the server forget the episode.

        Raises:
            RoboserveError: the server's refusal; one that is lost has forgotten it, which is no error.
        """
        session, self._session, self._running = self._session, None, False
        try:
            if session is not None:
                session.close()
        except RoboserveError as error:
            if error.code not in _MAY_PASS:
                raise

    def _patiently(self) -> Value:
        give_up = time.monotonic() + self._patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return self._ask()
            except RoboserveError as error:
                self._session, self._sent = None, 0  # whether the frame got there is not known
                if error.code not in _MAY_PASS or time.monotonic() + pause_s > give_up:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _ask(self) -> Value:
        """Send what the session lacks, all of the episode where it is new, and return the value after it."""
        if self._session is None:
            self._session = self._client.open(
                self._instruction, cameras=tuple(self._views[-1]), frame_policy=self._frame_policy, session=self._name
            )
        value: Optional[Value] = None
        for group in self._groups(self._views[self._sent - self._seen :]):
            value = self._session.append({name: [view[name] for view in group] for name in group[0]})
            self._sent += len(group)
        assert value is not None  # noqa: S101  the newest frame is always among them
        return value

    def _groups(self, views: List[Dict[str, Array]]) -> Iterator[List[Dict[str, Array]]]:
        limits = self._client.contract.limits
        nbytes = sum(frame.nbytes for frame in views[-1].values())
        most = max(1, min(int(limits["clip_frames"]), (int(limits["message_bytes"]) - _MARGIN) // max(1, nbytes)))
        for start in range(0, len(views), most):
            yield views[start : start + most]

    def _cameras(self, view: View) -> Dict[str, Array]:
        cameras = dict(view) if isinstance(view, Mapping) else {_ONLY: view}
        return {name: self._own(frame, name) for name, frame in cameras.items()}

    def _own(self, frame: Any, name: str) -> Array:
        """Return a copy at the model's size: whoever made the frame may draw the next one into its memory."""
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            given = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise RoboserveError("invalid_image", f"frame of {name}: {given}, needs RGB uint8 (height, width, 3)")
        size = self._client.contract.image_size
        return np.array(frame if size is None else resize_with_pad(frame, *size))
