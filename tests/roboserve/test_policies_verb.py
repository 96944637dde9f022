"""From a finetuning command to what robots get, and back again, by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from clients.policy import PolicyClient
from finetune.csp.__main__ import app as csp
from models.folders import checkpoint_folder
from models.revisions import RevisionStore
from roboserve.cli import app
from roboserve.jobs import command_of
from serving.config import PolicyArgs
from serving.policy_server import PolicyServer
from serving.ports import free_port
from tests.serving.policy_running import RunningPolicy

ROOT = Path(__file__).parent.parent.parent
ZOO = checkpoint_folder("zoo:eight-goals")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBOSERVE_STATE_DIR", str(tmp_path / "state"))
    policy = {"factory": "models.policies.state_flow:StateFlowPolicy", "config": {"checkpoint": "zoo:eight-goals"}}
    args = {"name": "goals", "policy": policy, "revisions": {"folder": str(tmp_path / "store"), "poll_s": 0.02}}
    application = {"name": "policy-goals", "route_prefix": "/", "import_path": "serving.policy:build", "args": args}
    path = tmp_path / "platform.yaml"
    http = {"host": "127.0.0.1", "port": free_port()}
    path.write_text(yaml.safe_dump({"http_options": http, "applications": [application]}), "utf-8")
    return path


def roboserve(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    return done.exit_code, done.output


def listed(config: Path, *more: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["policies", "-c", str(config), "--json", *more], catch_exceptions=False)
    assert done.exit_code == 0
    (policy,) = json.loads(done.stdout)  # servers of this process log to what the runner takes for stderr
    return policy


def test_a_checkpoint_by_hand_and_back_again(config: Path) -> None:
    assert roboserve("policies", "-c", config, "publish", "goals", ZOO, "--success", "41/50")[0] == 0
    policy = listed(config)
    base, revision = policy["revisions"]
    assert (policy["current"], base["id"], policy["running"]) == (revision["id"], "base", False)
    assert revision["metrics"]["success"] == pytest.approx(0.82)
    assert revision["metrics"]["success_low"] < 0.82 < revision["metrics"]["success_high"]
    assert roboserve("policies", "-c", config, "rollback", "goals")[0] == 0
    assert (listed(config)["current"], listed(config)["pinned"]) == ("base", "base")
    assert roboserve("policies", "-c", config, "pin", "goals", "newest")[0] == 0
    assert listed(config)["current"] == revision["id"]
    assert roboserve("policies", "-c", config, "pin", "goals", "base", "--canary", "0.25")[0] == 0
    assert (listed(config)["current"], listed(config)["share_of_newest"]) == ("base", 0.25)
    table = roboserve("policies", "-c", config)[1]
    assert "25% of new sessions" in table


def test_what_another_policys_server_says_is_not_taken_for_this_ones(config: Path) -> None:
    assert roboserve("policies", "-c", config, "publish", "goals", ZOO)[0] == 0
    alone = listed(config)
    settings = {"checkpoint": "zoo:eight-goals"}
    with RunningPolicy.serving("models.policies.state_flow:StateFlowPolicy", settings) as other:
        assert listed(config, "--server", f"http://127.0.0.1:{other.port}") == alone
    assert not alone["running"]

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>not ours</html>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as stranger:
        threading.Thread(target=stranger.handle_request, daemon=True).start()
        assert listed(config, "--server", f"http://127.0.0.1:{stranger.server_port}") == alone


def test_what_cannot_be_done_is_said(config: Path, tmp_path: Path) -> None:
    for words, reason in (
        (("pin", "goals", "000009-cafe"), "not known"),
        (("rollback", "other"), "no policy 'other'"),
        (("rollback", "goals"), "has no parent"),
    ):
        code, said = roboserve("policies", "-c", config, *words)
        assert (code, reason in said) == (2, True), said
    code, said = roboserve("train", "tmrl", "--publish", "policy/other", "-c", config)
    assert (code, "no policy 'other'" in said) == (2, True)
    code, said = roboserve("train", "wishing", "-c", config)
    assert (code, "none of bc" in said) == (2, True)


def test_a_trained_policy_reaches_a_robot_at_its_next_reset(config: Path, tmp_path: Path) -> None:
    (application,) = yaml.safe_load(config.read_text("utf-8"))["applications"]
    args = PolicyArgs.model_validate(application["args"])

    async def make() -> PolicyServer:
        return PolicyServer(args)

    running = RunningPolicy(make)
    try:
        with PolicyClient(running.url) as client:
            before = acted(client)
            sizes = ("--demonstrations", "5", "--steps", "3", "--batch", "8", "--width", "16", "--episodes", "2")
            arguments = ("--out", str(tmp_path / "run"), "--task", "eight-goals", *sizes, "--publish-always")
            module, *words = command_of("csp", arguments, publish="policy/goals", config=config)
            assert module == "finetune.csp"
            CliRunner().invoke(csp, words, catch_exceptions=False)
            (revision,) = RevisionStore(tmp_path / "store").read().revisions
            served = f"http://127.0.0.1:{running.port}"
            for _ in range(500):
                if listed(config, "--server", served)["current"] == revision.id:
                    break
            assert acted(client) == before
            client.reset("arm")
            assert acted(client) == revision.id
            rows = {row["id"]: row for row in listed(config, "--server", served)["revisions"]}
            assert (rows[revision.id]["sessions"], rows[revision.id]["job"]) == (1, "run")
    finally:
        running.stop()


def test_train_becomes_the_job(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "roboserve", "train", "finetune.study", "run", "--wish"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "--wish" in done.stderr) == (2, True), done.stderr


def acted(client: PolicyClient) -> str:
    state = np.zeros(10, np.float32)
    return client.act(images={}, state=state, instruction="", session="arm").model.revision
