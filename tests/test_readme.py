"""Every command in the README runs as it stands there, but for the port, which is one that is free.

`make demo` and the benchmarks run in suites of their own: tests/roboserve/test_demo.py, tests/benchmarks/test_quick.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serving.config import PolicyArgs
from serving.ports import free_port

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.split(" # ")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def run(command: str, folder: Path, port: int) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "ROBOSERVE_STATE_DIR": str(folder / "state"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    words = shlex.split(command.replace(":8000", f":{port}"))
    words += ["--port", str(port)] if words[:2] == ["roboserve", "up"] else []
    words += ["-c", str(free_config(folder, port))] if words[:2] == ["roboserve", "preflight"] else []
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def free_config(folder: Path, port: int) -> Path:
    config = yaml.safe_load((ROOT / "serving" / "configs" / "embedded.yaml").read_text("utf-8"))
    config["http_options"]["port"] = port
    path = folder / "embedded.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    return path


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    targets = [command for command in commands() if command.startswith("make ")]
    assert targets == ["make demo", "make test"]
    for target in targets:
        done = subprocess.run(["make", "-n", target.split()[1]], cwd=ROOT, capture_output=True, text=True, check=True)
        assert {"demo": "roboserve demo", "test": "pytest"}[target.split()[1]] in done.stdout


@pytest.mark.slow
def test_every_other_command_and_the_python_examples_run(tmp_path: Path) -> None:
    port = free_port()
    started = False
    try:
        for command in commands():
            if command.startswith(("make ", "roboserve bench ")):
                continue
            if command == "roboserve down":
                for example in blocks("python"):
                    (tmp_path / "example.py").write_text(example.replace(":8000", f":{port}"), "utf-8")
                    run(f"{sys.executable} example.py", tmp_path, port)
                started = False
            started = started or command == "roboserve up"
            run(command, tmp_path, port)
    finally:
        if started:
            run("roboserve down", tmp_path, port)


def test_the_configuration_example_is_valid() -> None:
    (example,) = blocks("yaml")
    (application,) = yaml.safe_load(example)["applications"]
    args = PolicyArgs.model_validate(application["args"])
    assert application["route_prefix"] == f"/policy/{args.name}"
