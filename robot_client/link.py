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
from dataclasses import replace
from typing import TYPE_CHECKING, Deque, List, Optional, Tuple

from clients.contract import PolicyContract, RobotInterface, require_match
from clients.errors import RoboserveError
from clients.policy import PolicyClient
from robot_client.exchange import GRACE_S, Exchange, Offer
from robot_client.link_config import LinkConfig
from robot_client.records import Event, RequestRecord

if TYPE_CHECKING:
    from typing_extensions import Self

    from robot_client.action_queue import ActionQueue
    from robot_client.planner import PlannedPath
    from robot_client.robot import RobotObservation

__all__ = ["LinkConfig", "PolicyLink"]

_NEVER_AGAIN = frozenset({"unauthenticated", "forbidden", "contract_mismatch", "invalid_request"})
_BAD_REQUEST = frozenset({"not_found", "too_large"}) | _NEVER_AGAIN
_RECONNECT = frozenset({"unavailable", "malformed"})
_NOT_A_FAULT = frozenset({"superseded", "deadline_exceeded"})
_PING_S = 2.0
_IDLE_S = 0.1
_KEPT = 10_000


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
        self._exchange: Optional[Exchange] = None
        self._session: Optional[str] = None
        self._offer: Optional[Offer] = None
        self._busy = False
        self._requests: Deque[RequestRecord] = deque(maxlen=_KEPT)
        self._events: Deque[Event] = deque(maxlen=_KEPT)
        self._client: Optional[PolicyClient] = None
        self._failed_in_a_row = 0
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

    def begin(
        self,
        queue: ActionQueue,
        instruction: str,
        *,
        seed: Optional[int] = None,
        path: Optional[PlannedPath] = None,
    ) -> None:
        """Start an episode: a new session, reset on the server, whose chunks go into `queue`.

        Args:
            seed: request n carries seed + n, so that an episode can be repeated; None lets the policy draw.
            path: drawn on every observation's image before it is sent, in the network's thread.
        """
        with self._condition:
            self._exchange = Exchange(queue, instruction, seed, self._config, path=path)
            self._session, self._offer = None, None
            self._failed_in_a_row = 0
            self._condition.notify_all()

    def follow(self, queue: ActionQueue, path: PlannedPath) -> None:
        """Draw another path from the next request on, if the episode with that queue still runs."""
        with self._condition:
            if self._exchange is not None and self._exchange.queue is queue:
                self._exchange.follow(path)

    def end(self) -> None:
        """End the episode; whatever is still under way is dropped."""
        with self._condition:
            if self._exchange is not None:
                self._exchange.queue.begin_epoch()
            self._exchange, self._session, self._offer = None, None, None

    def wants(self, anchor: int) -> bool:
        """Whether an observation whose chunk would start at tick `anchor` would be sent at once."""
        with self._condition:
            exchange = self._exchange
            if self._busy or self._state != "ready" or self._session is None or exchange is None:
                return False
        return exchange.queue.wants(anchor)

    def offer(self, observation: RobotObservation, *, anchor: int, observed_at: float) -> None:
        """Hand over an observation; one that waits to be sent is replaced. The arrays must not be written to again.

        Args:
            anchor: tick that row 0 of its chunk is for.
            observed_at: when it was taken, `time.monotonic()`.
        """
        with self._condition:
            if self._exchange is None:
                return
            self._offer = Offer(observation, anchor, observed_at, self._exchange.queue.epoch)
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
        return self._state == "ready" and (self._exchange is None or self._session is not None)

    def _run(self) -> None:
        while self._state not in ("refused", "closed"):
            client = self._connect()
            if client is None:
                return
            try:
                self._serve(client)
            except RoboserveError as error:
                self._lose(error)
            except Exception as error:  # noqa: BLE001 - a thread that ends unheard would leave the robot waiting for ever
                self._refuse(RoboserveError("internal", f"link: {type(error).__name__}: {error}"))
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
            timeout_s=config.deadline_s + GRACE_S,
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
            contract,
            revision=before.revision,
            content_hash=before.content_hash,
            adapters=before.adapters,
            limits=before.limits,
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
                exchange, offer, session = self._exchange, self._offer, self._session
                self._offer = None
                self._busy = offer is not None and session is not None
            try:
                client.poll()
                if client.draining:
                    self._report("draining", "the server is going away; connecting anew")
                    self._leave_session("lost")
                    return
                if exchange is not None and session is None:
                    self._start_session(client, exchange)
                elif exchange is not None and session is not None and offer is not None:
                    self._request(client, exchange, session, offer)
            finally:
                self._busy = False
            if self._state == "refused":
                return

    def _has_work(self) -> bool:
        waiting_for_session = self._exchange is not None and self._session is None
        return self._state == "closed" or waiting_for_session or self._offer is not None

    def _start_session(self, client: PolicyClient, exchange: Exchange) -> None:
        session = uuid.uuid4().hex
        try:
            client.reset(session, timeout_s=self._config.connect_timeout_s)
        except RoboserveError as error:
            # Without a reset the server's memory is not known, and so nothing may be asked of it.
            raise RoboserveError("unavailable", f"reset: {error.message}") from error
        exchange.queue.begin_epoch()
        with self._condition:
            if self._exchange is exchange:
                self._session = session
            self._condition.notify_all()

    def _request(self, client: PolicyClient, exchange: Exchange, session: str, offer: Offer) -> None:
        if not exchange.queue.wants(offer.anchor):
            return
        record, error = exchange.ask(client, session, offer)
        if self._exchange is exchange:  # a request that outlived its episode belongs in no report
            self._requests.append(record)
        if error is None:
            self._failed_in_a_row = 0
        else:
            self._after_failure(client, error)

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
