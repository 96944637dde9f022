"""Robometer in eight and four bits: what is replaced, how far values move, and what still holds."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from finetune.bc.expert import ExpertConfig, demonstrate
from models.rewards.contract import Query
from models.rewards.drift import measure_drift
from models.robometer.reward import RobometerReward
from robot_client.robots.metaworld import CAMERA, MetaWorldRobot

LARGEST, MEAN = {"int8": 0.05, "nf4": 0.25}, {"int8": 0.01, "nf4": 0.05}
"""Of progress, 0 to 1. A layer's output moves by about 0.4 % in eight bits (weights and activations rounded to 1/127 of
a row's largest) and by 9 % in four; 28 layers that err independently add up to some 2 % and 50 % of the logits' spread.
On the clips below the embedded model moves by 0.001 and 0.007 in the mean, 0.010 and 0.051 at most."""
BESIDE = {"int8": 0.02, "nf4": 1e-5}
"""What neighbours in a batch may change: in eight bits the columns taken out are those of the whole batch. Measured on
such clips: 0.003 and 6e-8."""


def make(quantization):
    config = RobometerReward.Config(checkpoint="zoo:metaworld-robometer", device="cpu", quantization=quantization)
    return RobometerReward(config)


@pytest.fixture(scope="module")
def whole():
    return make("none")


@pytest.fixture(scope="module", params=["int8", "nf4"])
def quantized(request):
    return make(request.param)


@pytest.fixture(scope="module")
def clips():
    """The scripted expert at six of the model's own tasks, eight frames of each, in scenes that it never saw."""
    found = []
    for task in ("drawer-open", "button-press", "faucet-open", "door-close", "push", "window-open"):
        robot = MetaWorldRobot(task, image_size=(96, 96))
        seen = [step.observation.images[CAMERA] for step in demonstrate(robot, 50_000, ExpertConfig())]
        robot.close()
        shown = np.linspace(0, len(seen) - 1, 8).round().astype(int)
        found.append((robot.instruction, [seen[place] for place in shown]))
    return found


def test_values_drift_within_what_the_bits_allow(whole, quantized, clips):
    found = measure_drift(whole, quantized, clips)
    assert found.frames == 48
    assert 0.0 < found.progress.mean <= MEAN[quantized.spec.dtype]
    assert found.progress.largest <= LARGEST[quantized.spec.dtype]
    assert found.success.largest <= LARGEST[quantized.spec.dtype]
    assert found.progress.correlation > (0.99 if quantized.spec.dtype == "int8" else 0.9)
    same = measure_drift(whole, whole, clips[:1])
    assert (same.progress.mean, same.progress.largest) == (0.0, 0.0)


def test_only_the_language_models_linear_layers_are_replaced(whole, quantized, clips):
    network = quantized._network
    kinds = {type(layer).__name__ for layer in network.model.language_model.modules() if "Linear" in repr(type(layer))}
    assert kinds == {{"int8": "Linear8bitLt", "nf4": "Linear4bit"}[quantized.spec.dtype]}
    for part in (network.progress_head, network.success_head, network.preference_head):
        assert {type(layer) for layer in part if isinstance(layer, torch.nn.Linear)} == {torch.nn.Linear}
    one, other = (model.encode([model.prepare(clips[0][1][3])])[0] for model in (whole, quantized))
    torch.testing.assert_close(one.layers, other.layers, rtol=0, atol=0)

    def held(model):
        layers = model._network.model.language_model.layers
        return sum(parameter.nbytes for parameter in layers.parameters())

    assert held(quantized) < held(whole) * {"int8": 0.27, "nf4": 0.15}[quantized.spec.dtype]


def test_neighbours_and_later_frames_change_little(quantized, clips):
    allowed = BESIDE[quantized.spec.dtype]
    seen = [quantized.encode([quantized.prepare(frame) for frame in frames]) for _, frames in clips]
    queries = [
        Query(instruction=task, frames=tuple(features[: 3 + at]))
        for at, ((task, _), features) in enumerate(zip(clips, seen, strict=True))
    ]
    for query, together in zip(queries, quantized.score(queries), strict=True):
        np.testing.assert_allclose(together.progress, quantized.score([query])[0].progress, atol=allowed)
    mixed = (*seen[5][:4], *seen[0][:4])
    [before] = quantized.score([Query(instruction="push the button", frames=tuple(seen[5]))])
    [after] = quantized.score([Query(instruction="push the button", frames=mixed)])
    np.testing.assert_allclose(after.progress[:4], before.progress[:4], atol=allowed)
    assert np.abs(after.progress[4:] - before.progress[4:]).max() > allowed


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"quantization: int8 needs bitsandbytes; install roboserve\[vlm\]"):
        make("int8")


def test_drift_of_nothing_is_refused(whole):
    with pytest.raises(ValueError, match="there are none"):
        measure_drift(whole, whole, [])
