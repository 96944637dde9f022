"""The mean of runs: each weight is the mean, what it is asked stays, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.robometer.average import average
from models.rewards.load import load_reward

ZOO = Path(__file__).parents[2] / "models" / "zoo" / "metaworld-robometer"


def run(folder: Path, factor: float) -> Path:
    """A run whose weights are a factor of the embedded model's."""
    checkpoint = folder / "checkpoint"
    shutil.copytree(ZOO, checkpoint)
    weights = load_file(ZOO / "model.safetensors")
    scaled = {name: (value.float() * factor).to(value.dtype) for name, value in weights.items()}
    save_file(scaled, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_mean_of_two_runs_is_a_model_of_its_own(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, factor) for name, factor in (("a", 0.5), ("b", 1.5))]
    folder = average(runs, tmp_path / "mean", revision="7")
    expected, found = load_file(ZOO / "model.safetensors"), load_file(folder / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name].float(), value.float(), rtol=2e-3, atol=1e-6)
    spec = load_reward(str(folder)).spec
    assert spec.revision == "7"
    assert spec.prompt_version == load_reward("zoo:metaworld-robometer").spec.prompt_version
    assert json.loads((tmp_path / "mean" / "config.json").read_text("utf-8"))["average"] == [str(one) for one in runs]


def test_what_has_no_mean_is_refused(tmp_path: Path) -> None:
    one = run(tmp_path / "one", 1.0)
    with pytest.raises(ValueError, match="needs 2"):
        average([one], tmp_path / "out", revision="1")
    other = run(tmp_path / "other", 1.0)
    weights = load_file(other / "checkpoint" / "model.safetensors")
    name = max(weights, key=lambda key: weights[key].numel())
    save_file({**weights, name: weights[name][:1].clone()}, other / "checkpoint" / "model.safetensors")
    with pytest.raises(ValueError, match="other names or shapes"):
        average([one, other], tmp_path / "out", revision="1")
    with pytest.raises(FileNotFoundError):
        average([one, tmp_path / "nowhere"], tmp_path / "out", revision="1")
