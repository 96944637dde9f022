from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Set before any library reads them: two processes sharing the cores crawl when each starts a thread a core.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MUJOCO_GL": "egl",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}.items():
    os.environ.setdefault(name, value)

# No deadline: a busy machine must not fail a test. Derandomised: the same commit gives the same verdict.
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")


LONG = (
    "tests/test_readme.py",
    "tests/serving/test_rewind_served.py",
    "tests/benchmarks/test_quick.py",
    "tests/finetune/test_relabel.py",
    "tests/roboserve/",
    "tests/test_serve_deploy.py",
    "tests/serving/test_platform_vlm.py",
)
"""Minutes each, most of them waiting: they go first, so that the end is not one worker with one of them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests, and all that attack the shared platform, in one process: their fixtures are made once.

    It must run before pytest-xdist's own hook, which reads the marks.
    """
    for item in items:
        shared = "platform" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("platform" if shared else item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Refuse to run where pytest-xdist was asked to group tests and has not: it would start every platform thrice."""
    if node.config.getvalue("dist") == "loadgroup" and not all("@" in name for name in ids):
        pytest.exit("pytest-xdist has not grouped the tests; see pytest's bound in pyproject.toml", returncode=4)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return Path(__file__).resolve().parent.parent
