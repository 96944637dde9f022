"""Nothing that reads a request can run code: no pickle, eval or shell in any module that the request path imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("clients", "models", "robot_client", "serving")
# What a replica runs, and what a robot or a job runs to call it.
ENTRIES = (
    *("serving.policy", "serving.reward", "serving.path", "serving.dialects"),
    *("clients.policy", "clients.reward", "clients.reward_async", "robot_client.loop"),
    *("clients.path", "clients.path_async"),
    *("models.policies", "models.rewards.load", "models.robometer.reward", "models.rewind.reward"),
)

MODULES = frozenset(
    {
        "_pickle",
        "cloudpickle",
        "code",
        "codeop",
        "dill",
        "joblib",
        "marshal",
        "pickle",
        "pty",
        "runpy",
        "shelve",
        "subprocess",
    }
)
FETCHERS = frozenset({"aiohttp", "ftplib", "httpx", "requests", "urllib.request", "urllib3"})
NAMES = frozenset({"__import__", "compile", "eval", "exec"})
ATTRIBUTES = frozenset(
    {
        "joblib.load",
        "jsonpickle.decode",
        "numpy.fromfile",
        "os.popen",
        "os.system",
        "pandas.read_pickle",
        "torch.hub.load",
        "torch.jit.load",
        "torch.load",
        "yaml.full_load",
        "yaml.load",
        "yaml.load_all",
        "yaml.unsafe_load",
    }
)
PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")
FLAGS = {"allow_pickle": True, "shell": True, "trust_remote_code": True, "weights_only": False}
MUST_SAY = {"numpy.load": "allow_pickle"}


def dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    """Return the full dotted name of an expression, imports followed; empty where it has none."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, aliases)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def imports_of(tree: ast.AST) -> tuple[dict[str, str], list[tuple[int, str]]]:
    aliases: dict[str, str] = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                aliases[item.asname or item.name.partition(".")[0]] = (
                    item.name if item.asname else item.name.partition(".")[0]
                )
                found.append((node.lineno, item.name))
        elif isinstance(node, ast.ImportFrom):
            for item in node.names:
                aliases[item.asname or item.name] = f"{node.module}.{item.name}"
                found += [(node.lineno, str(node.module)), (node.lineno, f"{node.module}.{item.name}")]
    return aliases, found


def call_problems(node: ast.Call, aliases: dict[str, str]) -> list[str]:
    name = dotted(node.func, aliases)
    problems = []
    if (isinstance(node.func, ast.Name) and name in NAMES) or name.removeprefix("builtins.") in NAMES - {name}:
        problems.append(f"calls {name}")
    if name in ATTRIBUTES or name.startswith(PREFIXES):
        problems.append(f"calls {name}")
    given = {item.arg: item.value for item in node.keywords}
    for flag, wrong in FLAGS.items():
        value = given.get(flag)
        if value is not None and not (isinstance(value, ast.Constant) and value.value is (not wrong)):
            problems.append(f"{name}({flag}=...) is not plainly {not wrong}")
    if name in MUST_SAY and MUST_SAY[name] not in given:
        problems.append(f"calls {name} without {MUST_SAY[name]}=False")
    return problems


def problems_in(source: str, *, forbidden: frozenset[str] = MODULES) -> list[str]:
    """Return what a module's source does that could run code from input, with line numbers."""
    tree = ast.parse(source)
    aliases, imported = imports_of(tree)
    found = [
        f"{line}: imports {name}"
        for line, name in imported
        if any(name == module or name.startswith(f"{module}.") for module in forbidden)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [f"{node.lineno}: {text}" for text in call_problems(node, aliases)]
        elif (
            isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in {"eval", "exec", "__import__"}
        ):
            found.append(f"{node.lineno}: names {node.id}")
    return found


def sources(*packages: str) -> dict[str, Path]:
    found = {}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, include_external_packages=False, cache_dir=None)


@pytest.fixture(scope="module")
def request_path(graph: grimp.ImportGraph) -> set[str]:
    """Every module of ours that the entries import, lazily or not, and their packages."""
    entries = {
        module for module in graph.modules for entry in ENTRIES if module == entry or module.startswith(f"{entry}.")
    }
    reached = set(entries)
    for module in entries:
        reached |= graph.find_upstream_modules(module)
    parents = {name.rpartition(".")[0] for name in reached} | {name.partition(".")[0] for name in reached}
    return reached | (parents - {""})


def test_the_graph_reaches_what_reads_bytes(request_path: set[str]) -> None:
    known = {"clients.wire", "clients.images", "clients.errors", "serving.policy", "serving.batcher", "serving.ingress"}
    assert known <= request_path
    assert len(request_path) > 20


def test_no_module_on_the_request_path_can_run_input(request_path: set[str]) -> None:
    paths = sources(*PACKAGES)
    found = {name: problems_in(paths[name].read_text("utf-8")) for name in sorted(request_path)}
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_no_module_of_these_packages_can_run_input() -> None:
    found = {name: problems_in(path.read_text("utf-8")) for name, path in sources(*PACKAGES).items()}
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_nothing_that_decodes_a_request_can_fetch_an_address(graph: grimp.ImportGraph) -> None:
    reached = {"clients.wire", "clients.images", "serving.policy", *graph.find_upstream_modules("serving.policy")}
    paths = sources(*PACKAGES)
    found = {name: problems_in(paths[name].read_text("utf-8"), forbidden=FETCHERS) for name in sorted(reached)}
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_what_is_really_imported_is_in_the_graph(request_path: set[str]) -> None:
    script = f"""
import importlib, json, sys
for name in {ENTRIES!r}:
    importlib.import_module(name)
print(json.dumps([name for name in sys.modules if name.partition(".")[0] in {PACKAGES!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(json.loads(done.stdout)) <= request_path


def test_decoding_runs_nothing_opens_nothing_and_connects_nowhere() -> None:
    script = """
import sys
import numpy as np
from clients.errors import RoboserveError
from clients.images import decode_image, encode_image
from clients.wire import decode
from tests.clients.fuzz_wire import corpus, mutated

image = np.zeros((8, 8, 3), np.uint8)
pictures = [encode_image(image, codec) for codec in ("jpeg", "png")]
for data in pictures:
    decode_image(data, field="image")
messages = corpus()
messages = messages + [mutated(3, index, messages) for index in range(3000)]
seen = []
armed = False
ALLOWED = ("object.", "gc.", "sys._getframe", "array.", "cpython.", "builtins.id", "sys.excepthook")
sys.addaudithook(lambda event, _: seen.append(event) if armed and not event.startswith(ALLOWED) else None)
armed = True
for data in messages:
    try:
        decode(data)
    except RoboserveError:
        pass
for data in pictures:
    decode_image(data, field="image")
    try:
        decode_image(data[:-40], field="image")
    except RoboserveError:
        pass
armed = False
print(sorted(set(seen)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def lazy():\n    import cloudpickle as c",
        "import marshal",
        "import subprocess",
        "eval('1')",
        "run = exec",
        "import builtins\nbuiltins.eval('1')",
        "__import__('os')",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path)",
        "from torch import load\nload(path)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "from yaml import unsafe_load as f\nf(text)",
        "import os\nos.system(text)",
        "from os import popen\npopen(text)",
        "import os\nos.execv(path, [])",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=flag)",
        "run(command, shell=True)",
        "load(path, weights_only=False)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_the_search_finds_every_way_it_knows(source: str) -> None:
    assert problems_in(source)


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
        "import re\nre.compile('a')",
        "model.eval()",
        "import json\njson.load(file)",
        "from safetensors.numpy import load_file\nload_file(path)",
    ],
)
def test_the_search_lets_honest_code_pass(source: str) -> None:
    assert problems_in(source) == []
