"""Adapters of a policy, trained: what changes, how much, on which frames, and what PEFT makes of the files."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from peft import PeftModel
from pyarrow import parquet
from safetensors.torch import load_file
from typer.testing import CliRunner

from finetune.bc.frames import load_frames
from finetune.lora.__main__ import app
from finetune.lora.artefacts import base_of, merge_adapter
from finetune.lora.presets import PRESETS, preset
from finetune.lora.train import FinetuneConfig, finetune
from finetune.lora.trainable import LoraSettings, make_trainable, matching, require_four_bits
from finetune.lora.weights import WeightSettings, frame_weights
from models.peft_files import CONFIG, WEIGHTS
from models.policies.adapters import FACTS, merge, read_adapter, seal
from models.policies.flow_vla.checkpoint import load_checkpoint
from models.policies.low_rank import LowRankMixer
from robot_client.dataset import DatasetWriter
from tests.adapters import HEAD, make_adapter, make_base

if TYPE_CHECKING:
    from pathlib import Path

LENGTH = 6


def write_demos(root: Path, *, episodes: int = 2) -> Path:
    random = np.random.default_rng(0)
    writer = DatasetWriter.create(
        root,
        fps=20,
        cameras={"front": (32, 32)},
        state_names=["s0", "s1", "s2"],
        action_names=["a0", "a1", "a2", "a3"],
        robot_type="none",
    )
    for episode in range(episodes):
        writer.begin()
        for _ in range(LENGTH):
            image = np.full((32, 32, 3), 40 * episode, np.uint8)
            action = np.full(4, 3.0 if episode else -3.0, np.float32)
            writer.add({"front": image}, random.normal(size=3).astype(np.float32), action)
        writer.end(task="lift it")
    writer.close()
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return write_demos(tmp_path_factory.mktemp("demos") / "set")


def settings(base: Path, demos: Path, out: Path, **changes: Any) -> FinetuneConfig:
    plain: dict[str, Any] = {"steps": 4, "batch": 4, "checkpoint_every": 2, "cache": demos.parent / "frames"}
    return FinetuneConfig(base=str(base), data=(demos,), out=out, **{**plain, **changes})


def velocity(network: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images, state = torch.randn(3, 1, 3, 32, 32, generator=generator), torch.randn(3, 3, generator=generator)
    noisy, time = torch.randn(3, 16, 4, generator=generator), torch.rand(3, generator=generator)
    with torch.no_grad():
        return network.velocity(network.encode(images, state, torch.ones(3, 8, dtype=torch.int64)), noisy, time)


@pytest.mark.parametrize("initial", ["kaiming", "gaussian"])
def test_an_adapter_changes_nothing_at_first(base: Path, initial: Any) -> None:
    _, network, _ = load_checkpoint(base)
    before = velocity(network)
    made = make_trainable(network, "lora", LoraSettings(initial=initial, heads=(HEAD,)))
    assert float((velocity(network) - before).abs().max()) == 0.0
    assert 0 < made.trained < made.total
    assert made.share == made.trained / made.total


def test_training_changes_the_adapter_and_its_heads_alone(base: Path, demos: Path, tmp_path: Path) -> None:
    untouched = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    folder = finetune(settings(base, demos, tmp_path / "run", lora=LoraSettings(rank=2, heads=(HEAD,))))
    config, network, content_hash = load_checkpoint(base)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adapter = read_adapter(folder, base=base_of(config, content_hash))
    merge(network, adapter)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.weight" for name in adapter.layers} | {f"{HEAD}.weight", f"{HEAD}.bias"}
    assert set(adapter.layers) == set(matching(network, "all-linear", besides=(HEAD,)))
    assert hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest() == untouched
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert report["trained"] == adapter.parameters
    assert adapter.facts.base.content_hash == content_hash
    assert adapter.facts.action.mean == config.action_normalizer.mean


def test_a_run_that_was_killed_ends_as_one_that_was_not(base: Path, demos: Path, tmp_path: Path) -> None:
    lora = LoraSettings(rank=2, dropout=0.3)
    whole = finetune(settings(base, demos, tmp_path / "whole", lora=lora))

    def killed(step: int, _loss: float) -> None:
        if step == 3:  # a step beyond what was saved
            raise KeyboardInterrupt

    half = settings(base, demos, tmp_path / "half", lora=lora)
    with pytest.raises(KeyboardInterrupt):
        finetune(half, report=killed)
    resumed = finetune(half)
    one, other = load_file(whole / WEIGHTS), load_file(resumed / WEIGHTS)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ValueError, match="other settings"):
        finetune(replace(half, learning_rate=1e-2))


def test_the_other_methods_train_what_they_say(base: Path, demos: Path, tmp_path: Path) -> None:
    _, network, _ = load_checkpoint(base)
    before = network.state_dict()
    heads = finetune(settings(base, demos, tmp_path / "h", method="heads", lora=LoraSettings(heads=(HEAD,))))
    after = load_checkpoint(heads)[1].state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {f"{HEAD}.weight", f"{HEAD}.bias"}
    full = finetune(settings(base, demos, tmp_path / "f", method="full", statistics="data"))
    config, network, _ = load_checkpoint(full)
    assert not torch.equal(network.vision.stem[0].weight, before["vision.stem.0.weight"])
    np.testing.assert_allclose(config.action_normalizer.mean, 0.0, atol=1e-5)
    np.testing.assert_allclose(config.action_normalizer.std, 3.001, atol=1e-5)


@pytest.mark.parametrize(("stabilised", "factor"), [(False, 6 / 4), (True, 6 / 2)])
def test_the_scale_and_that_merged_is_what_peft_computes(
    base: Path, tmp_path: Path, *, stabilised: bool, factor: float
) -> None:
    folder = make_adapter(tmp_path / "a", base, seed=1, rank=4, alpha=6, stabilised=stabilised, heads=(HEAD,))
    raw = load_file(folder / WEIGHTS)
    config, network, content_hash = load_checkpoint(base)
    adapter = read_adapter(folder, base=base_of(config, content_hash))
    torch.testing.assert_close(
        adapter.layers["expert.enter"].b, factor * raw["base_model.model.expert.enter.lora_B.weight"]
    )

    by_peft = PeftModel.from_pretrained(load_checkpoint(base)[1], str(folder)).base_model.model
    expected = velocity(by_peft)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    assert float((velocity(network) - expected).abs().max()) > 0.01
    mixer = LowRankMixer(network)
    with mixer.mixing([mixer.fit(adapter)] * 3):
        torch.testing.assert_close(velocity(network), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())
    merged = load_checkpoint(merge_adapter(folder, str(base), tmp_path / "merged"))[1]
    torch.testing.assert_close(velocity(merged), expected, atol=1e-5, rtol=1e-5)


def test_what_peft_saves_again_is_read_again(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a", base, seed=1, rank=4)
    config, network, content_hash = load_checkpoint(base)
    own = read_adapter(folder, base=base_of(config, content_hash))
    PeftModel.from_pretrained(network, str(folder)).save_pretrained(tmp_path / "again", save_embedding_layers=False)
    facts = own.facts
    seal(tmp_path / "again", name="again", revision="2", base=facts.base, state=facts.state, action=facts.action)
    again = read_adapter(tmp_path / "again", base=facts.base)
    assert again.layers.keys() == own.layers.keys()
    assert all(torch.equal(again.layers[name].b, own.layers[name].b) for name in own.layers)
    assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS, FACTS, "README.md"}
    assert json.loads((folder / CONFIG).read_text("utf-8"))["base_model_name_or_path"] == "tiny"


def test_targets_by_name_expression_or_all(base: Path) -> None:
    _, network, _ = load_checkpoint(base)
    blocks = [f"expert.blocks.{index}.first" for index in range(3)]
    assert matching(network, ("first",)) == tuple(blocks)
    assert matching(network, r"expert\.blocks\.\d\.first") == tuple(blocks)
    every = matching(network, "all-linear")
    assert {"words.mix.0", "vision.fine.film", HEAD, *blocks} < set(every)
    assert matching(network, "all-linear", besides=(HEAD,)) == tuple(name for name in every if name != HEAD)
    for targets in (("first", "q_proj"), r".*q_proj", ()):
        with pytest.raises(ValueError, match=r"match nothing; the linear layers are .*expert\.enter"):
            matching(network, targets)
    with pytest.raises(ValueError, match="no linear layers"):
        matching(network, ("stem",))
    with pytest.raises(ValueError, match=r"heads: 'expert\.norm' is no linear layer"):
        make_trainable(network, "heads", LoraSettings(heads=("expert.norm",)))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_its_own_model_or_says_what_is_missing(base: Path, name: str) -> None:
    chosen = preset(name)
    assert chosen.source
    _, network, _ = load_checkpoint(base)
    lora = LoraSettings(targets=chosen.targets, rank=chosen.rank, alpha=chosen.alpha, initial=chosen.initial)
    if chosen.targets == "all-linear":
        make_trainable(network, "lora", lora)
    else:
        with pytest.raises(ValueError, match="match nothing"):
            make_trainable(network, "lora", lora)


def test_the_presets_targets_are_their_models_layers() -> None:
    layers = torch.nn.ModuleDict()
    tree: dict[str, Any] = {
        "gemma_expert": {"self_attn": ("q_proj", "k_proj")},
        "vlm": {"self_attn": ("q_proj", "o_proj")},
        "top": ("state_proj", "action_out_proj"),
    }

    def grown(branch: Any) -> torch.nn.Module:
        if isinstance(branch, dict):
            return torch.nn.ModuleDict({name: grown(part) for name, part in branch.items()})
        return torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in branch})

    layers["model"] = grown(tree)
    own = {
        name: matching(layers, preset(name).targets) for name in ("pi0-lerobot", "pi0-openpi-vlm", "pi0-openpi-expert")
    }
    expert = "model.gemma_expert.self_attn."
    assert own["pi0-lerobot"] == (f"{expert}q_proj", "model.top.action_out_proj", "model.top.state_proj")
    assert own["pi0-openpi-expert"] == (f"{expert}k_proj", f"{expert}q_proj")
    assert own["pi0-openpi-vlm"] == ("model.vlm.self_attn.o_proj", "model.vlm.self_attn.q_proj")


def labels(path: Path, values: list[float], **changes: Any) -> WeightSettings:
    order = np.arange(len(values))[::-1]  # rows in any order: the index says whose they are
    parquet.write_table(pa.table({"index": order, "progress_sparse": np.array(values, np.float32)[order]}), path)
    return WeightSettings(column="progress_sparse", file=path.name, **changes)


def test_weights_come_from_a_column_of_the_data_or_of_its_labels(demos: Path) -> None:
    frames = load_frames([demos], 32, demos.parent / "frames")
    own = frame_weights(WeightSettings(column="episode_index"), [demos], frames, chunk_length=16)
    np.testing.assert_allclose(own, [0] * LENGTH + [2] * LENGTH)
    rising = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, *[0.0] * LENGTH]
    told = labels(demos / "labels.parquet", rising, rule="progress")
    found = frame_weights(told, [demos], frames, chunk_length=2)
    gain = np.array([0.2, 0.2, 0.2, 0.2, 0.1, 0.0, *[0.0] * LENGTH], np.float64)
    expected = np.exp((gain - gain.mean()) / gain.std())
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "says"),
    [([1.0] * 5, "5 rows for 12 frames"), ([float("nan")] * 12, "not finite"), ([-1.0] * 12, "0 or more")],
)
def test_unusable_weights_are_named(demos: Path, values: list[float], says: str) -> None:
    frames = load_frames([demos], 32, demos.parent / "frames")
    with pytest.raises(ValueError, match=says):
        frame_weights(labels(demos / "labels.parquet", values), [demos], frames, chunk_length=2)
    with pytest.raises(ValueError, match=r"no column reward in set; it has .*episode_index"):
        frame_weights(WeightSettings(column="reward"), [demos], frames, chunk_length=2)


def test_frames_that_count_nothing_teach_nothing(base: Path, demos: Path, tmp_path: Path) -> None:
    def bias(name: str, weights: WeightSettings | None) -> float:
        """Train heads on an action of +3 in one episode and of -3 in the other, and return which way they went."""
        config = settings(base, demos, tmp_path / name, method="heads", lora=LoraSettings(heads=(HEAD,)))
        folder = finetune(replace(config, steps=60, batch=16, learning_rate=3e-2, weights=weights))
        moved = load_checkpoint(folder)[1].state_dict()[f"{HEAD}.bias"]
        return float((load_checkpoint(base)[1].state_dict()[f"{HEAD}.bias"] - moved).reshape(16, 4)[:, 0].mean())

    assert bias("second", WeightSettings(column="episode_index")) > bias("both", None) + 0.1


def test_four_bits_are_refused_where_something_is_missing(
    base: Path, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        finetune(settings(base, demos, tmp_path / "run", method="qlora"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="needs bitsandbytes"):
        require_four_bits()


def test_an_adapter_of_a_base_in_four_bits(
    base: Path, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: no base in four bits")
    monkeypatch.setattr("finetune.lora.trainable.require_four_bits", lambda: None)  # slow on a CPU, and the same
    folder = finetune(settings(base, demos, tmp_path / "run", method="qlora", lora=LoraSettings(rank=2)))
    plain = finetune(settings(base, demos, tmp_path / "plain", lora=LoraSettings(rank=2)))
    config, _, content_hash = load_checkpoint(base)
    adapters = [read_adapter(path, base=base_of(config, content_hash)) for path in (folder, plain)]
    assert adapters[0].layers.keys() == adapters[1].layers.keys()
    assert not torch.equal(adapters[0].layers[HEAD].b, adapters[1].layers[HEAD].b), "the base was not in four bits"


def test_the_commands(base: Path, demos: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> None:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output

    out = tmp_path / "run"
    common = ("--base", str(base), "--steps", "2", "--batch", "4", "--rank", "2", "--targets", "first,enter")
    run("train", "--data", str(demos), "--out", str(out), *common)
    config, _, content_hash = load_checkpoint(base)
    assert set(read_adapter(out / "adapter", base=base_of(config, content_hash)).layers) == {
        "expert.enter",
        *(f"expert.blocks.{index}.first" for index in range(3)),
    }
    run("merge", "--adapter", str(out / "adapter"), "--base", str(base), "--out", str(tmp_path / "merged"))
    assert load_checkpoint(tmp_path / "merged")[0].id == "tiny-run"
