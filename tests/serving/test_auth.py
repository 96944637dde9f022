from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clients.errors import RoboserveError
from serving.auth import KeyRecord, KeyRing, Principal, is_loopback, make_key

NOW = datetime.now(UTC)


def bearer(secret: str, scheme: str = "Bearer") -> dict[bytes, bytes]:
    return {b"authorization": f"{scheme} {secret}".encode()}


def ring(*keys) -> KeyRing:
    return KeyRing(tuple(key.record for key in keys))


def code_of(keys: KeyRing, headers, peer="10.0.0.1") -> str:
    with pytest.raises(RoboserveError) as caught:
        keys.identify(headers, peer)
    return caught.value.code


def test_a_key_is_known_by_its_secret_alone_and_the_secret_is_nowhere_else():
    key = make_key("arm", "robot", policy="pick")
    assert key.secret not in key.record.model_dump_json()
    assert key.secret.startswith("rsk_")
    assert len(key.secret) >= 40
    principal = ring(key).identify(bearer(key.secret), "10.0.0.1")
    assert (principal.id, principal.record) == ("arm", key.record)
    assert make_key("arm", "robot", policy="pick").secret != key.secret


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Api-Key", "api-key"])
def test_schemes_that_are_understood(scheme):
    key = make_key("op", "admin")
    assert ring(key).identify(bearer(key.secret, scheme), None).id == "op"


def test_what_is_no_key():
    key = make_key("op", "admin")
    keys = ring(key)
    for headers in ({}, bearer(""), bearer("wrong"), bearer(key.secret, "Basic"), {b"authorization": b"\xff\xfe"}):
        assert code_of(keys, headers) == "unauthenticated"
    assert code_of(keys, bearer(key.record.sha256)) == "unauthenticated"  # the hash at rest opens nothing


@given(st.binary(max_size=60))
def test_no_bytes_in_the_header_are_anything_but_refused(value):
    assert code_of(ring(make_key("op", "admin")), {b"authorization": value}) == "unauthenticated"


def test_time_ends_a_key():
    late = make_key("old", "admin", expires=NOW - timedelta(seconds=1))
    soon = make_key("new", "admin", expires=NOW + timedelta(hours=1))
    keys = ring(late, soon)
    assert code_of(keys, bearer(late.secret)) == "unauthenticated"
    assert keys.identify(bearer(soon.secret), None).id == "new"
    keys.identify(bearer(soon.secret), None).require_unexpired()
    Principal(id="loopback", record=None).require_unexpired()


def test_two_live_keys_of_one_owner_rotate_without_a_gap():
    old, new = (make_key("arm", "robot", policy="pick") for _ in range(2))
    assert {ring(old, new).identify(bearer(key.secret), None).id for key in (old, new)} == {"arm"}


SCOPES = {
    ("robot", "policy", "pick"): True,
    ("robot", "policy", "place"): False,
    ("robot", "reward", "pick"): False,
    ("job", "policy", "pick"): False,
    ("job", "reward", "any"): True,
    ("job", "preference", "any"): True,
    ("job", "path", "any"): True,
    ("admin", "policy", "pick"): True,
    ("admin", "reward", "any"): True,
}


@pytest.mark.parametrize("case", SCOPES, ids="-".join)
def test_scopes(case):
    role, family, model = case
    key = make_key("k", role, policy="pick" if role == "robot" else None)
    principal = Principal(id="k", record=key.record)
    assert principal.allows(family, model) is SCOPES[case]
    assert principal.operates is (role == "admin")


def test_a_robot_key_names_its_policy_and_no_other_key_does():
    with pytest.raises(ValidationError, match="policy"):
        make_key("arm", "robot")
    with pytest.raises(ValidationError, match="policy"):
        make_key("job", "job", policy="pick")


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a/b", "-a", "x" * 65, "\x1b[31m"])
def test_a_name_that_could_forge_a_log_line_or_a_session_is_refused(name):
    with pytest.raises(ValidationError):
        make_key(name, "admin")


def test_an_open_ring_serves_this_machine_only():
    keys = KeyRing()
    assert keys.open
    assert keys.identify({}, "127.0.0.1").allows("policy", "any")
    for peer in ("10.0.0.1", "::ffff:10.0.0.1", None, "example.org"):
        assert code_of(keys, {}, peer) == "forbidden"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "", None])  # noqa: S104
def test_not_loopback(host):
    assert not is_loopback(host)


def write(tmp_path, content) -> KeyRing:
    path = tmp_path / "keys.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), "utf-8")
    return KeyRing.load(path)


def test_a_key_file_is_read(tmp_path):
    key = make_key("arm", "robot", policy="pick", expires=NOW + timedelta(days=1))
    keys = write(tmp_path, {"keys": [key.record.model_dump(mode="json")]})
    assert keys.identify(bearer(key.secret), "10.0.0.1").record == key.record
    assert KeyRing.load(None).open


HASH = "ab" * 32


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"keys": []}, "no keys"),
        ({}, "keys"),
        ("", "key file"),
        ("keys: [", "key file"),
        ("keys: {a: 1}", "keys"),
        ({"keys": [{"id": "a", "role": "root", "sha256": HASH}]}, "keys.0.role"),
        ({"keys": [{"id": "a", "role": "admin", "sha256": "short"}]}, "keys.0.sha256"),
        ({"keys": [{"id": "a", "role": "admin", "sha256": HASH, "secret": "x"}]}, "keys.0.secret"),
        ({"keys": [{"id": "a", "role": "admin", "sha256": HASH, "expires": "2030-01-01T00:00:00"}]}, "keys.0.expires"),
        ({"keys": [{"id": "a", "role": "robot", "sha256": HASH}]}, "robot key names one policy"),
        ("!!python/object/apply:os.system ['true']", "key file"),
    ],
)
def test_a_wrong_key_file_is_refused_by_entry_and_never_quotes_a_hash(tmp_path, content, words):
    with pytest.raises(ValueError, match=words) as caught:
        write(tmp_path, content)
    assert HASH not in str(caught.value)


def test_a_missing_key_file_is_no_open_server(tmp_path):
    with pytest.raises(ValueError, match=r"keys\.yaml: cannot be read"):
        KeyRing.load(tmp_path / "keys.yaml")


def test_a_record_knows_no_other_entries():
    with pytest.raises(ValidationError):
        KeyRecord.model_validate({"id": "a", "role": "admin", "sha256": HASH, "polcy": "x"})
