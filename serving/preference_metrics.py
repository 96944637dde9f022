"""What a preference service counts beside what every service does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from serving.metrics import ServiceMetrics

if TYPE_CHECKING:
    from models.preference.contract import Judgement, Usage

_NAMES = {0: "first", 1: "second", -1: "tie"}


class PreferenceMetrics(ServiceMetrics):
    """Pairs by label and by where the label came from, tokens, and what a model said that was no label."""

    def __init__(self, *, model: str, replica: str) -> None:
        super().__init__(family="preference", model=model, replica=replica)
        names = tuple(self._labels)

        def counter(name: str, text: str, label: str) -> Counter:
            return Counter(f"roboserve_{name}", text, (*names, label), registry=self.registry)

        def single(name: str, text: str) -> Counter:
            return Counter(f"roboserve_{name}", text, names, registry=self.registry).labels(*self._own)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"roboserve_{name}", text, names, registry=self.registry).labels(*self._own)

        self._by_label = counter("preference_labels", "pairs by label: first, second, tie or abstained", "label")
        self._by_source = counter("preference_sources", "pairs by source: asked, cached, joined or alike", "source")
        self._tokens = counter("preference_tokens", "tokens of the model by kind: prompt or answer", "kind")
        self._calls = single("preference_calls", "questions put to the model")
        self._unparsed = single("preference_unparsed", "answers that were no label")
        self._disagreed = single("preference_order_disagreements", "pairs whose two orders favour different sides")
        self._under_way = gauge("preference_pairs_under_way", "pairs that wait for a label")
        self._kept = gauge("preference_cache_bytes", "labels kept, in bytes")

    def on_pair(self, judgement: Judgement, source: str) -> None:
        """Report one labelled pair."""
        self._by_label.labels(*self._own, "abstained" if judgement.abstained else _NAMES[judgement.label]).inc()
        self._by_source.labels(*self._own, source).inc()
        given, swapped = judgement.given, judgement.swapped
        if given is not None and swapped is not None and (given[0] - given[1]) * (swapped[0] - swapped[1]) < 0:
            self._disagreed.inc()

    def on_asked(self, usage: Usage, *, unparsed: int) -> None:
        """Report what a question that was really put to the model took."""
        self._calls.inc(usage.calls)
        self._tokens.labels(*self._own, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(*self._own, "answer").inc(usage.answer_tokens)
        self._unparsed.inc(unparsed)

    def on_state(self, *, under_way: int, kept: int) -> None:
        """Report pairs under way and bytes kept."""
        self._under_way.set(under_way)
        self._kept.set(kept)
