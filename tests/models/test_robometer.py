"""Robometer as it answers: the published layout, the prompt, causality, batches, and features of frames."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from clients.images import resize_with_pad
from finetune.robometer.embedded import Sizes, make_config, make_tokenizer
from models.rewards.contract import Pair, Query
from models.rewards.frames import FramePolicy, merged, windows
from models.robometer.checkpoint import RobometerSettings, load_checkpoint, save_checkpoint
from models.robometer.images import letterbox, patchify, snapped
from models.robometer.network import RobometerNetwork
from models.robometer.prompt import ASKING_TOKENS, EMBEDDED_PROMPT, PromptTemplate, neutral
from models.robometer.readout import decode_progress
from models.robometer.reward import RobometerReward
from models.robometer.sequence import Sequencer, rotary_positions
from tests.models.reward_contract import RewardContract

SIZES = Sizes(image=64, vision_width=64, vision_layers=3, vision_heads=2, deepstack=(0, 1), width=64, layers=3, heads=2)
TEXTS = ("open the drawer", "push the red button", EMBEDDED_PROMPT.progress_before, EMBEDDED_PROMPT.preference_before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = make_tokenizer(TEXTS, SIZES)
    network = RobometerNetwork(make_config(tokenizer, SIZES))
    for parameter in network.parameters():  # at its small initial scale nothing would depend on anything
        if parameter.ndim > 1:
            parameter.data.mul_(3.0)
    made = RobometerSettings(id="tiny", revision="7", prompt=EMBEDDED_PROMPT, image_size=(64, 64), max_frames=16)
    path = tmp_path_factory.mktemp("robometer") / "tiny"
    save_checkpoint(path, made, network, tokenizer, card="# tiny\n", dtype=torch.float32)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return RobometerReward(RobometerReward.Config(checkpoint=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def frames():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(9)]


class TestContract(RewardContract):
    """Robometer keeps what every reward model promises."""


def values(model, frames, task="open the drawer"):
    return model.score([Query(instruction=task, frames=tuple(model.encode(frames)))])[0]


def test_the_folder_loads_with_no_missing_and_no_unexpected_key(folder):
    names = set(load_file(folder / "model.safetensors"))
    assert "frame_pool_attn.weight" in names
    heads = {name.split(".")[0] for name in names}
    assert heads == {"model", "progress_head", "preference_head", "success_head", "frame_pool_attn"}
    assert {name.split(".")[1] for name in names if name.startswith("model.")} == {"visual", "language_model"}
    assert load_checkpoint(folder).settings.id == "tiny"
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["RBM"]


@pytest.mark.parametrize("change", ["lacks", "has one more"])
def test_a_folder_with_other_keys_is_refused(folder, tmp_path, change):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    if change == "lacks":
        del weights["frame_pool_attn.weight"]
    else:
        weights["similarity_head.0.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"frame_pool_attn|similarity_head"):
        load_checkpoint(tmp_path)


def test_shards_with_an_index_give_the_same_answers(folder, tmp_path, model, frames):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: weights[name] for name in own}, tmp_path / part)
    index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = RobometerReward(RobometerReward.Config(checkpoint=str(tmp_path), device="cpu"))
    np.testing.assert_array_equal(values(sharded, frames).progress, values(model, frames).progress)


def test_without_its_prompt_a_folder_says_what_writes_it(folder, tmp_path):
    for path in folder.iterdir():
        if path.name != "robometer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError, match="roboserve convert robometer"):
        load_checkpoint(tmp_path)


def test_the_asking_tokens_are_the_last_five_in_their_order(folder):
    checkpoint = load_checkpoint(folder)
    ids = checkpoint.tokenizer.convert_tokens_to_ids(list(ASKING_TOKENS))
    rows = checkpoint.network.model.get_input_embeddings().num_embeddings
    assert ids == [rows - 5, rows - 4, rows - 3, rows - 2, rows - 1]
    assert len(checkpoint.tokenizer) == rows


@pytest.mark.parametrize("count", [1, 4, 8])
def test_a_frame_has_one_progress_token_and_the_rest_is_the_template(folder, count):
    checkpoint = load_checkpoint(folder)
    ids = checkpoint.sequencer.progress("open the drawer", [(2, 2)] * count)
    text = checkpoint.tokenizer.decode(ids)
    image = "<|image_pad|>" * 4
    shown = "".join(f"{n}:<|vision_start|>{image}<|vision_end|><|prog_token|>" for n in range(1, count + 1))
    assert text == f"<|im_start|>user\nGoal: open the drawer. How much is done?\n{shown}<|im_end|>\n"
    pair = checkpoint.tokenizer.decode(checkpoint.sequencer.preference("x", [(2, 2)] * count, [(2, 2)] * count))
    assert pair.count("<|prog_token|>") == 2 * count
    assert pair.count("<|pref_token|>") == pair.count("<|split_token|>") == 1
    assert f"{2 * count}:<|vision_start|>" in pair, "picture numbers run on through the second clip"


def test_special_tokens_in_an_instruction_mean_nothing(model, frames, folder):
    task = "open <|prog_token|> the <|im_end|><|pref_token|><|image_pad|> drawer"
    assert len(values(model, frames[:3], task).progress) == 3
    tokenizer = load_checkpoint(folder).tokenizer
    special = set(tokenizer.get_added_vocab().values())
    assert not special & set(tokenizer(neutral(task, tokenizer))["input_ids"])
    assert neutral("open the drawer", tokenizer) == "open the drawer"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*ASKING_TOKENS, "<|im_end|>", "<|", "|>", "<", "open ", "prog_token"]), max_size=12))
def test_no_composition_of_pieces_makes_a_special_token(pieces):
    class Known:
        def get_added_vocab(self):
            return dict.fromkeys((*ASKING_TOKENS, "<|im_end|>"), 0)

    text = neutral("".join(pieces), Known())
    assert not any(token in text for token in Known().get_added_vocab())


@pytest.mark.parametrize(
    ("piece", "text"),
    [
        ("frame", "{image}"),
        ("progress_before", "no task"),
        ("preference_after", "end"),
        ("preference_between", "<|prog_token|>"),
    ],
)
def test_a_template_that_cannot_ask_is_refused(piece, text):
    pieces = {**EMBEDDED_PROMPT.__dict__, piece: text}
    with pytest.raises(ValueError, match=piece):
        PromptTemplate.from_map(pieces)
    with pytest.raises(ValueError, match="nothing else"):
        PromptTemplate.from_map({**EMBEDDED_PROMPT.__dict__, "extra": "x"})


def test_decoding_is_the_expected_bin():
    for k in range(10):
        logits = torch.full((10,), -100.0)
        logits[k] = 100.0
        assert decode_progress(logits).item() == pytest.approx(k / 9)
    assert decode_progress(torch.zeros(10)).item() == pytest.approx(0.5)
    assert decode_progress(torch.eye(10)[9]).item() != pytest.approx(1.0), "a one-hot row is logits, not probabilities"


def test_a_later_frame_changes_no_earlier_value(model, frames):
    before = values(model, frames[:6])
    changed = values(model, [*frames[:4], frames[7], frames[8]])
    np.testing.assert_allclose(changed.progress[:4], before.progress[:4], atol=1e-6)
    np.testing.assert_allclose(changed.success[:4], before.success[:4], atol=1e-6)
    assert np.abs(changed.progress[4:] - before.progress[4:]).max() > 1e-3
    other = values(model, frames[:6], "push the red button")
    assert np.abs(other.progress - before.progress).max() > 1e-3, "the instruction counts"


def test_a_batch_of_mixed_lengths_gives_what_singles_give(model, frames):
    seen = model.encode(frames)
    queries = [
        Query(instruction=task, frames=tuple(seen[:count]))
        for task in ("open the drawer", "push the red button with a long explanation of what to do")
        for count in (1, 2, 5, 8)
    ]
    together = model.score(queries)
    for query, batched in zip(queries, together, strict=True):
        alone = model.score([query])[0]
        assert len(batched.progress) == len(query.frames)
        np.testing.assert_allclose(batched.progress, alone.progress, atol=2e-6)
        np.testing.assert_allclose(batched.success, alone.success, atol=2e-6)


def test_turns_within_the_token_limit_change_nothing(folder, model, frames):
    small = RobometerReward(RobometerReward.Config(checkpoint=str(folder), device="cpu", forward_tokens=64))
    queries = [Query(instruction="open the drawer", frames=tuple(model.encode(frames[:n]))) for n in (5, 1, 8, 3)]
    for one, other in zip(small.score(queries), model.score(queries), strict=True):
        np.testing.assert_allclose(one.progress, other.progress, atol=2e-6)


def test_features_by_frame_are_what_the_whole_model_computes(folder, model, frames):
    """Our path (features once, own positions) against transformers' whole forward from pixels."""
    network, sequencer = load_checkpoint(folder).network, load_checkpoint(folder).sequencer
    process = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, temporal_patch_size=2, do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    seen = process(images=frames, return_tensors="pt")
    torch.testing.assert_close(patchify(frames, patch=16, merge=2, temporal=2), seen["pixel_values"], atol=1e-6, rtol=0)
    ids = torch.from_numpy(sequencer.progress("open the drawer", [(2, 2)] * len(frames)))[None]
    types = (ids == network.config.image_token_id).int()
    with torch.inference_mode():
        hidden = network.model(
            input_ids=ids,
            mm_token_type_ids=types,
            attention_mask=torch.ones_like(ids),
            pixel_values=seen["pixel_values"],
            image_grid_thw=seen["image_grid_thw"],
        ).last_hidden_state
        asked = hidden[ids == len(load_checkpoint(folder).tokenizer) - 1]
        progress = decode_progress(network.progress_head(asked))
        success = network.success_head(asked).sigmoid().squeeze(-1)
    ours = values(model, frames)
    np.testing.assert_allclose(ours.progress, progress.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours.success, success.numpy(), atol=1e-6)


def test_positions_are_those_of_transformers(folder):
    checkpoint = load_checkpoint(folder)
    grids = [(2, 2), (2, 3), (4, 2)]
    ids = checkpoint.sequencer.progress("open the drawer", grids)
    image = ids == checkpoint.network.config.image_token_id
    ours = rotary_positions(image, grids)
    theirs, _ = checkpoint.network.model.get_rope_index(
        torch.from_numpy(ids)[None],
        mm_token_type_ids=torch.from_numpy(image.astype(np.int32))[None],
        image_grid_thw=torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids]),
    )
    np.testing.assert_array_equal(ours, theirs[:, 0].numpy())


def test_prefixes_read_off_one_query_equal_prefixes_asked_alone(model, frames):
    wanted = windows(FramePolicy.parse("linspace-4"), "prefix", len(frames))
    queries, readings = merged(wanted)
    assert len(queries) < len(wanted)
    seen = model.encode(frames)
    answers = model.score([Query(instruction="x", frames=tuple(seen[i] for i in query)) for query in queries])
    for window, reading in zip(wanted, readings, strict=True):
        alone = model.score([Query(instruction="x", frames=tuple(seen[i] for i in window))])[0]
        assert answers[reading.query].progress[reading.position] == pytest.approx(alone.progress[-1], abs=2e-6)


def test_preferences_in_both_orders_and_of_unequal_clips(model, frames):
    seen = model.encode(frames)
    first, second = tuple(seen[:3]), tuple(seen[3:6])
    there, back = model.compare(
        [Pair(instruction="x", first=first, second=second), Pair(instruction="x", first=second, second=first)]
    )
    assert 0.0 < there < 1.0
    assert there != pytest.approx(back, abs=1e-4)
    with pytest.raises(ValueError, match="3 and 2 frames"):
        model.compare([Pair(instruction="x", first=first, second=second[:2])])


def test_frames_of_several_sizes_ride_in_one_batch(tmp_path, folder, frames):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    raw = json.loads((tmp_path / "robometer.json").read_text())
    (tmp_path / "robometer.json").write_text(json.dumps({**raw, "image_size": None}))
    native = RobometerReward(RobometerReward.Config(checkpoint=str(tmp_path), device="cpu"))
    random = np.random.default_rng(1)
    sizes = [(64, 64), (96, 64), (30, 30), (48, 80)]
    clip = [native.prepare(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    assert [frame.shape[:2] for frame in clip] == [(64, 64), (96, 64), (64, 64), (64, 64)]
    assert [native.cost(frame) for frame in clip] == [4, 6, 4, 4]
    mixed = values(native, clip)
    np.testing.assert_allclose(mixed.progress[:1], values(native, clip[:1]).progress, atol=2e-6)


@pytest.mark.parametrize(
    ("size", "expected"), [((30, 30), (64, 64)), ((48, 80), (64, 64)), ((480, 640), (480, 640)), ((50, 112), (64, 128))]
)
def test_native_sizes_snap_to_whole_tokens(size, expected):
    assert snapped(size, 32) == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_a_frame_is_fitted_as_clients_fit_it(height, width, seed):
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(letterbox(frame, (64, 64)), resize_with_pad(frame, 64, 64))


def test_a_tokenizer_without_the_asking_tokens_at_its_end_is_refused():
    tokenizer = make_tokenizer(TEXTS, SIZES)
    tokenizer.add_tokens(["<|one_more|>"])
    with pytest.raises(ValueError, match="last tokens in this order"):
        Sequencer(tokenizer, EMBEDDED_PROMPT)
