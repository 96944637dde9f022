"""Adapters of a policy on states: a narrow, wrong clone mended by demonstrations, and served beside its base."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.torch import load_file

from finetune.bc.frames import load_frames
from finetune.common.environments.registry import make_env
from finetune.lora.artefacts import base_of, merge_adapter
from finetune.lora.train import FinetuneConfig, finetune
from finetune.lora.trainable import LoraSettings
from models.folders import checkpoint_folder
from models.peft_files import CONFIG, WEIGHTS, WrongBaseError
from models.policies.adapters import FACTS, read_adapter
from models.policies.contract import ActItem, ActOptions, Observation
from models.policies.state_flow import StateFlowPolicy
from models.policies.state_flow.checkpoint import load_state_policy
from robot_client.dataset import DatasetWriter

if TYPE_CHECKING:
    from pathlib import Path

BASE, SHIFT = "zoo:slot-clone", 0.018


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty episodes through slots that are seen 0.018 beside where they are, from a robot without a camera."""
    folder: Path = tmp_path_factory.mktemp("demos") / "set"
    writer = DatasetWriter.create(
        folder, fps=20, cameras={}, state_names=["x", "y", "slot"], action_names=["dx", "dy"], robot_type="none"
    )
    env, random = make_env("slot"), np.random.default_rng(0)
    for seed in range(30):
        state, _ = env.reset(seed=seed)
        over = False
        writer.begin()
        while not over:
            action = env.unwrapped.expert(random)
            writer.add({}, state - np.array([0, 0, SHIFT], np.float32), action)
            state, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
        writer.end(task="through the slot")
    writer.close()
    return folder


def settings(shown: Path, out: Path, **changes: Any) -> FinetuneConfig:
    plain: dict[str, Any] = {"steps": 4, "batch": 8, "checkpoint_every": 2, "cache": shown.parent / "frames"}
    return FinetuneConfig(base=BASE, data=(shown,), out=out, **{**plain, **changes})


@pytest.fixture(scope="module")
def adapters(shown: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one adapter that was trained to the end, and one that hardly was, on the data's own statistics."""
    folder: Path = tmp_path_factory.mktemp("adapters")
    mended = settings(shown, folder / "runs" / "mended", steps=600, batch=64, learning_rate=5e-3)
    finetune(mended).rename(folder / "mended")
    own = settings(shown, folder / "runs" / "own", steps=40, lora=LoraSettings(rank=2), statistics="data")
    finetune(own).rename(folder / "own")
    return folder


def opened(checkpoint: str, adapters: Path | None = None) -> StateFlowPolicy:
    settings: dict[str, Any] = {} if adapters is None else {"adapters": str(adapters), "adapters_poll_s": 0.0}
    return StateFlowPolicy(StateFlowPolicy.Config(checkpoint=checkpoint, integration_steps=5, **settings))


def item(state: np.ndarray, seed: int, adapter: str | None = None, **options: Any) -> ActItem:
    return ActItem(
        observation=Observation(images={}, state=np.asarray(state, np.float32), instruction=""),
        session=str(seed),
        adapter=adapter,
        options=ActOptions(seed=seed, **options),
    )


def successes(policy: StateFlowPolicy, adapter: str | None) -> int:
    """Return how many of 40 episodes pass the slot."""
    env, count = make_env(f"slot:shift={SHIFT}"), 0
    for seed in range(40):
        state, _ = env.reset(seed=1000 + seed)
        over, info = False, {"success": False}
        while not over:
            for action in policy.act([item(state, seed, adapter)])[0].actions[: policy.spec.execute]:
                state, _, terminated, truncated, info = env.step(action)
                over = terminated or truncated
                if over:
                    break
        count += info["success"]
    return count


def test_an_adapter_mends_what_its_base_does_wrong(adapters: Path) -> None:
    policy = opened(BASE, adapters)
    assert policy.spec.adapters == "mixed"
    base, mended = successes(policy, None), successes(policy, "mended")
    assert base <= 15
    assert mended >= base + 15


def test_a_batch_of_adapters_gives_what_each_gives_merged(adapters: Path, tmp_path: Path) -> None:
    policy = opened(BASE, adapters)
    names, random = ("own", None, "mended", "own"), np.random.default_rng(0)
    items = [
        item(random.normal(size=3), seed, name, return_summary=True, integration_steps=5 if seed % 2 else 3)
        for seed, name in enumerate(names)
    ]
    merged = {name: str(merge_adapter(adapters / name, BASE, tmp_path / name)) for name in ("own", "mended")}
    answers = policy.act(items)
    for name, one, chunk in zip(names, items, answers, strict=True):
        (alone,) = opened(BASE if name is None else merged[name]).act([replace(one, adapter=None)])
        np.testing.assert_allclose(chunk.model_actions, alone.model_actions, atol=1e-4)
        np.testing.assert_allclose(chunk.summary, alone.summary, atol=1e-5)
        assert chunk.adapter_hash == (None if name is None else policy.adapters[name])
        if name is not None:  # or the test would pass with adapters that change nothing
            assert np.abs(policy.act([replace(one, adapter=None)])[0].actions - chunk.actions).max() > 0.01


def test_another_base_and_scaled_actions_are_refused(adapters: Path, tmp_path: Path) -> None:
    assert opened("zoo:eight-goals", adapters).adapters == {}
    assert "belongs to" in opened("zoo:eight-goals", adapters).refused_adapters["mended"]
    with pytest.raises(WrongBaseError):
        merge_adapter(adapters / "mended", "zoo:eight-goals-clone", tmp_path / "merged")
    scaled = tmp_path / "folder" / "scaled"
    scaled.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS, FACTS):
        (scaled / name).write_bytes((adapters / "mended" / name).read_bytes())
    facts = (scaled / FACTS).read_text("utf-8")
    assert facts.count("1.0,") == 1
    (scaled / FACTS).write_text(facts.replace("1.0,", "2.0,"), "utf-8")
    assert "scales actions" in opened(BASE, tmp_path / "folder").refused_adapters["scaled"]
    with pytest.raises(ValueError, match="adapter: 'mended', this policy has none"):
        opened(BASE).act([item(np.zeros(3), 0, "mended")])
    with pytest.raises(ValueError, match="adapter: 'other' is not served"):
        opened(BASE, adapters).act([item(np.zeros(3), 0, "other")])


def test_a_run_that_was_killed_ends_as_one_that_was_not(shown: Path, tmp_path: Path) -> None:
    def killed(step: int, _loss: float) -> None:
        if step == 3:  # a step beyond what was saved
            raise KeyboardInterrupt

    whole = finetune(settings(shown, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        finetune(settings(shown, tmp_path / "half"), report=killed)
    resumed = finetune(settings(shown, tmp_path / "half"))
    one, other = load_file(whole / WEIGHTS), load_file(resumed / WEIGHTS)
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_all_weights_and_the_loss_that_weights_make(shown: Path, tmp_path: Path) -> None:
    config, before, content_hash = load_state_policy(checkpoint_folder(BASE))
    folder = finetune(settings(shown, tmp_path / "full", method="full", statistics="data", flow_samples=2))
    made, after, _ = load_state_policy(folder)
    assert (made.id, made.execute, made.denoising) == ("slot-full", config.execute, config.denoising)
    assert not (after.enter.weight == before.enter.weight).all()
    frames = load_frames([shown], None, shown.parent / "frames")
    np.testing.assert_allclose(made.state_normalizer.mean, frames.state.mean(axis=0), atol=1e-5)
    assert (frames.cameras, frames.images.shape[:2]) == ((), (len(frames.state), 0))
    heads = finetune(settings(shown, tmp_path / "h", method="lora", lora=LoraSettings(rank=2, heads=("leave.1",))))
    assert set(read_adapter(heads, base=base_of(config, content_hash)).heads) == {"leave.1.weight", "leave.1.bias"}


def test_data_of_another_kind_are_refused(shown: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data: state and action are \(3, 2\), eight-goals needs \(10, 2\)"):
        finetune(replace(settings(shown, tmp_path / "run"), base="zoo:eight-goals"))
    far = tmp_path / "far"
    writer = DatasetWriter.create(
        far, fps=20, cameras={}, state_names=["x", "y", "slot"], action_names=["dx", "dy"], robot_type="none"
    )
    writer.begin()
    writer.add({}, np.zeros(3, np.float32), np.array([0.0, -1.5], np.float32))
    writer.end(task="through the slot")
    writer.close()
    with pytest.raises(ValueError, match=r"data: an action of 1.5, those of .* are from -1 to 1"):
        finetune(replace(settings(shown, tmp_path / "run"), data=(far,), cache=tmp_path / "cache"))
