from __future__ import annotations

import re

import pytest
import yaml

from serving.config import ConfigError, LimitSettings, PolicyArgs, args_model, load_config
from serving.yaml_lines import Lines, repeated_keys

EVERYWHERE = "0.0.0.0"  # noqa: S104  what must be refused

GOOD = """
proxy_location: HeadOnly
http_options:
  host: 127.0.0.1
  port: 8123
logging_config:
  encoding: JSON
applications:
  - name: policy-one
    route_prefix: /
    import_path: serving.policy:build
    args:
      name: one
      policy:
        factory: models.policies.scripted:ZeroPolicy
      limits:
        sessions: 7
  - name: policy-two
    route_prefix: /policy/two
    import_path: serving.policy:build
    args:
      name: two
      policy:
        factory: models.policies.scripted:SlowPolicy
        config:
          base_ms: 10
"""


@pytest.fixture
def load(tmp_path):
    def read(text: str | bytes):
        path = tmp_path / "platform.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_config(path)

    return read


def test_a_good_file_is_read(load):
    config = load(GOOD)
    assert (config.host, config.port) == ("127.0.0.1", 8123)
    assert list(config.args) == ["policy-one", "policy-two"]
    one = config.args["policy-one"]
    assert isinstance(one, PolicyArgs)
    assert one.limits == LimitSettings(sessions=7)
    assert config.raw == yaml.safe_load(GOOD)


def test_another_port_is_another_configuration(load):
    config = load(GOOD)
    assert config.with_port(9000).port == 9000
    assert config.port == 8123
    assert config.with_port(9000).raw["http_options"]["host"] == "127.0.0.1"


@pytest.mark.parametrize("name", ["embedded.yaml", "cluster.yaml"])
def test_the_configurations_that_ship_are_good(repository, name):
    config = load_config(repository / "serving" / "configs" / name)
    assert config.args


def line_of(text: str, words: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if words in line)


WRONG = {
    "unknown key of ours": ("sessions: 7", "session: 7", "session: 7", ["args.limits.session", "not permitted"]),
    "unknown key of Ray's": ("encoding: JSON", "encodin: JSON", "encodin", ["did you mean 'encoding'"]),
    "unknown key at the top": ("http_options:", "http_option:", "http_option:", ["did you mean 'http_options'"]),
    "out of range": ("sessions: 7", "sessions: 0", "sessions: 0", ["limits.sessions", "greater than or equal to 1"]),
    "of another type": ("sessions: 7", "sessions: many", "sessions: many", ["limits.sessions", "'many'"]),
    "missing": ("      name: one\n", "", "args:", ["args.name", "required"]),
    "bad name": ("name: one", "name: One Two", "name: One Two", ["args.name", "pattern"]),
    "bad factory": ("scripted:ZeroPolicy", "scripted", "factory: models.policies.scripted", ["policy.factory"]),
    "no such builder": (
        "serving.policy:build\n    args:\n      name: one",
        "serving.nothing:build\n    args:\n      name: one",
        "serving.nothing",
        ["cannot be imported"],
    ),
    "no builder": (
        "serving.policy:build\n    args:\n      name: one",
        "serving.policy:PolicyArgs\n    args:\n      name: one",
        "PolicyArgs",
        ["pydantic"],
    ),
    "Ray's own value": ("port: 8123", "port: none", "port: none", ["http_options.port"]),
    "route of another name": ("/policy/two", "/policy/too", "route_prefix: /policy/too", ["'/policy/too'", "'two'"]),
    "two routes alike": ("/policy/two", "/", "applications", ["route"]),
    "two names alike": ("policy-two", "policy-one", "applications", ["name"]),
    "a key twice": ("        sessions: 7", "        sessions: 7\n        sessions: 9", "sessions: 9", ["already"]),
    "open to the world": ("host: 127.0.0.1", "host: 0.0.0.0", "host: 0.0.0.0", [EVERYWHERE, "policy-one", "keys_file"]),
    "open by default": ("  host: 127.0.0.1\n", "", "http_options", [EVERYWHERE, "keys_file"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_with_its_line_and_what_is_allowed(load, case):
    old, new, where, words = WRONG[case]
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    with pytest.raises(ConfigError) as caught:
        load(text)
    problems = caught.value.problems
    told = "\n".join(map(str, problems))
    assert all(word in told for word in words), told
    assert line_of(text, where) in {problem.line for problem in problems}, told
    assert str(caught.value).startswith("platform.yaml: line ")


def test_all_that_is_wrong_is_told_at_once_in_order(load):
    text = (
        GOOD.replace("sessions: 7", "sessions: 0")
        .replace("encoding: JSON", "encodin: JSON")
        .replace("base_ms", "bse_ms")
    )
    with pytest.raises(ConfigError) as caught:
        load(text)
    lines = [problem.line for problem in caught.value.problems]
    assert len(lines) >= 2
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just text",
        "- a\n- b",
        "a: [1",
        "a: b: c",
        "\tx: 1",
        b"\xff\xfe\x00",
        b"a: \x00",
        "!!python/object/apply:os.system ['x']",
    ],
)
def test_a_file_that_is_no_map_is_refused_with_a_line(load, text):
    with pytest.raises(ConfigError, match=r"line [12]: "):
        load(text)


@pytest.mark.parametrize("applications", ["7", "[7]", "[{}]", "[{name: a}]", "{a: 1}", "null", "[[]]"])
def test_applications_of_another_shape(load, applications):
    with pytest.raises(ConfigError, match="applications"):
        load(f"http_options: {{host: 127.0.0.1}}\napplications: {applications}\n")


def test_keys_make_it_possible_to_be_reached_from_elsewhere(load):
    text = GOOD.replace("host: 127.0.0.1", "host: 0.0.0.0")
    text = re.sub(r"      policy:\n", "      auth: {keys_file: /etc/keys.yaml}\n      policy:\n", text)
    assert load(text).host == EVERYWHERE


def test_what_args_a_builder_takes():
    assert args_model("serving.policy:build") is PolicyArgs
    assert args_model("serving.policy.build") is PolicyArgs


def test_lines_of_paths_that_are_there_only_in_part():
    lines = Lines(yaml.compose("a:\n  b:\n    - c: 1\n"))
    assert [lines.of(path) for path in ((), ("a",), ("a", "b"), ("a", "b", 0, "c"), ("a", "x"), ("a", "b", 5))] == [
        1,
        1,
        2,
        3,
        1,
        2,
    ]


def test_repeated_keys_at_any_depth():
    node = yaml.compose("a: 1\nb:\n  - c: 1\n    c: 2\na: 3\n")
    assert sorted(repeated_keys(node)) == [(4, ("b", 0, "c")), (5, ("a",))]
