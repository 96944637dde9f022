"""What a path service counts beside what every service does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from serving.metrics import ServiceMetrics

if TYPE_CHECKING:
    from serving.path_planner import Plan

_POINTS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64)


class PathMetrics(ServiceMetrics):
    """Answers by what became of them, points of paths, tokens, kept paths; arguments as for `ServiceMetrics`."""

    def __init__(self, *, model: str, replica: str) -> None:
        super().__init__(family="path", model=model, replica=replica)
        names = tuple(self._labels)

        def counter(name: str, text: str, label: str) -> Counter:
            return Counter(f"roboserve_{name}", text, (*names, label), registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"roboserve_{name}", text, names, registry=self.registry).labels(*self._own)

        self._paths = counter("paths", "paths that were read, by decoding: structured or free", "decoding")
        self._unreadable = counter("path_failures", "answers that hold no path, by the parser's reason", "reason")
        self._issues = counter("path_issues", "paths with something odd, by what it is", "issue")
        self._tokens = counter("path_tokens", "tokens of the model by kind: prompt or answer", "kind")
        self._points = Histogram(
            "roboserve_path_points", "points of a path, simplified", names, registry=self.registry, buckets=_POINTS
        ).labels(*self._own)
        self._under_way = gauge("path_images_under_way", "images that wait for a path")
        self.kept = gauge("path_sessions", "paths kept for sessions")

    def on_path(self, plan: Plan, *, structured: bool) -> None:
        """Report a path."""
        self._paths.labels(*self._own, "structured" if structured else "free").inc()
        self._points.observe(len(plan.path))
        for code in plan.issues:
            self._issues.labels(*self._own, code).inc()

    def on_unreadable(self, reason: str) -> None:
        """Report an answer that holds no path."""
        self._unreadable.labels(*self._own, reason).inc()

    def on_said(self, *, prompt: int, answer: int) -> None:
        """Report an answer's tokens."""
        self._tokens.labels(*self._own, "prompt").inc(prompt)
        self._tokens.labels(*self._own, "answer").inc(answer)

    def on_under_way(self, images: int) -> None:
        """Report images that wait."""
        self._under_way.set(images)
