from __future__ import annotations

import socket

import pytest
import yaml

from models.hamster.prompt import PathPrompt, write_prompt
from serving import preflight
from serving.auth import make_key
from serving.ports import free_port
from serving.preflight import run_checks
from tests.serving.platforms import application, configuration


@pytest.fixture
def write(tmp_path):
    def build(*applications, **changes):
        path = tmp_path / "platform.yaml"
        path.write_text(yaml.safe_dump({**configuration(free_port(), list(applications)), **changes}), "utf-8")
        return path

    return build


ZERO = ("zero", "ZeroPolicy")


def found(path, **arguments):
    return {check.name: check for check in run_checks(path, **arguments)}


def test_a_good_start_passes_everything(write):
    checks = found(write(application(*ZERO, route="/")))
    needed = {"versions", "haproxy", "configuration", "keys", "models", "port", "file descriptors", "shared memory"}
    assert set(checks) == needed
    failed = {name: check for name, check in checks.items() if not check.passed}
    assert not set(failed) - {"file descriptors", "shared memory"}, failed  # those are this machine's
    assert checks["keys"].finding == "no keys: loopback only"


def test_without_a_start_the_machine_is_left_out(write):
    assert not {"port", "file descriptors", "shared memory"} & set(found(write(application(*ZERO)), starting=False))


def test_a_port_that_is_taken_is_told(write):
    path = write(application(*ZERO))
    port = yaml.safe_load(path.read_text())["http_options"]["port"]
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        check = found(path)["port"]
    assert str(port) in check.finding
    assert "roboserve down" in check.mend
    assert found(path)["port"].passed


def test_a_wrong_configuration_ends_the_checks_with_its_lines(write):
    checks = found(write(application("zero", "ZeroPolicy", limits={"sessions": 0})))
    assert "line " in checks["configuration"].finding
    assert not checks["configuration"].passed
    assert "port" not in checks


def test_a_configuration_that_is_not_there(tmp_path):
    assert not found(tmp_path / "nothing.yaml")["configuration"].passed


@pytest.mark.parametrize(
    ("policy", "config", "words"),
    [
        ("NoPolicy", {}, "cannot be imported"),
        ("SlowPolicy", {"base_millis": 3}, "base_millis"),
        ("SlowPolicy", {"base_ms": "long"}, "base_ms"),
        ("ZeroPolicy", {"interface": {"image_sise": 3}}, "interface.image_sise"),
        ("ZeroPolicy", {"interface": {"action_kind": "torque"}}, "interface.action_kind"),
        ("ReplayPolicy", {}, "actions"),
    ],
)
def test_a_policy_that_could_not_be_made_is_told_before_the_start(write, policy, config, words):
    check = found(write(application("mine", policy, config=config)), starting=False)["models"]
    assert words in check.finding
    assert "policy.config" in check.mend


def test_a_checkpoint_that_is_not_there_or_not_whole_is_told_before_the_start(write, tmp_path):
    folder = tmp_path / "robometer-4b"
    reward = {"factory": "models.robometer.reward:RobometerReward", "config": {"checkpoint": str(folder)}}
    entry = {
        "name": "reward-robometer",
        "route_prefix": "/reward/robometer",
        "import_path": "serving.reward:build",
        "args": {"name": "robometer", "reward": reward},
    }
    path = write(application(*ZERO), entry)
    told = []
    for name in (None, "config.json", "robometer.json", "model.safetensors"):
        if name is not None:
            folder.mkdir(exist_ok=True)
            (folder / name).touch()
        check = found(path, starting=False)["models"]
        told.append(check.finding)
        assert check.passed or "reward.config.checkpoint" in check.mend
    assert "is not there" in told[0]
    assert "roboserve convert robometer" in told[1]
    assert "no weights" in told[2]
    assert check.passed


def test_what_a_path_service_asks_is_looked_for_before_the_start(write, tmp_path):
    folder = tmp_path / "vlm"
    engine = {"kind": "transformers", "checkpoint": str(folder)}
    vlm = {"name": "vlm", "route_prefix": "/v1", "import_path": "serving.vlm.app:build"}
    paths = {"name": "path", "route_prefix": "/path/drawn", "import_path": "serving.path:build"}
    paths["args"] = {"name": "drawn", "engine": {"kind": "app", "application": "vlm"}, "prompt": str(folder)}
    both = write({**vlm, "args": {"name": "base", "engine": engine}}, paths)
    assert "is not there" in found(both, starting=False)["models"].finding
    folder.mkdir()
    check = found(both, starting=False)["models"]
    assert "path_prompt.json" in check.finding
    assert "args.prompt" in check.mend
    write_prompt(folder, PathPrompt(template="{quest}", version="1"))
    assert found(both, starting=False)["models"].finding.startswith("2 with")
    alone = found(write(paths), starting=False)["models"]
    assert "'vlm' is no vision-language application here" in alone.finding


def test_keys_that_are_missing_wrong_or_open_to_others(write, tmp_path):
    keys = tmp_path / "keys.yaml"
    path = write(application(*ZERO, auth={"keys_file": str(keys)}))
    assert "cannot be read" in found(path, starting=False)["keys"].finding
    keys.write_text("keys: []", "utf-8")
    assert "no keys" in found(path, starting=False)["keys"].finding
    keys.write_text(yaml.safe_dump({"keys": [make_key("op", "admin").record.model_dump(mode="json")]}), "utf-8")
    keys.chmod(0o666)
    assert "chmod 600" in found(path, starting=False)["keys"].mend
    keys.chmod(0o600)
    check = found(path, starting=False)["keys"]
    assert (check.passed, check.finding) == (True, "1 key files")


def test_a_version_with_a_known_hole_is_refused(write, monkeypatch):
    monkeypatch.setitem(preflight.FLOORS, "pillow", "999.0")
    check = found(write(application(*ZERO)), starting=False)["versions"]
    assert "pillow" in check.mend
    assert "999.0" in check.mend


def test_too_few_descriptors_and_too_little_memory_are_told_with_the_mend(write, monkeypatch):
    monkeypatch.setattr(preflight.resource, "getrlimit", lambda _which: (1024, 1024))
    checks = found(write(application(*ZERO)))
    assert checks["file descriptors"].mend.startswith("ulimit -n ")
    assert "1024" in checks["file descriptors"].finding
