"""Finetuning any Robometer on one's own datasets: adapters and weights, resumed exactly, and served."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import finetune.robometer as recipe
from clients.errors import RoboserveError
from finetune.robometer.__main__ import app
from finetune.robometer.embedded import Sizes, make_config, make_tokenizer
from finetune.robometer.finetune import FinetuneConfig, Watch, finetune
from finetune.robometer.sources import DataSource, data_sources, kept_frames, load_clips
from finetune.robometer.trainable import LoraSettings, make_full, make_lora
from models.peft_files import WrongBaseError
from models.rewards.contract import Pair, Query
from models.rewards.load import load_reward
from models.robometer.adapter import load_adapter
from models.robometer.checkpoint import RobometerSettings, load_checkpoint, save_checkpoint
from models.robometer.network import RobometerNetwork
from models.robometer.prompt import EMBEDDED_PROMPT
from models.robometer.reward import RobometerReward
from models.robometer.sampling import SamplerConfig
from robot_client.dataset import DatasetWriter

SIZES = Sizes(image=64, vision_width=32, vision_layers=4, vision_heads=2, deepstack=(0,), width=64, layers=2, heads=2)
WORDS = ("open the drawer", "close the window")


def make_base(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    tokenizer = make_tokenizer([*WORDS, EMBEDDED_PROMPT.progress_before, EMBEDDED_PROMPT.preference_before], SIZES)
    network = RobometerNetwork(make_config(tokenizer, SIZES))
    settings = RobometerSettings(id="tiny", revision="7", prompt=EMBEDDED_PROMPT, image_size=(64, 64), max_frames=8)
    save_checkpoint(folder, settings, network, tokenizer, card="# tiny\n", dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base") / "tiny", seed=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two datasets of different robots: one with a wrist camera beside, one with longer episodes."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, cameras, length in (("lab", ("front", "wrist"), 9), ("home", ("top",), 70)):
        sizes = dict.fromkeys(cameras, (48, 64) if name == "lab" else (64, 64))
        names = {"state_names": ("x",) if name == "lab" else ("x", "y"), "action_names": ("x",), "robot_type": name}
        writer = DatasetWriter.create(root / name, fps=10, cameras=sizes, **names)
        for number in range(4):
            writer.begin()
            for step in range(length if number else 4 if name == "lab" else length):
                level = int(255 * step / length)
                images = {
                    camera: np.clip(random.integers(0, 30, (*size, 3)) + level, 0, 255).astype(np.uint8)
                    for camera, size in sizes.items()
                }
                writer.add(images, np.zeros(len(names["state_names"]), np.float32), np.zeros(1, np.float32))
            writer.end(task=WORDS[number % 2], extra={"success": number < 3})
        writer.close()
    return root


def config(base: Path, data: Path, out: Path, **changes) -> FinetuneConfig:
    sources = (
        DataSource(name="lab", folder=data / "lab", cutoff=0.9, cameras=("front", "wrist")),
        DataSource(name="home", folder=data / "home", cutoff=1.0),
    )
    given = {
        "cache": data / "cache",
        "sampler": SamplerConfig(frames=4, from_start=0.5),
        "lora": LoraSettings(rank=4, alpha=8),
        "steps": 6,
        "batch": 2,
        "learning_rate": 1e-3,
        "checkpoint_every": 2,
        "log_every": 1,
        "threads": 1,
    }
    return FinetuneConfig(base=str(base), data=sources, out=out, **(given | changes))


@pytest.fixture(scope="module")
def adapter(base, data, tmp_path_factory):
    return finetune(config(base, data, tmp_path_factory.mktemp("runs") / "lora"))


def reward(folder: Path, base: Path | None = None) -> RobometerReward:
    where = None if base is None else str(base)
    return RobometerReward(RobometerReward.Config(checkpoint=str(folder), base=where, device="cpu"))


def answers(model) -> np.ndarray:
    random = np.random.default_rng(3)
    seen = tuple(model.encode([random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(4)]))
    scored = model.score([Query(instruction=WORDS[0], frames=seen)])[0]
    chance = model.compare([Pair(instruction=WORDS[0], first=seen[:2], second=seen[2:])])
    return np.concatenate([scored.progress, scored.success, chance])


class KilledError(Exception):
    """Stands for a kill: whatever was not saved is lost."""


def kill_at(last: int) -> Watch:
    def step(now, losses):
        if now == last:
            raise KilledError

    return Watch(step=step)


def test_a_killed_run_goes_on_to_the_adapter_of_one_that_was_not(base, data, adapter, tmp_path):
    settings = config(base, data, tmp_path / "lora")
    with pytest.raises(KilledError):
        finetune(settings, kill_at(5))  # one step after the last save
    steps = []
    resumed = finetune(settings, Watch(step=lambda step, losses: steps.append(step)))
    assert steps == [5, 6]
    whole = load_file(adapter / "adapter_model.safetensors")
    for name, value in load_file(resumed / "adapter_model.safetensors").items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)
    logged = [json.loads(line)["step"] for line in (tmp_path / "lora" / "metrics.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4, 5, 6], "rows of steps that a kill undid are dropped"
    with pytest.raises(ValueError, match="batch"):
        finetune(replace(settings, batch=3))


def test_the_adapter_folder_is_what_peft_reads_and_the_merge_is_its_merge(base, adapter):
    from peft import PeftModel

    described = json.loads((adapter / "robometer_adapter.json").read_text())
    assert described["base"]["content_hash"] == load_checkpoint(base).content_hash
    assert described["base"]["id"] == "tiny"
    assert described["base"]["revision"] == "7"
    own = load_adapter(adapter)
    checkpoint = load_checkpoint(base)
    theirs = PeftModel.from_pretrained(checkpoint.network, adapter).merge_and_unload()
    mine = dict(own.network.named_parameters())
    before = dict(load_checkpoint(base).network.named_parameters())
    moved = set()
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(mine[name], value, rtol=1e-6, atol=1e-7)
        if not torch.equal(value, before[name]):
            moved.add(name)
    layers = [name for name in moved if ".language_model." in name]
    assert {name.split(".")[-2] for name in layers} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert {name.split(".")[0] for name in moved - set(layers)} == {"progress_head", "success_head", "preference_head"}
    assert len(layers) == 7 * SIZES.layers


def test_an_adapter_is_served_beside_its_base(base, adapter, tmp_path):
    model = reward(adapter)
    assert model.spec.id == "tiny-lora"
    assert model.spec.content_hash != reward(base).spec.content_hash
    assert np.abs(answers(model) - answers(reward(base))).max() > 1e-3
    loaded = load_reward(str(adapter))
    np.testing.assert_allclose(answers(loaded), answers(model), atol=1e-5)
    moved = tmp_path / "elsewhere"
    shutil.copytree(base, moved)
    again = reward(adapter, base=moved)
    np.testing.assert_array_equal(answers(again), answers(model))
    assert again.spec.content_hash == model.spec.content_hash, "where the base lies is no part of the content"
    RobometerReward.check_folder(adapter)


def test_an_adapter_on_another_base_is_refused_with_both_hashes(base, adapter, tmp_path):
    other = make_base(tmp_path / "other", seed=1)
    with pytest.raises(WrongBaseError) as caught:
        reward(adapter, base=other)
    expected, found = load_checkpoint(base).content_hash, load_checkpoint(other).content_hash
    assert (caught.value.expected, caught.value.found) == (expected, found)
    assert expected in str(caught.value)
    assert found in str(caught.value)
    with pytest.raises(FileNotFoundError, match="tiny revision 7"):
        reward(adapter, base=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no adapter"):
        reward(base, base=base)
    with pytest.raises(ValueError, match="no adapter"):
        load_reward(str(base), base=str(base))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"r": 0}, "damaged"),
    ],
)
def test_what_cannot_be_merged_is_refused(adapter, tmp_path, change, says):
    shutil.copytree(adapter, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=says):
        load_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("change", ["lacks a B", "has another layer", "has another shape"])
def test_damaged_adapters_are_refused(adapter, tmp_path, change):
    shutil.copytree(adapter, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("q_proj.lora_B.weight"))
    if change == "lacks a B":
        del tensors[name]
    elif change == "has another layer":
        tensors["base_model.model.model.language_model.norm.weight"] = torch.ones(64)
    else:
        tensors[name] = torch.cat([tensors[name], tensors[name]])
    save_file(tensors, path)
    with pytest.raises(ValueError, match="adapter:"):
        load_adapter(tmp_path / "adapter")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="damaged"):
        load_adapter(tmp_path / "adapter")


def test_a_full_run_writes_a_checkpoint_that_resumes_exactly(base, data, tmp_path):
    changes = {"mode": "full", "vision": "last", "vision_learning_rate": 1e-3, "steps": 4, "forward_pairs": 1}
    whole = finetune(config(base, data, tmp_path / "whole", **changes))
    with pytest.raises(KilledError):
        finetune(config(base, data, tmp_path / "killed", **changes), kill_at(3))
    resumed = finetune(config(base, data, tmp_path / "killed", **changes))
    trained, before = load_file(whole / "model.safetensors"), load_file(base / "model.safetensors")
    for name, value in load_file(resumed / "model.safetensors").items():
        torch.testing.assert_close(value, trained[name], rtol=0, atol=0)
    still = {name for name, value in trained.items() if torch.equal(value, before[name])}
    assert all("visual" in name or "frame_pool_attn" in name for name in still)
    towers = {name.split(".")[3] for name in trained if ".visual.blocks." in name and name not in still}
    assert towers == {"1", "2", "3"}, "the last three of four layers"
    assert load_checkpoint(whole).settings.id == "tiny-whole"
    assert np.isfinite(answers(load_reward(str(whole)))).all()


def test_pairs_in_turns_and_activations_computed_again_change_nothing(base, data, tmp_path):
    exact = {"mode": "full", "steps": 2}
    without = {"sampler": SamplerConfig(frames=4, strategies=("suboptimal",))}
    results = []
    for name, changes in (("once", {}), ("again", {"recompute": True})):
        folder = finetune(config(base, data, tmp_path / name, **exact, **without, **changes))
        results.append(load_file(folder / "model.safetensors"))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-6)


def test_what_is_trained(base):
    def trained(made):
        return {name for name, part in made.reader.network.named_parameters() if part.requires_grad}

    frozen = trained(make_full(load_checkpoint(base).network, "frozen", learning_rate=1.0, vision_learning_rate=0.1))
    assert not any("visual" in name or "frame_pool" in name for name in frozen)
    assert any("embed_tokens" in name for name in frozen)
    last = make_full(load_checkpoint(base).network, "last", learning_rate=1.0, vision_learning_rate=0.1)
    assert [group["lr"] for group in last.groups] == [1.0, 0.1]
    everything = trained(make_full(load_checkpoint(base).network, "all", learning_rate=1.0, vision_learning_rate=0.1))
    assert any("patch_embed" in name for name in everything)
    lora = make_lora(load_checkpoint(base).network, LoraSettings(), learning_rate=1.0)
    assert (lora.lora.r, lora.lora.lora_alpha, lora.lora.lora_dropout) == (32, 64, 0.05)
    assert all("lora_" in name or "modules_to_save" in name for name in trained(lora))


def test_it_learns(base, data, tmp_path):
    seen = []
    changes = {"mode": "full", "steps": 40, "batch": 4, "learning_rate": 3e-3, "checkpoint_every": 40}
    finetune(config(base, data, tmp_path / "run", **changes), Watch(step=lambda step, losses: seen.append(losses)))
    totals = [sum(losses.values()) for losses in seen]
    assert np.mean(totals[-10:]) < 0.8 * np.mean(totals[:5])


def test_cutoffs_are_asked_for_by_name(base, data, tmp_path):
    folders = {"lab": data / "lab", "home": data / "home"}
    with pytest.raises(RoboserveError, match="home has none") as caught:
        data_sources(folders, {"lab": 0.9})
    assert caught.value.code == "invalid_request"
    with pytest.raises(RoboserveError, match="attic"):
        data_sources(folders, {"lab": 0.9, "home": 1.0, "attic": 1.0})
    with pytest.raises(RoboserveError, match="at most 1"):
        data_sources({"lab": data / "lab"}, {"lab": 1.5})
    said = CliRunner().invoke(
        app, ["finetune", str(base), "--out", str(tmp_path / "run"), "--data", f"lab={data / 'lab'}"]
    )
    assert said.exit_code == 1
    assert "dataset lab has none" in said.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps"),
        ({"vision": "all"}, "needs mode 'full'"),
        ({"data": ()}, "at least one dataset"),
        ({"forward_pairs": 0}, "forward_pairs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(base, data, tmp_path, changes, says):
    with pytest.raises(RoboserveError, match=says):
        replace(config(base, data, tmp_path), **changes)


def test_longer_clips_than_the_base_shows_are_refused(base, data, tmp_path):
    with pytest.raises(RoboserveError, match="8 at most"):
        finetune(config(base, data, tmp_path / "run", sampler=SamplerConfig(frames=16)))


def test_datasets_are_read_as_the_reference_reads_them(base, data, tmp_path):
    sources = config(base, data, tmp_path).data
    clips = load_clips(sources, tmp_path / "cache", size=(64, 64), unit=32)
    lab, home = clips.summaries
    assert lab.qualities == {"failure": 2, "successful": 4}, "each camera makes an episode of its own"
    assert lab.skipped == 2, "an episode of four frames is left out"
    assert home.qualities == {"failure": 1, "successful": 3}
    assert {info.length for info in clips.episodes if info.source == "home"} == {64}
    assert {(info.source, info.cutoff) for info in clips.episodes} == {("lab", 0.9), ("home", 1.0)}
    kept = kept_frames(70)
    assert (len(kept), kept[0], kept[-1]) == (64, 0, 69)
    decoded = []
    again = load_clips(
        sources, tmp_path / "cache", size=(64, 64), unit=32, progress=lambda done, total: decoded.append(done)
    )
    assert not decoded, "frames are decoded once"
    np.testing.assert_array_equal(again.arrays[0], clips.arrays[0])
    with pytest.raises(RoboserveError, match="camera"):
        load_clips((replace(sources[0], cameras=()),), tmp_path / "cache", size=(64, 64), unit=32)
    native = load_clips(sources, tmp_path / "cache", size=None, unit=32)
    assert {array.shape[1:3] for array in native.arrays} == {(64, 64)}


def test_frames_of_their_own_sizes(base, data, tmp_path):
    native = tmp_path / "native"
    shutil.copytree(base, native)
    settings = json.loads((native / "robometer.json").read_text())
    (native / "robometer.json").write_text(json.dumps(settings | {"image_size": None}))
    folder = finetune(config(native, data, tmp_path / "run", steps=2))
    assert reward(folder).spec.image_size is None


def test_a_run_says_what_it_was(base, adapter):
    out = adapter.parent
    card = (adapter / "README.md").read_text()
    for said in ("tiny, revision 7", load_checkpoint(base).content_hash, "| lab | 0.9 | front, wrist |", "lora.rank"):
        assert said in card
    assert "Code: commit" in card or "Code: roboserve" in card
    assert (adapter / "loss.png").stat().st_size > 1000
    assert list((out / "tensorboard").rglob("events*"))
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 6
    assert row["loss"] == pytest.approx(row["preference"] + row["progress"] + row["success"])
    state = load_file(out / "state.safetensors")
    assert not any("embed_tokens" in name or "original_module" in name for name in state), "the base is not kept twice"


@pytest.mark.parametrize(("name", "kind"), [("ddp", DistributedType.MULTI_GPU), ("fsdp", DistributedType.FSDP)])
def test_launch_files_are_what_accelerate_reads(name, kind):
    loaded = load_config_from_file(str(Path(recipe.__file__).parent / "accelerate" / f"{name}.yaml"))
    assert loaded.distributed_type == kind
    assert loaded.mixed_precision == "bf16"
    if kind == DistributedType.FSDP:
        import transformers.models.qwen3_vl.modeling_qwen3_vl as layers

        assert loaded.fsdp_config["fsdp_version"] == 2
        for wrapped in loaded.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(","):
            assert hasattr(layers, wrapped)


def test_the_command_finetunes_the_embedded_model(data, tmp_path):
    options = ["--steps", "1", "--batch", "1", "--frames", "4", "--threads", "1", "--out", str(tmp_path / "run")]
    sources = ["--data", f"home={data / 'home'}", "--cutoff", "home=1.0"]
    done = CliRunner().invoke(app, ["finetune", "zoo:metaworld-robometer", *sources, *options])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "run/checkpoint/adapter_config.json").read_text())["r"] == 32
    assert load_reward(str(tmp_path / "run/checkpoint")).spec.id == "metaworld-robometer-run"


def worker(rank: int, port: int, kind: str, settings: FinetuneConfig, dies_at: int) -> None:
    """One of two processes on the CPU; the first one is killed after the step `dies_at`."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    if kind == "fsdp":  # accelerate offers FSDP on GPUs alone, PyTorch on the CPU as well
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        loaded = load_config_from_file(str(Path(recipe.__file__).parent / "accelerate/fsdp.yaml"))
        os.environ |= {"ACCELERATE_USE_FSDP": "true"}
        os.environ |= {name.upper(): str(value) for name, value in loaded.fsdp_config.items()}

    def step(now, losses):
        if now == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        finetune(settings, Watch(step=step))
    except BaseException:  # noqa: BLE001  a forked child must not go on with its parent's tests
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run_two(kind: str, settings: FinetuneConfig, *, dies_at: int = 0) -> list[int | None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=worker, args=(rank, port, kind, settings, dies_at)) for rank in range(2)]
    for process in both:
        process.start()
    both[0].join(120)
    if dies_at:
        both[1].kill()
    both[1].join(120)
    for process in both:
        process.kill()
    return [process.exitcode for process in both]


@pytest.mark.slow
def test_two_processes_by_ddp_and_by_fsdp_agree_and_go_on_after_kill_9(base, data, tmp_path):
    results = {}
    for kind in ("ddp", "fsdp"):
        changes = {"mode": "full", "vision": "last", "steps": 3, "forward_pairs": 1}
        whole = config(base, data, tmp_path / kind, **changes)
        assert run_two(kind, whole) == [0, 0]
        killed = replace(whole, out=tmp_path / f"{kind}-killed")
        assert run_two(kind, killed, dies_at=3)[0] == -signal.SIGKILL
        assert not (killed.out / "checkpoint").exists()
        assert run_two(kind, killed) == [0, 0]
        for out in (whole.out, killed.out):
            results[out.name] = load_file(out / "checkpoint/model.safetensors")
    alone = load_file(finetune(config(base, data, tmp_path / "alone", **changes)) / "model.safetensors")
    for name, value in results["ddp"].items():
        for other in ("ddp-killed", "fsdp-killed"):
            torch.testing.assert_close(
                results[other][name], results[other.removesuffix("-killed")][name], rtol=0, atol=0
            )
        torch.testing.assert_close(results["fsdp"][name], value, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(alone[name], value) for name, value in results["ddp"].items()), "the other's pairs count"
