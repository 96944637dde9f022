"""The slim wheel, built from a clean copy and run in virtual environments that hold nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from robot_client.robots.pointmass import PointMass
from tests.robot_client.helpers import point_server

pytestmark = pytest.mark.slow

ALLOWED = {"msgpack", "numpy", "pillow", "websockets"}
IMPORTS = """
import json, sys
before = set(sys.modules)
import robot_client
alone = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
import clients.policy, robot_client.cli, robot_client.link, robot_client.loop
import numpy
print(json.dumps({"alone": alone, "all": sorted({name.partition(".")[0] for name in sys.modules}),
                  "numpy": numpy.__version__, "place": robot_client.__file__}))
"""


def interpreters() -> dict[tuple[int, int], str]:
    """Pythons of this machine, by version: 3.9 and later."""
    found = {sys.version_info[:2]: sys.executable}
    candidates = [shutil.which(f"python3.{minor}") for minor in range(9, 14)]
    candidates += [str(path) for path in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"))]
    for path in filter(None, candidates):
        done = subprocess.run(
            [path, "-c", "import ensurepip, sys; print(*sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            major, minor = map(int, done.stdout.split())
            if (major, minor) >= (3, 9):
                found.setdefault((major, minor), path)
    return found


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for part in ("clients", "robot_client"):
        shutil.copytree(repository / part, copy / part, ignore=ignore)
    shutil.copy(repository / "LICENSE", copy)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", "dist", "./robot_client", cwd=copy)
    (built,) = (copy / "dist").glob("roboserve_client-*.whl")
    return built


def test_the_wheel_carries_two_packages_their_types_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"clients", "robot_client"}
    assert {"clients/py.typed", "robot_client/py.typed", "robot_client/subscribers/recorder.py"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.parametrize(("which", "numpy"), [(min, "numpy==1.26.4"), (max, "numpy>=2,<3")], ids=["oldest", "newest"])
def test_it_drives_a_robot_in_a_bare_environment(wheel, which, numpy, tmp_path):
    found_here = interpreters()
    python = found_here[which(found_here)]
    run(python, "-m", "venv", "bare", cwd=tmp_path)
    bare = str(tmp_path / "bare" / "bin" / "python")
    run(bare, "-m", "pip", "install", "-q", str(wheel), numpy, cwd=tmp_path)
    installed = json.loads(run(bare, "-m", "pip", "list", "--format", "json", cwd=tmp_path))
    assert {item["name"].lower() for item in installed} - {"pip", "setuptools", "wheel"} == {
        *ALLOWED,
        "roboserve-client",
    }

    found = json.loads(run(bare, "-c", IMPORTS, cwd=tmp_path))
    assert str(tmp_path) in found["place"]
    assert found["numpy"].startswith("1.26" if "==" in numpy else "2.")
    assert "numpy" not in found["alone"]
    assert not {"torch", "ray", "asyncio", "metaworld", "pyarrow", "av", "rich"} & set(found["all"])

    robot = PointMass()
    with point_server(robot) as server:
        command = str(tmp_path / "bare" / "bin" / "roboserve-robot")
        options = ("--robot", "pointmass", "--server", server.url, "--log", "log", "--max-seconds", "20")
        run(command, "run", *options, cwd=tmp_path)
    (summary,) = tmp_path.glob("log/*/episode.json")
    assert json.loads(summary.read_text())["success"] is True
