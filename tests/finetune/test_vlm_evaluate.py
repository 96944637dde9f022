"""Judging an embedded VLM: figures on frames whose truth is known, and the card that is written from them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from finetune.common.run import Run
from finetune.vlm.card import write_card
from finetune.vlm.collect import VARIATIONS
from finetune.vlm.drawings import draw_examples
from finetune.vlm.embedded import PATH_PROMPT, Sizes
from finetune.vlm.evaluate import evaluate, write
from finetune.vlm.material import load_frames
from finetune.vlm.path_figures import EvaluateConfig, blind, chosen, mean_paths
from finetune.vlm.preference_figures import pairs_of
from finetune.vlm.recipe import Recipe
from models.hamster.prompt import Decoding, Writing, write_prompt

SIZES = Sizes(
    image=64, vision_width=64, vision_layers=2, vision_heads=2, deepstack=(1,), width=64, layers=2, heads=2,
    key_value_heads=1, feed_forward=96,
)  # fmt: skip
TASKS, NEW = ("drawer-open", "push"), ("door-lock",)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Frames of three tasks as `collect` writes them: straight ways of 11 points, two scenes in each look."""
    root = tmp_path_factory.mktemp("frames")
    random = np.random.default_rng(0)
    for task in (*TASKS, *NEW):
        rows, points = [], []
        for split, looks in (*(("validation", looks) for looks in VARIATIONS), ("train", "mixed")):
            for scene in range(2):
                for moment in range(4):
                    count = 11 if moment < 3 else 0
                    ends = random.uniform(0.1, 0.9, (2, 2))
                    points.append(ends[0] + np.linspace(0, 1, count)[:, None] * (ends[1] - ends[0]))
                    row = {"split": split, "kind": "expert", "looks": looks, "seed": 1, "scene": scene, "group": 0}
                    rows.append({**row, "progress": moment / 3, "points": count})
        folder = root / task
        folder.mkdir()
        np.save(folder / "images.npy", random.integers(0, 255, (len(rows), 64, 64, 3)).astype(np.uint8))
        np.save(folder / "points.npy", np.concatenate(points).astype(np.float32))
        np.save(folder / "opens.npy", np.arange(sum(row["points"] for row in rows)) % 11 < 5)
        (folder / "frames.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        (folder / "whole.json").write_text("{}", "utf-8")
    return root


@pytest.fixture(scope="module")
def config(data):
    return EvaluateConfig(data=data, trained=TASKS, held_out=NEW, frames=2, pairs=6)


@pytest.fixture(scope="module")
def work(tmp_path_factory, data):
    """A recipe's work folder with an untrained model, and run folders that say how it was made."""
    recipe = Recipe(data=data, work=tmp_path_factory.mktemp("work"), tasks=TASKS, sizes=SIZES)
    tokenizer = recipe.tokenizer()
    folder = recipe.write(recipe.network(tokenizer, 0), tokenizer, model_id="mini")
    short = {"decoding": Decoding(max_tokens=80), "answer": Writing(max_points=1)}
    write_prompt(folder, PATH_PROMPT.model_copy(update=short))  # an untrained model never ends
    from finetune.vlm.adapters import LoraSettings
    from finetune.vlm.train import TrainConfig

    for name in ("path", "preference"):
        settings = TrainConfig(out=recipe.work / f"adapter-{name}", steps=1, batch=2)
        recipe.adapt(name, settings, LoraSettings(rank=2), lambda *_: None)
    for name in ("vision", "means", "base", "adapter-path", "adapter-preference"):
        (recipe.work / name / "config.json").unlink(missing_ok=True)
        identity = {"steps": 1, "batch": 2, "learning_rate": 0.1, "tower": "means", "read": "mean"}
        identity |= {"start": "runs/vlm/vision"} if name == "means" else {}
        run = Run(folder=recipe.work / name, identity=identity, step=1)
        run.log(loss=1.0)
    return recipe.work


def test_an_adapter_changes_only_its_own_answers(work):
    assert {path.name for path in (work / "checkpoint" / "adapters" / "path").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_frames_with_a_way_are_chosen_and_pairs_are_of_the_scenes_asked_for(data, config):
    frames = load_frames(data, TASKS, "validation")
    index = chosen(frames, config, "plain")
    assert len(index) == 4
    assert all(frames.infos[row].way is not None for row in index)
    for one_scene in (True, False):
        for one, other in pairs_of(frames, config, "all", one_scene=one_scene):
            first, second = frames.infos[one], frames.infos[other]
            assert first.task == second.task
            assert (first.scene == second.scene) is one_scene


def test_whoever_looks_at_nothing_draws_the_mean_way(data, config):
    train = load_frames(data, TASKS, "train").kept(lambda info: info.progress < 0.1)
    means = mean_paths(train)
    ways = [info.way for info in train.infos if info.task == "push"]
    assert np.allclose(means["push"].points[0], np.mean([way.points[0] for way in ways], axis=0), atol=1e-6)
    assert blind(load_frames(data, TASKS, "validation"), means, config)["plain"] > 0


def test_an_untrained_model_is_judged_and_gets_its_card(work, config, tmp_path):
    found = evaluate(work / "checkpoint", config)
    own = found["paths"]["trained/path"]
    assert own["plain"]["questions"] == 4
    assert own["plain"]["parsed_formed"] == 1.0
    assert own["plain"]["point_error"] > 0.05
    assert found["preferences"]["trained/preference"]["all, one scene"]["pairs"] > 0
    path = write(found, tmp_path / "evaluation.json")
    draw_examples(work / "checkpoint", config.data, work / "checkpoint" / "examples.png", tasks=TASKS)
    text = write_card(work, path).read_text("utf-8")
    assert "| all cells held out | 4 |" in text
    assert str(work) not in text
    assert "vision --name means --read mean --start runs/vlm/vision --hues 0 --steps 1" in text
    (work / "checkpoint" / "model.safetensors").touch()
    damaged = json.loads(path.read_text()) | {"content_hash": "0"}
    (tmp_path / "other.json").write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match="other weights"):
        write_card(work, tmp_path / "other.json")
