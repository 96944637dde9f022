"""The robot's line to its policy: one thread that does everything that can wait, so that the control thread never does.

It connects, checks the contract, resets the session, sizes and encodes images, asks for chunks and puts them into the
queue. A connection that ends is made anew with growing pauses, always as a new session with an explicit reset.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Deque, List, Optional, Tuple

from clients.contract import PolicyContract, RobotInterface, require_match
from clients.errors import RoboserveError
from clients.policy import ActOptions, ActReply, PolicyClient, fit_images
from robot_client.records import Event, RequestRecord

if TYPE_CHECKING:
    from typing_extensions import Self

    from robot_client.action_queue import ActionQueue, Continuation
    from robot_client.robot import RobotObservation

_NEVER_AGAIN = frozenset({"unauthenticated", "forbidden", "contract_mismatch", "invalid_request"})
_BAD_REQUEST = frozenset({"not_found", "invalid_image", "invalid_state", "too_large"}) | _NEVER_AGAIN
_RECONNECT = frozenset({"unavailable", "malformed"})
_NOT_A_FAULT = frozenset({"superseded", "deadline_exceeded"})
_GRACE_S = 0.25
_PING_S = 2.0
_IDLE_S = 0.1
_KEPT = 10_000


@dataclass(frozen=True)
class LinkConfig:
    """How a robot reaches its policy.

    Attributes:
        server: "host:port" or a ws:// or wss:// address.
        policy: name of the policy; None for the server's default.
        api_key: the robot's key.
        codec: of images on the wire: "jpeg" (smallest), "png" or "raw" (exact); `quality` is JPEG's, 1 to 95.
        deadline_s: age of an observation at which its answer is of no use any more.
        connect_timeout_s: limit on one attempt to connect.
        give_up_s: seconds without a connection after which the link stops trying.
        first_pause_s: pause after a failed attempt; it doubles up to `longest_pause_s`, less up to half at random.
        failures: requests in a row that may fail by the server's fault before the link gives up.
        adapter: adapter of the policy.
        integration_steps: steps of the flow; None takes the policy's default.
        execution_horizon: RTC: row up to which the chunk in force guides; None takes the policy's default.
        leftover_from: RTC: who keeps the chunk in force: "client" sends its rest in model space with each request,
            "server" relies on the server's memory of the session.
    """

    server: str
    policy: Optional[str] = None
    api_key: Optional[str] = field(default=None, repr=False)
    codec: str = "jpeg"
    quality: int = 90
    deadline_s: float = 2.0
    connect_timeout_s: float = 5.0
    give_up_s: float = 60.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0
    failures: int = 10
    adapter: Optional[str] = None
    integration_steps: Optional[int] = None
    execution_horizon: Optional[int] = None
    leftover_from: str = "client"

    def __post_init__(self) -> None:
        if self.leftover_from not in ("client", "server"):
            raise RoboserveError(
                "invalid_request", f"leftover_from: {self.leftover_from!r}; allowed are client, server"
            )
        if self.codec not in ("jpeg", "png", "raw"):
            raise RoboserveError("invalid_request", f"codec: {self.codec!r}; allowed are jpeg, png, raw")
        limits = (self.deadline_s, self.connect_timeout_s, self.give_up_s, self.first_pause_s, self.longest_pause_s)
        if not all(value > 0 for value in limits) or self.failures < 1:
            raise RoboserveError("invalid_request", "link: times must be above 0 and failures 1 or more")


@dataclass(frozen=True)
class _Episode:
    queue: ActionQueue
    instruction: str
    seed: Optional[int]


@dataclass(frozen=True)
class _Offer:
    observation: RobotObservation
    anchor: int
    observed_at: float
    epoch: int


class PolicyLink:
    """A policy, seen from the control thread: it takes observations and fills a queue. No method waits on the network.

    `wait_ready` and `close` are the exceptions; they are for before and after the episode.

    Args:
        interface: the robot's; a contract that does not fit is refused on connect.
    """

    def __init__(self, config: LinkConfig, interface: RobotInterface) -> None:
        self._config = config
        self._interface = interface
        self._condition = threading.Condition()
        self._state = "connecting"
        self._contract: Optional[PolicyContract] = None
        self._refusal: Optional[RoboserveError] = None
        self._episode: Optional[_Episode] = None
        self._session: Optional[str] = None
        self._offer: Optional[_Offer] = None
        self._busy = False
        self._requests: Deque[RequestRecord] = deque(maxlen=_KEPT)
        self._events: Deque[Event] = deque(maxlen=_KEPT)
        self._client: Optional[PolicyClient] = None
        self._failed_in_a_row = 0
        self._sent = 0
        self._thread = threading.Thread(target=self._run, name="roboserve-link", daemon=True)

    def start(self) -> None:
        """Start the network's thread."""
        self._thread.start()

    @property
    def state(self) -> str:
        """One of connecting (never yet connected), ready, lost, refused, closed."""
        return self._state

    @property
    def refusal(self) -> Optional[RoboserveError]:
        """Why the state is "refused"."""
        return self._refusal

    @property
    def config(self) -> LinkConfig:
        """The configuration."""
        return self._config

    def wait_ready(self, timeout_s: float) -> PolicyContract:
        """Wait until the policy has been reached, fits the robot, and the session of a begun episode has been reset.

        Raises:
            RoboserveError: the refusal (such as `contract_mismatch`), or `unavailable` after `timeout_s`.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._usable() or self._state in ("refused", "closed"), timeout_s)
            if self._refusal is not None:
                raise RoboserveError(self._refusal.code, self._refusal.message)
            if not self._usable() or self._contract is None:
                reasons = [event.message for event in self._events if event.kind in ("lost", "reconnecting")]
                reason = f": {reasons[-1]}" if reasons else ""
                raise RoboserveError("unavailable", f"the policy was not ready within {timeout_s:g} s{reason}")
            return self._contract

    def begin(self, queue: ActionQueue, instruction: str, *, seed: Optional[int] = None) -> None:
        """Start an episode: a new session, reset on the server, whose chunks go into `queue`.

        Args:
            seed: request n carries seed + n, so that an episode can be repeated; None lets the policy draw.
        """
        with self._condition:
            self._episode = _Episode(queue, instruction, seed)
            self._session, self._offer, self._sent = None, None, 0
            self._failed_in_a_row = 0
            self._condition.notify_all()

    def end(self) -> None:
        """End the episode; whatever is still under way is dropped."""
        with self._condition:
            if self._episode is not None:
                self._episode.queue.begin_epoch()
            self._episode, self._session, self._offer = None, None, None

    def wants(self, anchor: int) -> bool:
        """Whether an observation whose chunk would start at tick `anchor` would be sent at once."""
        with self._condition:
            episode = self._episode
            if self._busy or self._state != "ready" or self._session is None or episode is None:
                return False
        return episode.queue.wants(anchor)

    def offer(self, observation: RobotObservation, *, anchor: int, observed_at: float) -> None:
        """Hand over an observation; one that waits to be sent is replaced. The arrays must not be written to again.

        Args:
            anchor: tick that row 0 of its chunk is for.
            observed_at: when it was taken, `time.monotonic()`.
        """
        with self._condition:
            if self._episode is None:
                return
            self._offer = _Offer(observation, anchor, observed_at, self._episode.queue.epoch)
            self._condition.notify_all()

    def drain(self) -> Tuple[List[RequestRecord], List[Event]]:
        """Return the requests and events since the last call, in order; their times are on `time.monotonic()`."""
        requests: List[RequestRecord] = []
        events: List[Event] = []
        while self._requests:
            requests.append(self._requests.popleft())
        while self._events:
            events.append(self._events.popleft())
        return requests, events

    def close(self) -> None:
        """End the thread and the connection."""
        with self._condition:
            self._state = "closed"
            client = self._client
            self._condition.notify_all()
        if client is not None:
            client.close()
        if self._thread.is_alive():
            self._thread.join(self._config.connect_timeout_s + 1.0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    # ---- everything below runs in the network's thread

    def _usable(self) -> bool:
        return self._state == "ready" and (self._episode is None or self._session is not None)

    def _run(self) -> None:
        while self._state not in ("refused", "closed"):
            client = self._connect()
            if client is None:
                return
            try:
                self._serve(client)
            except RoboserveError as error:
                self._lose(error)
            finally:
                client.close()

    def _connect(self) -> Optional[PolicyClient]:
        since, attempt = time.monotonic(), 0
        while self._state != "closed":
            client, error = self._try_to_open()
            if error is None:
                return client
            # A route may be missing for a moment while its server restarts, but not when it is first asked for.
            final = error.code in _NEVER_AGAIN or (error.code == "not_found" and self._contract is None)
            if final or time.monotonic() - since > self._config.give_up_s:
                self._refuse(error)
                return None
            pause = min(self._config.longest_pause_s, self._config.first_pause_s * 2.0 ** min(attempt, 16))
            pause *= random.SystemRandom().uniform(0.5, 1.0)
            attempt += 1
            text = f"attempt {attempt} failed, next in {pause:.2f} s: {error.message}"
            self._report("reconnecting", text, error.code)
            self._sleep(pause)
        return None

    def _try_to_open(self) -> Tuple[Optional[PolicyClient], Optional[RoboserveError]]:
        try:
            return self._open(), None
        except RoboserveError as error:
            return None, error

    def _open(self) -> PolicyClient:
        config = self._config
        client = PolicyClient(
            config.server,
            policy=config.policy,
            api_key=config.api_key,
            connect_timeout_s=config.connect_timeout_s,
            timeout_s=config.deadline_s + _GRACE_S,
        )
        try:
            self._accept(client.contract)
        except RoboserveError:
            client.close()
            raise
        with self._condition:
            if self._state == "closed":
                client.close()
                return client
            self._client = client
            self._state, self._session, self._offer = "ready", None, None
            self._condition.notify_all()
        return client

    def _accept(self, contract: PolicyContract) -> None:
        require_match(contract, self._interface)
        before, self._contract = self._contract, contract
        if before is None:
            self._report("connected", f"policy {contract.model!r} revision {contract.revision}")
            return
        same_weights = replace(
            contract, revision=before.revision, content_hash=before.content_hash, limits=before.limits
        )
        if same_weights != before:
            raise RoboserveError(
                "contract_mismatch",
                f"policy {before.model!r}: another policy took its place while the robot was running",
            )
        self._report("connected", f"policy {contract.model!r} revision {contract.revision}, as a new session")
        if contract.content_hash != before.content_hash:
            self._report("model_changed", f"revision {before.revision} became {contract.revision}")

    def _serve(self, client: PolicyClient) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(self._has_work, _IDLE_S)
                if self._state == "closed":
                    return
                episode, offer, session = self._episode, self._offer, self._session
                self._offer = None
                self._busy = offer is not None and session is not None
            try:
                client.poll()
                if client.draining:
                    self._report("draining", "the server is going away; connecting anew")
                    self._leave_session("lost")
                    return
                if episode is not None and session is None:
                    self._start_session(client, episode)
                elif episode is not None and session is not None and offer is not None:
                    self._request(client, episode, session, offer)
            finally:
                self._busy = False
            if self._state == "refused":
                return

    def _has_work(self) -> bool:
        waiting_for_session = self._episode is not None and self._session is None
        return self._state == "closed" or waiting_for_session or self._offer is not None

    def _start_session(self, client: PolicyClient, episode: _Episode) -> None:
        session = uuid.uuid4().hex
        try:
            client.reset(session, timeout_s=self._config.connect_timeout_s)
        except RoboserveError as error:
            # Without a reset the server's memory is not known, and so nothing may be asked of it.
            raise RoboserveError("unavailable", f"reset: {error.message}") from error
        episode.queue.begin_epoch()
        with self._condition:
            if self._episode is episode:
                self._session = session
            self._condition.notify_all()

    def _request(self, client: PolicyClient, episode: _Episode, session: str, offer: _Offer) -> None:
        if not episode.queue.wants(offer.anchor):
            return
        started = time.monotonic()
        record = RequestRecord(offer.anchor, "played", None, offer.observed_at, latency_ms=0.0, encode_ms=0.0)
        try:
            images = fit_images(
                client.contract, offer.observation.images, codec=self._config.codec, quality=self._config.quality
            )
            encoded = time.monotonic()
            size = sum(image.nbytes if hasattr(image, "nbytes") else len(image) for image in images.values())
            continuation = episode.queue.continuation(offer.anchor)
            record = replace(
                record,
                encode_ms=(encoded - started) * 1e3,
                request_bytes=size + offer.observation.state.nbytes,
                inference_delay=None if continuation is None else continuation.inference_delay,
            )
            left_s = self._config.deadline_s - (encoded - offer.observed_at)
            if left_s <= 0:
                raise RoboserveError("deadline_exceeded", "the observation was too old before it was sent")
            self._sent += 1
            reply = client.act(
                images=images,
                state=offer.observation.state,
                instruction=episode.instruction,
                session=session,
                deadline_ms=left_s * 1e3,
                adapter=self._config.adapter,
                options=self._options(client.contract, episode, continuation),
                timeout_s=left_s + _GRACE_S,
            )
        except RoboserveError as error:
            elapsed_ms = (time.monotonic() - offer.observed_at) * 1e3
            self._requests.append(replace(record, outcome=error.code, latency_ms=elapsed_ms))
            self._after_failure(client, error)
            return
        self._failed_in_a_row = 0
        self._store(episode.queue, offer, reply, record)

    def _options(self, contract: PolicyContract, episode: _Episode, continuation: Optional[Continuation]) -> ActOptions:
        config = self._config
        seeded = episode.seed is not None and "seed" in contract.supports
        options = ActOptions(
            seed=episode.seed + self._sent - 1 if seeded and episode.seed is not None else None,
            integration_steps=config.integration_steps,
            return_model_actions=True if "rtc" in contract.supports and config.leftover_from == "client" else None,
        )
        if continuation is None:
            return options
        return replace(
            options,
            inference_delay=continuation.inference_delay,
            leftover=continuation.leftover if config.leftover_from == "client" else None,
            executed=continuation.executed,
            execution_horizon=config.execution_horizon,
        )

    def _store(self, queue: ActionQueue, offer: _Offer, reply: ActReply, record: RequestRecord) -> None:
        now = time.monotonic()
        outcome, chunk_id = queue.put(
            reply.actions,
            epoch=offer.epoch,
            anchor=offer.anchor,
            observed_at=offer.observed_at,
            now=now,
            model_actions=reply.model_actions,
        )
        self._requests.append(
            replace(
                record,
                outcome=outcome,
                chunk_id=chunk_id,
                latency_ms=(now - offer.observed_at) * 1e3,
                round_trip_ms=reply.round_trip_ms,
                batch_size=reply.batch_size,
                timings=reply.timings,
                revision=reply.model.revision,
                actions=reply.actions,
            )
        )

    def _after_failure(self, client: PolicyClient, error: RoboserveError) -> None:
        if error.code in _RECONNECT:
            raise error
        self._report("request_failed", error.message, error.code)
        if error.code in _BAD_REQUEST:
            self._refuse(error)
        elif error.code == "deadline_exceeded":
            # Slow or dead? A server that is alive answers this at once, whatever its model is doing.
            try:
                client.ping(timeout_s=_PING_S)
            except RoboserveError as silent:
                raise RoboserveError("unavailable", f"the server does not answer: {silent.message}") from silent
        elif error.code not in _NOT_A_FAULT:
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= self._config.failures:
                self._refuse(error)
            else:
                self._sleep(min(0.5, 0.02 * 2.0**self._failed_in_a_row))

    def _lose(self, error: RoboserveError) -> None:
        if self._state != "closed":
            self._leave_session("lost")
            self._report("lost", error.message, error.code)

    def _leave_session(self, state: str) -> None:
        with self._condition:
            if self._state not in ("closed", "refused"):
                self._state = state
            self._session, self._offer, self._client = None, None, None
            self._condition.notify_all()

    def _refuse(self, error: RoboserveError) -> None:
        with self._condition:
            if self._state == "closed":
                return
            self._refusal, self._state = error, "refused"
            self._condition.notify_all()
        self._report("refused", error.message, error.code)

    def _report(self, kind: str, message: str, code: Optional[str] = None) -> None:
        self._events.append(Event(kind, time.monotonic(), message, code))

    def _sleep(self, seconds: float) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._state == "closed", seconds)
