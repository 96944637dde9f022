"""The command line, through its own process as a user runs it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serving.auth import KeyRing
from serving.ports import free_port

ROOT = Path(__file__).parent.parent.parent
ZERO = """
proxy_location: HeadOnly
http_options: {host: 127.0.0.1, port: %d}
applications:
  - name: policy-zero
    route_prefix: /
    import_path: serving.policy:build
    args:
      name: zero
      policy: {factory: "models.policies.scripted:ZeroPolicy"}
"""


def roboserve(*arguments: str, state: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ROBOSERVE_STATE_DIR": str(state), "COLUMNS": "200"}
    command = [sys.executable, "-m", "roboserve", *arguments]
    return subprocess.run(
        command, env=environment, cwd=state, capture_output=True, text=True, check=False, timeout=timeout
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "zero.yaml"
    path.write_text(ZERO % free_port(), "utf-8")
    return path


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys; sys.argv = ['roboserve', '--help']\n"
        "from roboserve.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'ray', 'torch', 'transformers', 'numpy', 'fastapi'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_manifests_are_rendered_with_settings_of_a_cluster(tmp_path: Path) -> None:
    settings = tmp_path / "lab.yaml"
    settings.write_text("name: lab", "utf-8")
    done = roboserve("k8s", "render", "--settings", str(settings), state=tmp_path)
    assert done.returncode == 0, done.stderr
    (service,) = [item for item in yaml.safe_load_all(done.stdout) if item["kind"] == "RayService"]
    assert service["metadata"]["name"] == "lab"


@pytest.mark.parametrize(
    ("flag", "text", "words"),
    [
        ("--settings", "nmae: lab", ["nmae", "not permitted"]),
        ("--settings", "a: [", ["lab.yaml", "not YAML"]),
        ("--config", "applications: 7", ["lab.yaml", "applications"]),
        ("--config", ZERO % 8000, ["http_options.host is", "in a pod"]),
    ],
)
def test_manifests_that_cannot_be_made_are_refused_in_a_sentence(
    tmp_path: Path, flag: str, text: str, words: list[str]
) -> None:
    wrong = tmp_path / "lab.yaml"
    wrong.write_text(text, "utf-8")
    done = roboserve("k8s", "render", flag, str(wrong), state=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr


def test_a_new_key_is_shown_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    done = roboserve("keys", "new", "arm-1", "--role", "robot", "--policy", "zero", state=tmp_path)
    assert done.returncode == 0, done.stderr
    secret = done.stdout.strip()
    file = tmp_path / "keys.yaml"
    assert secret not in file.read_text("utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    principal = KeyRing.load(file).identify({b"authorization": f"Bearer {secret}".encode()}, None)
    assert principal.id == "arm-1"
    assert principal.allows("policy", "zero")
    assert not principal.allows("policy", "other")


def test_a_robot_key_without_a_policy_and_a_second_key_of_one_name_are_refused(tmp_path: Path) -> None:
    assert roboserve("keys", "new", "arm-1", "--role", "robot", state=tmp_path).returncode == 2
    assert roboserve("keys", "new", "ops", "--role", "admin", state=tmp_path).returncode == 0
    again = roboserve("keys", "new", "ops", "--role", "admin", state=tmp_path)
    assert again.returncode == 2
    assert len(yaml.safe_load((tmp_path / "keys.yaml").read_text("utf-8"))["keys"]) == 1


def test_preflight_names_the_line_of_a_wrong_key(tmp_path: Path, config: Path) -> None:
    config.write_text(config.read_text("utf-8").replace("name: zero", "nme: zero"), "utf-8")
    done = roboserve("preflight", "-c", str(config), state=tmp_path)
    assert done.returncode == 2
    assert "applications.0.args.nme" in done.stdout
    assert "line 9" in done.stdout


def test_without_a_platform_the_commands_say_so(tmp_path: Path) -> None:
    assert "No platform runs" in roboserve("down", state=tmp_path).stdout
    address = f"127.0.0.1:{free_port()}"
    status = roboserve("status", "--server", f"http://{address}", state=tmp_path)
    assert status.returncode == 1
    assert "Nothing answers" in status.stdout
    act = roboserve("act", "go", "--server", f"ws://{address}", state=tmp_path)
    assert act.returncode == 1
    assert "unavailable" in act.stdout


@pytest.mark.slow
def test_up_status_act_down(tmp_path: Path, config: Path) -> None:
    port = yaml.safe_load(config.read_text("utf-8"))["http_options"]["port"]
    up = roboserve("up", "-c", str(config), state=tmp_path, timeout=300)
    assert up.returncode == 0, up.stdout + up.stderr
    try:
        again = roboserve("up", "-c", str(config), state=tmp_path)
        assert again.returncode == 1
        assert "runs already" in again.stdout
        act = roboserve("act", "go", "--server", f"ws://127.0.0.1:{port}", state=tmp_path)
        assert act.returncode == 0, act.stdout
        assert "round trip" in act.stdout
        wrong = roboserve("act", "go", "--server", f"ws://127.0.0.1:{port}", "--state", "1,2", state=tmp_path)
        assert wrong.returncode == 1
        assert "needs 8" in wrong.stdout
        status = roboserve("status", "--json", state=tmp_path)
        (model,) = yaml.safe_load(status.stdout)["models"]
        assert (model["model"], model["healthy"], model["requests"]) == ("zero", True, 1)
    finally:
        down = roboserve("down", state=tmp_path, timeout=120)
    assert down.stdout.strip() == "stopped"
    assert list((tmp_path / "logs").glob("replica_policy-zero*"))
