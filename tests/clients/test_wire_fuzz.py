from __future__ import annotations

from clients.errors import RoboserveError
from clients.wire import decode
from tests.clients import fuzz_wire


def test_twenty_thousand_mutated_messages_are_read_or_refused_within_the_memory_cap() -> None:
    found = fuzz_wire.run(20_000, seed=20)
    assert found.crashes == []
    assert found.broken == []
    assert found.worst_allocation <= 1.0
    assert found.read > 500
    assert found.refused["malformed"] > 5_000
    assert found.refused["too_large"] > 100


def test_the_fuzzer_starts_from_good_messages_and_repeats_itself() -> None:
    messages = fuzz_wire.corpus()
    for message in messages:
        decode(message)
    assert [fuzz_wire.mutated(1, i, messages) for i in range(50)] == [
        fuzz_wire.mutated(1, i, messages) for i in range(50)
    ]
    assert any(fuzz_wire.mutated(1, i, messages) not in messages for i in range(50))


def test_the_fuzzer_sees_a_decoder_that_crashes(monkeypatch) -> None:
    def careless(data: bytes) -> object:
        if data[:1] == b"\xff":
            raise RoboserveError("malformed", "message: no")
        raise IndexError("out of range")

    monkeypatch.setattr(fuzz_wire, "decode", careless)
    monkeypatch.setattr(fuzz_wire, "_load_lazy_parts", lambda: None)
    assert len(fuzz_wire.run(50).crashes) > 40
