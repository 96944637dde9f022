"""What an operator sees of one replica, in Prometheus terms.

Each replica counts in its own registry (a few microseconds a request) and shows it at its `/metrics` route. A thread
copies the samples to Ray's metrics every few seconds, so that a scrape of the nodes sees all
replicas without asking each.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128)


class ServiceMetrics:
    """Counters, gauges and histograms of one served model on one replica.

    Args:
        family: "policy", "reward", "preference" or "path".
        model: name of the served model.
        replica: id of the replica.
    """

    def __init__(self, *, family: str, model: str, replica: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"family": family, "model": model, "replica": replica}
        names = tuple(self._labels)
        own = tuple(self._labels.values())

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"roboserve_{name}", text, names, registry=self.registry).labels(*own)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"roboserve_{name}", text, names, registry=self.registry, buckets=buckets).labels(*own)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"roboserve_{name}", text, (*names, "code"), registry=self.registry)

        self._queue = gauge("queue_depth", "requests waiting for a forward")
        self.sessions = gauge("sessions", "open websocket sessions")
        self._batch = histogram("batch_size", "requests that rode in one forward", _BATCH)
        self._forward = histogram("forward_seconds", "time of one batched forward", _SECONDS)
        self._total = histogram("request_seconds", "receipt to reply", _SECONDS)
        self._requests = counter("requests", "requests by outcome ('ok', 'abandoned' or an error code)")
        self._refusals = counter("refusals", "requests refused or dropped before their forward")
        self._misses = Counter(
            "roboserve_deadline_misses", "requests whose deadline had passed", names, registry=self.registry
        ).labels(*own)
        self._own = own

    def on_queue(self, depth: int) -> None:
        """Report the items waiting."""
        self._queue.set(depth)

    def on_drop(self, code: str) -> None:
        """Report an item refused or dropped before its forward."""
        self._refusals.labels(*self._own, code).inc()
        if code == "deadline_exceeded":
            self._misses.inc()

    def on_batch(self, size: int, forward_s: float) -> None:
        """Report one forward."""
        self._batch.observe(size)
        self._forward.observe(forward_s)

    def on_request(self, code: str, total_s: float) -> None:
        """Report one request: `code` is "ok", an error code, or "abandoned" where the peer left before the answer."""
        self._requests.labels(*self._own, code).inc()
        self._total.observe(total_s)

    @contextmanager
    def counted(self, received: float) -> Iterator[None]:
        """Count the request that the block answers, by its outcome; `received`: `time.perf_counter` at receipt."""
        code = "ok"
        try:
            yield
        except RoboserveError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            code = "abandoned"
            raise
        except Exception:
            code = "internal"
            raise
        finally:
            self.on_request(code, time.perf_counter() - received)

    def text(self) -> bytes:
        """Return the Prometheus text form."""
        return generate_latest(self.registry)


class PolicyMetrics(ServiceMetrics):
    """What a policy service counts beside: who gets which revision, and what was refused; arguments as before."""

    def __init__(self, *, model: str, replica: str) -> None:
        super().__init__(family="policy", model=model, replica=replica)
        names = tuple(self._labels)
        refused = Counter(
            "roboserve_revisions_refused", "revisions that were not fit to be served", names, registry=self.registry
        )
        self._refused = refused.labels(*self._own)
        loaded = Gauge("roboserve_revisions_loaded", "revisions in memory", names, registry=self.registry)
        self._loaded = loaded.labels(*self._own)
        self._by_revision = Gauge(
            "roboserve_revision_sessions", "sessions by revision", (*names, "revision"), registry=self.registry
        )

    def on_refused_revision(self) -> None:
        """Report a revision, or an index of revisions, that is not fit to be served."""
        self._refused.inc()

    def on_revisions(self, sessions: Mapping[str, int], *, loaded: int) -> None:
        """Report sessions by revision, and how many revisions are in memory."""
        self._loaded.set(loaded)
        self._by_revision.clear()
        for revision, number in sessions.items():
            self._by_revision.labels(*self._own, revision).set(number)


class RewardMetrics(ServiceMetrics):
    """What a reward service counts beside: frames encoded and frames re-used; arguments as for `ServiceMetrics`."""

    def __init__(self, *, model: str, replica: str) -> None:
        super().__init__(family="reward", model=model, replica=replica)
        names = tuple(self._labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"roboserve_{name}", text, names, registry=self.registry).labels(*self._own)

        self._encoded = counter("frames_encoded", "frames that went through the vision tower")
        self._reused = counter("frames_reused", "frames shown whose features were there already")
        kept = Gauge("roboserve_feature_cache_bytes", "features kept", names, registry=self.registry)
        self._kept = kept.labels(*self._own)
        streams = Gauge("roboserve_streams", "open streaming sessions", names, registry=self.registry)
        self.streams = streams.labels(*self._own)

    def on_frames(self, *, encoded: int, reused: int, kept: int) -> None:
        """Report the frames of one forward, and the bytes that the cache now keeps."""
        self._encoded.inc(encoded)
        self._reused.inc(reused)
        self._kept.set(kept)


class VlmMetrics(ServiceMetrics):
    """What a vision-language service counts beside: tokens, and the wait for the first; arguments as before."""

    def __init__(self, *, model: str, replica: str) -> None:
        super().__init__(family="vlm", model=model, replica=replica)
        names = tuple(self._labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"roboserve_{name}", text, names, registry=self.registry).labels(*self._own)

        self._prompt = counter("prompt_tokens", "tokens of prompts, images included")
        self._answer = counter("answer_tokens", "tokens of answers")
        first = Histogram(
            "roboserve_first_token_seconds", "request to first token", names, registry=self.registry, buckets=_SECONDS
        )
        self._first = first.labels(*self._own)

    def on_first_token(self, seconds: float) -> None:
        """Report how long a caller waited for the first token."""
        self._first.observe(seconds)

    def on_tokens(self, *, prompt: int, answer: int) -> None:
        """Report a finished answer."""
        self._prompt.inc(prompt)
        self._answer.inc(answer)


class RayMetricsBridge:
    """Copies a registry's samples to Ray's per-node exporter, from a daemon thread.

    Args:
        registry: where the samples are.
        interval_s: seconds between copies.
    """

    def __init__(self, registry: CollectorRegistry, *, interval_s: float = 5.0) -> None:
        self._registry = registry
        self._interval_s = interval_s
        self._gauges: dict[str, Any] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-bridge", daemon=True)

    def start(self) -> None:
        """Start copying."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; returns when the thread has ended."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            for family in self._registry.collect():
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        self._gauge(sample.name, sample.labels).set(sample.value, tags=dict(sample.labels))

    def _gauge(self, name: str, labels: Mapping[str, str]) -> Any:
        from ray.util.metrics import Gauge as RayGauge

        if name not in self._gauges:
            self._gauges[name] = RayGauge(name, description="copied from the replica", tag_keys=tuple(labels))
        return self._gauges[name]
