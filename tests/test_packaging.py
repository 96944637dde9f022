from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from serving.preflight import FLOORS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PACKAGES = ("benchmarks", "clients", "finetune", "k8s", "models", "robot_client", "roboserve", "serving")
# Import names that differ from the distribution's.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "prometheus_client": "prometheus-client", "tree": "dm-tree"}
# Run through another library's door, or installed by hand for a comparison.
COMES_WITH = {"starlette": "fastapi", "grpc": "ray", "openpi_client": "dm-tree"}
# The slim client's own copies of these live in robot_client/pyproject.toml.
EXTRAS_OF = {
    "benchmarks": {"dev", "sim", "record"},
    "clients": {"sim"},
    "finetune": {"train", "sim", "ogbench", "record"},
    "robot_client": {"sim", "record"},
    "roboserve": {"record"},
    "serving": {"record"},
}


def requirements(*extras: str) -> dict[str, Requirement]:
    texts = PROJECT["dependencies"] + [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, texts)}


def constraints() -> dict[str, Requirement]:
    lines = [
        line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line and not line.startswith("#")
    ]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def only_for_types(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for statement in node.body:
                yield from ast.walk(statement)


def third_party_imports(package: str) -> set[str]:
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for node in set(ast.walk(tree)) - set(only_for_types(tree)):
            if isinstance(node, ast.Import):
                found |= {item.name.partition(".")[0] for item in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return {name for name in found if name not in sys.stdlib_module_names and name not in (*PACKAGES, "tests")}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_is_a_declared_requirement(package: str) -> None:
    declared = set(requirements(*EXTRAS_OF.get(package, ()))) | {"tomllib"}
    optional = set(requirements(*PROJECT["optional-dependencies"]))
    needed = {COMES_WITH.get(name, DISTRIBUTIONS.get(name, name)) for name in third_party_imports(package)}
    missing = {canonicalize_name(name) for name in needed} - declared
    lazy = {"bitsandbytes", "llguidance", "tritonclient", "vllm"}
    assert missing <= (lazy & optional), "declare it in pyproject.toml"


def test_constraints_pin_every_requirement_to_a_version_that_it_allows() -> None:
    pins = constraints()
    for name, requirement in requirements(*PROJECT["optional-dependencies"]).items():
        assert name in pins, f"{name} is not pinned"
        (pin,) = pins[name].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), f"{name}: {pin.version} is not in {requirement.specifier}"


def test_constraints_are_exact_without_local_builds() -> None:
    for requirement in constraints().values():
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert Version(pin.version).local is None


def test_the_version_is_said_once_and_logged() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## [{PROJECT['version']}]" in changelog


def test_the_threat_model_names_the_floors_that_preflight_holds() -> None:
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \|", (ROOT / "SECURITY.md").read_text("utf-8"), flags=re.MULTILINE)
    assert dict(rows) == FLOORS


def test_console_scripts_point_at_functions() -> None:
    for target in PROJECT["scripts"].values():
        module, _, function = target.partition(":")
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_package_folder_is_a_package() -> None:
    for package in PACKAGES:
        folders = {path.parent for path in (ROOT / package).rglob("*.py")} | {ROOT / package}
        assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


@pytest.mark.slow
def test_the_wheel_carries_the_code_the_configurations_and_the_checkpoints(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    for name in tracked:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("roboserve-*.whl")
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True, check=True
    )
    names = {line.split()[0] for line in listing.stdout.splitlines()[1:]}
    wanted = {name for name in tracked if re.match(rf"({'|'.join(PACKAGES)})/.*\.py$", name)}
    wanted |= {
        name for name in tracked if re.match(r"(serving/configs|models/zoo|finetune/robometer/accelerate)/", name)
    }
    assert wanted - names == set()
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} <= set(PACKAGES)


def test_what_is_installed_here_is_what_is_pinned() -> None:
    wrong = {}
    for name in ("torch", "ray", "numpy", "transformers", "fastapi", "msgpack", "websockets", "pillow", "pydantic"):
        (pin,) = constraints()[name].specifier
        installed = Version(importlib.metadata.version(name))
        if installed.public != pin.version:
            wrong[name] = str(installed)
    assert wrong == {}
