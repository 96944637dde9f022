from __future__ import annotations

import json
import subprocess
import sys

import pytest

from robot_client.cli import main
from robot_client.robots.pointmass import PointMass
from robot_client.robots.registry import make_robot
from tests.robot_client.fake_server import make_contract
from tests.robot_client.helpers import point_server

USERS_ROBOT = """
from robot_client.robots.pointmass import PointMass

class Mine(PointMass):
    instruction = "mine"

class Half:
    interface = None
"""


@pytest.fixture(autouse=True)
def process_settings():
    import gc

    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)
    gc.unfreeze()


@pytest.fixture
def server():
    with point_server(PointMass()) as running:
        yield running


def test_run_drives_episodes_and_logs_them(server, tmp_path, capsys):
    arguments = ["run", "--robot", "pointmass", "--server", server.url, "--episodes", "2", "--log", str(tmp_path)]
    assert main([*arguments, "--max-seconds", "20", "--mode", "rtc", "--codec", "png"]) == 0
    summaries = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*/episode.json"))]
    assert [(item["seed"], item["success"], item["mode"]) for item in summaries] == [(0, True, "rtc"), (1, True, "rtc")]
    assert {message["observation"]["instruction"] for message in server.acts()} == {PointMass.instruction}
    assert server.acts()[0]["observation"]["images"]["top"].startswith(b"\x89PNG")
    assert "finished" in capsys.readouterr().out


def test_a_reward_model_that_is_not_there_costs_the_curve_alone(server, tmp_path, capsys):
    arguments = ["run", "--robot", "pointmass", "--server", server.url, "--max-seconds", "20", "--quiet"]
    arguments += ["--reward", "ws://127.0.0.1:9/reward/robometer"]
    assert main(arguments) == 1
    assert "--log" in capsys.readouterr().err
    assert main([*arguments, "--log", str(tmp_path)]) == 0
    (curve,) = tmp_path.glob("*/reward.json")
    assert "unavailable" in json.loads(curve.read_text())["fault"]


def test_python_dash_m_is_the_same_command(server, repository):
    command = [sys.executable, "-m", "robot_client", "run", "--robot", "pointmass", "--server", server.url, "--quiet"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout


def test_a_users_own_robot_is_found_in_the_working_directory(server, tmp_path, monkeypatch):
    (tmp_path / "users_robot.py").write_text(USERS_ROBOT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = ["run", "--robot", "users_robot:Mine", "--server", server.url, "--max-seconds", "0.2", "--quiet"]
    assert main(arguments) == 0
    assert server.acts()[0]["observation"]["instruction"] == "mine"
    assert main(["run", "--robot", "users_robot:Half", "--server", server.url]) == 1


def test_check_prints_the_contract_and_the_fit(server, capsys):
    assert main(["check", "--server", server.url, "--robot", "pointmass"]) == 0
    text = capsys.readouterr().out
    assert "policy   fake revision 1" in text
    assert "top 32 x 48" in text
    assert "pointmass fits" in text
    server.contract = make_contract(chunk_length=16)
    assert main(["check", "--server", server.url, "--robot", "pointmass"]) == 1
    assert "MISMATCH state.names" in capsys.readouterr().out


def test_the_key_comes_from_a_file_or_the_environment(server, tmp_path, monkeypatch, capsys):
    server.api_key = "sesame"
    key = tmp_path / "key"
    key.write_text("sesame\n")
    assert main(["check", "--server", server.url]) == 1
    assert "unauthenticated" in capsys.readouterr().err
    assert main(["check", "--server", server.url, "--api-key-file", str(key)]) == 0
    monkeypatch.setenv("ROBOSERVE_API_KEY", "sesame")
    assert main(["check", "--server", server.url]) == 0
    assert main(["check", "--server", server.url, "--api-key-file", str(tmp_path / "none")]) == 1


@pytest.mark.parametrize(
    ("robot", "task", "said"),
    [
        ("toaster", None, "known are metaworld, pointmass"),
        ("metaworld", None, "needs a task"),
        ("pointmass", "reach", "takes no task"),
        ("no_such_module:Robot", None, "no module 'no_such_module'"),
        ("json:Robot", None, "has no 'Robot'"),
    ],
)
def test_a_robot_that_cannot_be_made_is_refused_in_a_sentence(robot, task, said):
    with pytest.raises(Exception, match=said):
        make_robot(robot, task)


def test_a_server_that_is_not_there_is_said_so(capsys):
    assert main(["check", "--server", "127.0.0.1:9"]) == 1
    assert "cannot connect" in capsys.readouterr().err
