"""A Ray of its own takes what we give it: the configuration by `serve deploy`, jobs by `roboserve submit`."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file
from typer.testing import CliRunner

from clients.policy import PolicyClient
from finetune.csp.__main__ import app as csp
from serving.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent
EMBEDDED = ROOT / "serving" / "configs" / "embedded.yaml"
SERVE = Path(sys.executable).with_name("serve")
CLONING = ("--demonstrations", "5", "--steps", "1400", "--batch", "8", "--width", "16", "--task", "eight-goals")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def dashboard(environment: dict[str, str]) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "tests.ray_head", str(port)]
    head = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert head.stdout is not None
    assert any(line.startswith("ready") for line in head.stdout)
    yield f"http://127.0.0.1:{port}"
    family = psutil.Process(head.pid).children(recursive=True)
    assert head.stdin is not None
    head.stdin.close()
    try:
        head.wait(timeout=60)
    except subprocess.TimeoutExpired:
        head.kill()
    _, alive = psutil.wait_procs(family, timeout=5)
    for process in alive:
        process.terminate()


def _serve(*arguments: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [SERVE, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _on_port(source: Path, target: Path) -> int:
    config = yaml.safe_load(source.read_text("utf-8"))
    config["http_options"] = {"host": "127.0.0.1", "port": free_port()}
    target.write_text(yaml.safe_dump(config), "utf-8")
    return int(config["http_options"]["port"])


def _wait_for_health(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/healthz", timeout=2).text == "OK\n":
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"{url} did not become healthy")


@pytest.mark.slow
def test_a_job_whose_driver_is_killed_ends_as_one_that_was_not(
    dashboard: str, environment: dict[str, str], tmp_path: Path
) -> None:
    def roboserve(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "roboserve", *words]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    submit = ("submit", "csp", "--address", dashboard, "--out", "lost", *CLONING)
    job = roboserve(*submit).split()[1].rstrip(";")
    state = tmp_path / "lost" / "state.safetensors"
    _wait_until(state.exists)
    driver = _driver(tmp_path)
    driver.suspend()  # or it may end before the next command has begun
    assert "has not ended" in roboserve(*submit, code=2)
    driver.kill()
    assert f"{job}: FAILED" in roboserve("jobs", "--address", dashboard, "logs", job, code=1)
    assert not (tmp_path / "lost" / "checkpoint").exists()

    assert "SUCCEEDED" in roboserve("jobs", "--address", dashboard, "resume", job, "--follow")
    listed = roboserve("jobs", "--address", dashboard)
    assert ("FAILED" in listed, "SUCCEEDED" in listed) == (True, True)
    done = CliRunner().invoke(csp, ["pretrain", "--out", str(tmp_path / "whole"), *CLONING], catch_exceptions=False)
    assert done.exit_code == 0
    lost, whole = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("lost", "whole"))
    assert all((lost[name] == whole[name]).all() for name in whole)


def _driver(folder: Path) -> psutil.Process:
    (found,) = (
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if "finetune.csp" in (process.info["cmdline"] or []) and process.info["cwd"] == str(folder)
    )
    return found


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline, "not within five minutes"
        time.sleep(0.05)


@pytest.mark.slow
def test_serve_deploy_takes_the_embedded_configuration_and_serve_build_makes_one(
    dashboard: str, environment: dict[str, str], tmp_path: Path
) -> None:
    deployed = tmp_path / "deployed.yaml"
    port = _on_port(EMBEDDED, deployed)
    _serve("deploy", "-a", dashboard, str(deployed), environment=environment)
    _wait_for_health(f"http://127.0.0.1:{port}")
    np.testing.assert_allclose(_chunk(port), _chunk(port), atol=1e-5)

    built = tmp_path / "built.yaml"
    _serve("build", "serving.embedded:policy_metaworld", "-o", str(built), environment=environment)
    (application,) = yaml.safe_load(built.read_text("utf-8"))["applications"]
    assert application["import_path"] == "serving.embedded:policy_metaworld"
    assert [deployment["name"] for deployment in application["deployments"]] == ["PolicyService"]


def _chunk(port: int) -> np.ndarray:
    from clients.policy import ActOptions

    with PolicyClient(f"ws://127.0.0.1:{port}", connect_timeout_s=20) as client:
        contract = client.contract
        images = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in contract.cameras}
        state = np.zeros(contract.state.size, np.float32)
        reply = client.act(images=images, state=state, instruction="open the drawer", options=ActOptions(seed=7))
    return reply.actions
