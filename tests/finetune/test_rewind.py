"""ReWiND's recipe in miniature: it learns what it should, goes on after a kill, and writes checkpoints that answer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from finetune.bc.frames import Frames
from finetune.rewards.collect import STATE_NAMES
from finetune.rewards.data import RewardFrames
from finetune.rewind.features import SeenFrames
from finetune.rewind.recipe import Recipe
from finetune.rewind.train import Material, TrainConfig, train
from finetune.robometer.embedded import make_config
from finetune.robometer.recipe import Recipe as RobometerRecipe
from models.rewards.contract import Query
from models.rewards.episodes import EpisodeInfo
from models.rewards.load import load_reward
from models.rewind.encoders import TowerSettings
from models.rewind.network import RewindNetwork, RewindSizes
from models.rewind.sampling import SamplerConfig
from models.robometer.network import RobometerNetwork
from robot_client.dataset import DatasetWriter

if TYPE_CHECKING:
    from pathlib import Path

SIZES = RewindSizes(image_width=6, text_width=8, width=32, layers=2, heads=4, feed_forward=64, dropout=0.0)
TASKS = ("drawer", "window", "door")
WORDS = {task: (f"open the {task}", f"get the {task} open") for task in TASKS}
MINI = RewindSizes(width=16, layers=1, heads=2, feed_forward=32)


class Words:
    """A text encoder of few texts: each wording near its task's vector."""

    width = 8

    def encode(self, texts):
        rows = []
        for text in texts:
            task = next(task for task in TASKS if task in text)
            near = torch.full((8,), 0.2 if text.startswith("get") else 0.0)
            near[TASKS.index(task)] += 1.0
            rows.append(near)
        return torch.stack(rows)


def toy() -> Material:
    """Episodes of several lengths and starts whose frames say which task it is and how far it got."""
    random = np.random.default_rng(0)
    infos, starts, vectors = [], [], []
    for number in range(12):
        task, length = TASKS[number % 3], int(random.integers(12, 40))
        starts.append(sum(len(part) for part in vectors))
        far = np.linspace(0, 1, length)[:, None]
        one = np.zeros((length, 4)) + np.eye(4)[number % 3]
        vectors.append(np.concatenate([far, 1 - far, one], axis=1) + random.normal(0, 0.02, (length, 6)))
        made = {"quality": "successful", "source": "toy", "cutoff": 1.0}
        infos.append(EpisodeInfo(task=task, instruction=WORDS[task][0], length=length, **made))
    table = torch.from_numpy(np.concatenate(vectors)).float()
    nothing = np.zeros(len(table), np.int64)
    frames = Frames(
        cameras=("corner",),
        images=np.zeros((len(table), 1, 1, 1, 3), np.uint8),
        state=np.zeros((len(table), 1), np.float32),
        action=np.zeros((len(table), 1), np.float32),
        instruction=nothing,
        last=nothing,
        instructions=(),
    )
    data = RewardFrames(frames=frames, starts=np.array(starts), episodes=tuple(infos), kinds=("expert",) * len(infos))
    seen = SeenFrames(settings=TowerSettings(), width=6, vectors=lambda rows: table[rows], carry=lambda _: None)
    return Material(data=data, seen=seen, text=Words(), wordings=WORDS)


def network() -> RewindNetwork:
    torch.manual_seed(0)
    return RewindNetwork(SIZES)


def config(out: Path, **changes) -> TrainConfig:
    sampler = SamplerConfig(from_start=0.5)
    return TrainConfig(out=out, sampler=sampler, batch=24, learning_rate=3e-3, **({"steps": 300} | changes))


def ends(made: RewindNetwork, material: Material, far: list[float], task: str, words: str) -> float:
    """The last value of a clip that goes through these shares of a task."""
    column = torch.tensor(far, dtype=torch.float32)[:, None]
    one = torch.zeros(len(far), 4)
    one[:, TASKS.index(task)] = 1.0
    with torch.inference_mode():
        clip = torch.cat([column, 1 - column, one], dim=1)[None]
        return float(made(material.text.encode([words]), clip)[0, -1])


def test_what_it_learns(tmp_path):
    material, made = toy(), network()
    train(config(tmp_path / "run"), made, material)
    there = np.linspace(0, 1, 16).tolist()
    back = [*np.linspace(0, 1, 9), *np.linspace(1, 0.1, 7)]
    for task in TASKS:
        forward = ends(made, material, there, task, WORDS[task][0])
        assert forward > 0.7
        assert ends(made, material, back, task, WORDS[task][0]) < forward - 0.4, "rewound, it ends low"
        others = [ends(made, material, there, task, WORDS[other][1]) for other in TASKS if other != task]
        assert max(others) < forward - 0.4, "other words, no progress"
        assert ends(made, material, there, task, WORDS[task][1]) > 0.7, "the other wording asks for the same"
        half = ends(made, material, [*np.linspace(0, 0.5, 8), *(8 * [0.5])], task, WORDS[task][0])
        assert 0.2 < half < 0.8


class KilledError(Exception):
    """Stands for a kill: whatever was not saved is lost."""


def test_a_run_that_was_killed_goes_on_to_the_weights_of_one_that_was_not(tmp_path):
    settings = {"steps": 9, "checkpoint_every": 3}
    whole, killed, resumed = network(), network(), network()
    train(config(tmp_path / "whole", **settings), whole, toy())

    def kill(step, loss):
        if step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        train(config(tmp_path / "killed", **settings), killed, toy(), report=kill)
    steps = []
    train(config(tmp_path / "killed", **settings), resumed, toy(), report=lambda step, loss: steps.append(step))
    assert steps == [4, 5, 6, 7, 8, 9]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(ValueError, match="batch"):
        train(replace(config(tmp_path / "killed", **settings), batch=8), network(), toy())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for task in ("drawer-open", "window-close"):
        names = {"state_names": STATE_NAMES, "action_names": ("x",), "robot_type": "toy"}
        writer = DatasetWriter.create(root / task, fps=10, cameras={"corner": (64, 64)}, **names)
        for number in range(3):
            writer.begin()
            for frame in range(5 + number):
                image = np.full((64, 64, 3), 40 * frame + number, np.uint8)
                writer.add({"corner": image}, np.zeros(len(STATE_NAMES), np.float32), np.zeros(1, np.float32))
            quality = "failure" if number == 2 else "successful"
            writer.end(task=task, extra={"quality": quality, "split": "train", "environment": f"{task}-v3"})
        writer.close()
    return root


def miniature(data: Path, work: Path, **changes) -> Recipe:
    return Recipe(data=data, work=work, tasks=("drawer-open", "window-close"), sizes=MINI, **changes)


def small(out: Path) -> TrainConfig:
    return TrainConfig(out=out, steps=2, batch=4)


def ask(folder: Path) -> np.ndarray:
    model = load_reward(str(folder))
    frame = model.prepare(np.full((80, 80, 3), 90, np.uint8))
    return model.score([Query(instruction="open it", frames=tuple(model.encode([frame, frame])))])[0].progress


def test_the_recipe_on_a_robometers_tower(data, tmp_path):
    work, recipe = tmp_path / "work", miniature(data, tmp_path / "work")
    names = {"model_id": "mini", "revision": "1"}
    with pytest.raises(FileNotFoundError, match=r"finetune\.robometer vision"):
        recipe.run(small(tmp_path / "run"), lambda *_: None, **names)
    shared = RobometerRecipe(data=data, work=work, tasks=recipe.tasks)
    torch.manual_seed(0)
    tower = RobometerNetwork(make_config(shared.tokenizer(), shared.sizes)).model.visual.state_dict()
    (work / "vision").mkdir()
    (work / "vision" / "config.json").write_text(json.dumps({"steps": 2}))
    for step in (1, 2):
        state = {f"network/visual.{name}": value for name, value in tower.items()}
        save_file(state | {"step": torch.tensor(float(step))}, work / "vision" / "state.safetensors")
        if step == 1:
            with pytest.raises(FileNotFoundError, match="1 of 2 steps"):
                recipe.run(small(tmp_path / "run"), lambda *_: None, **names)
    folder = recipe.run(small(tmp_path / "run"), lambda *_: None, **names)
    assert ask(folder).shape == (2,)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 25e6
    carried = load_file(folder / "tower" / "model.safetensors")
    for name, value in tower.items():
        torch.testing.assert_close(carried[name].float(), value, atol=1e-3, rtol=1e-3)


def test_the_recipe_on_a_dinov2(data, tmp_path):
    dino = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(dino).save_pretrained(tmp_path / "dino")
    recipe = miniature(data, tmp_path / "work", image=str(tmp_path / "dino"))
    folder = recipe.run(small(tmp_path / "run"), lambda *_: None, model_id="mini", revision="1")
    assert ask(folder).shape == (2,)
    kept = list((tmp_path / "work").rglob("dinov2-*.npy"))
    assert [np.load(path).shape for path in kept] == [(36, 16)]
