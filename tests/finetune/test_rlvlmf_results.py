"""RL-VLM-F as a study: pairs that teach a labeller the cart and the pole, and what runs are told to have found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from finetune.preference.material import listed_pairs
from finetune.rlvlmf.cartpole_pairs import PairsConfig, make_pairs
from finetune.rlvlmf.environment import CartPoleEnv, cartpole_picture, uprightness
from finetune.rlvlmf.results import write
from finetune.study.config import read_study
from finetune.vlm.conversations import JsonlConversations
from models.vlm.checkpoint import VlmFolder
from serving.vlm.engines import TransformersSettings

RESULTS = Path(__file__).parents[2] / "finetune" / "rlvlmf" / "results"


def test_pairs_teach_what_the_true_angle_says_and_those_held_out_are_asked_as_a_run_asks(tmp_path) -> None:
    folder = make_pairs(PairsConfig(out=tmp_path / "pairs", pictures=40, pairs=200, held_out=20))
    learned = JsonlConversations(folder / "conversations.jsonl")
    answers = [learned[index].answer for index in range(len(learned))]
    assert {answer: answers.count(answer) > 20 for answer in ("0", "1", "-1")} == {"0": True, "1": True, "-1": True}
    (message,) = learned[0].messages
    assert CartPoleEnv.instruction in message.text
    assert [image.shape for image in message.images] == [(64, 64, 3)] * 2
    held_out = listed_pairs(folder / "held-out.jsonl")
    assert len(held_out) == 20
    assert len({value for item in held_out for value in item.values}) > 20
    again = make_pairs(PairsConfig(out=tmp_path / "again", pictures=40, pairs=200, held_out=20))
    assert (again / "conversations.jsonl").read_bytes() == (folder / "conversations.jsonl").read_bytes()
    with pytest.raises(ValueError, match="pictures 1"):
        PairsConfig(out=tmp_path, pictures=1)


def test_a_picture_shows_the_side_the_pole_leans_to() -> None:
    left, right = cartpole_picture(0.0, -0.6, 64), cartpole_picture(0.0, 0.6, 64)
    assert np.abs(left[:, ::-1].astype(int) - right).mean() < 3
    assert np.abs(left.astype(int) - right).mean() > 5
    assert uprightness(0.0) == 1.0 > uprightness(-0.6) == uprightness(0.6) > uprightness(1.3) == 0.0


def study_of(tmp_path, *, seeds=(0, 1)):
    methods = {
        "vlm": {"module": "finetune.rlvlmf", "title": "labels", "options": {"schedule": "cartpole"}},
        "none": {"module": "finetune.rlvlmf", "options": {"learn": "none"}},
    }
    given = {"title": "Poles", "out": str(tmp_path / "runs"), "seeds": list(seeds), "tasks": {"pole": "cartpole"}}
    file = tmp_path / "study.yaml"
    given |= {"methods": methods, "metric": "return", "over": "step", "last": 0.5}
    file.write_text(yaml.safe_dump(given, sort_keys=False))
    return read_study(file)


def finish(study, method, seed, returns, spearman) -> None:
    (cell,) = (cell for cell in study.cells() if (cell.method, cell.seed) == (method, seed))
    cell.folder.mkdir(parents=True)
    rows = [
        {"step": 10 * at, "return": paid, "success": 0.5, "spearman": rank, "spearman_newest": rank}
        for at, (paid, rank) in enumerate(zip(returns, spearman, strict=True), 1)
    ]
    (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if method == "vlm":
        session = {"requested": 10, "alike": 1, "ties": 1, "kept": 8, "right": 6}
        (cell.folder / "sessions.jsonl").write_text(2 * (json.dumps(session) + "\n"))
    (cell.folder / "done.json").write_text(json.dumps({"command": study.command(cell), "seconds": 90.0}))


def test_results_are_told_by_arm_and_seed_from_the_runs_that_are_done(tmp_path) -> None:
    study = study_of(tmp_path)
    with pytest.raises(ValueError, match="none of its runs"):
        write([study], tmp_path / "out")
    finish(study, "vlm", 0, [1.0, 2.0, 8.0, 10.0], [None, 0.2, 0.6, 0.8])
    finish(study, "vlm", 1, [1.0, 2.0, 6.0, 4.0], [None, 0.2, 0.4, 0.2])
    finish(study, "none", 0, [1.0, 1.0, 3.0, 3.0], [None] * 4)
    rows = write([study], tmp_path / "out").splitlines()[2:]
    assert rows == [
        "| pole | labels | 7.0 | 9.0, 5.0 | 0.50 | 0.50 | 0.70, 0.30 | 0.50 | 20 | 0.20 | 0.750 | 1.5 |",
        "| pole | none | 3.0 | 3.0 | 0.50 | - | - | - | none | - | - | 1.5 |",
    ]
    curves = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert [(curve["method"], curve["seed"], curve["return"][-1]) for curve in curves] == [
        ("labels", 0, 10.0),
        ("labels", 1, 4.0),
        ("none", 0, 3.0),
    ]
    assert (tmp_path / "out" / "curves.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", ["cartpole", "drawer-close"])
def test_the_studies_ask_the_labellers_that_their_platform_has(name) -> None:
    platform = yaml.safe_load((RESULTS / "labellers.yaml").read_text())
    port = platform["http_options"]["port"]
    served = {f"ws://127.0.0.1:{port}{app['route_prefix']}" for app in platform["applications"]}
    study = read_study(RESULTS / f"{name}.yaml")
    asked = {method.options["labeller"] for method in study.methods.values() if "labeller" in method.options}
    assert len(asked) == 2
    assert asked <= served
    assert len(study.cells()) == len(study.seeds) * len(study.methods)


def test_the_platform_names_an_adapter_of_the_zoo_beside_those_of_its_model() -> None:
    platform = yaml.safe_load((RESULTS / "labellers.yaml").read_text())
    (app,) = (app for app in platform["applications"] if "engine" in app["args"])
    settings = TransformersSettings(**app["args"]["engine"])
    adapters = settings.all_adapters(VlmFolder.read(settings.folder))
    assert {"preference", "cartpole"} <= adapters.keys()
    assert all((folder / "adapter_model.safetensors").stat().st_size < 1_000_000 for folder in adapters.values())
