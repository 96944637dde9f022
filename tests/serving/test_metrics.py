from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import RayMetricsBridge, ServiceMetrics


def values(metrics: ServiceMetrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            key = sample.name + "".join(f" {k}={v}" for k, v in sorted(sample.labels.items()) if k in ("code", "le"))
            found[key] = sample.value
            assert sample.labels["family"] == "reward"
            assert sample.labels["model"] == "meter"
            assert sample.labels["replica"] == "r-1"
    return found


def test_what_is_reported_is_what_is_shown():
    metrics = ServiceMetrics(family="reward", model="meter", replica="r-1")
    metrics.on_queue(3)
    metrics.sessions.set(2)
    for size in (1, 4, 4):
        metrics.on_batch(size, 0.02)
    metrics.on_request("ok", 0.03)
    metrics.on_request("overloaded", 0.001)
    for code in ("overloaded", "deadline_exceeded", "deadline_exceeded"):
        metrics.on_drop(code)
    found = values(metrics)
    assert found["roboserve_queue_depth"] == 3
    assert found["roboserve_sessions"] == 2
    assert found["roboserve_batch_size_count"] == 3
    assert found["roboserve_batch_size_sum"] == 9
    assert found["roboserve_batch_size_bucket le=1.0"] == 1
    assert found["roboserve_forward_seconds_count"] == 3
    assert found["roboserve_requests_total code=ok"] == 1
    assert found["roboserve_requests_total code=overloaded"] == 1
    assert found["roboserve_refusals_total code=deadline_exceeded"] == 2
    assert found["roboserve_deadline_misses_total"] == 2
    assert found["roboserve_request_seconds_count"] == 2


def test_two_models_in_one_process_count_apart():
    one, other = (ServiceMetrics(family="reward", model="meter", replica="r-1") for _ in range(2))
    one.on_queue(5)
    assert values(other)["roboserve_queue_depth"] == 0


def test_the_bridge_copies_all_but_creation_times_and_stops(monkeypatch):
    metrics = ServiceMetrics(family="reward", model="meter", replica="r-1")
    metrics.on_request("ok", 0.1)
    bridge = RayMetricsBridge(metrics.registry, interval_s=0.01)
    copied: dict[tuple, float] = {}

    class Gauge:
        def __init__(self, name):
            self.name = name

        def set(self, value, tags):
            copied[self.name, tags.get("code")] = value

    monkeypatch.setattr(bridge, "_gauge", lambda name, _labels: Gauge(name))
    bridge.start()
    while ("roboserve_requests_total", "ok") not in copied:
        assert bridge._thread.is_alive()
    bridge.stop()
    assert not bridge._thread.is_alive()
    assert copied["roboserve_requests_total", "ok"] == 1
    assert not any(name.endswith("_created") for name, _ in copied)
