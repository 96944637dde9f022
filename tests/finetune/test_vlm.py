"""The embedded VLM's recipe in miniature, and finetuning of any folder: it resumes, and what it writes loads."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from finetune.vlm.adapters import LoraSettings
from finetune.vlm.answering import Answering
from finetune.vlm.augment import Jitter, drawn_map, mapped
from finetune.vlm.conversations import JsonlConversations, encode
from finetune.vlm.embedded import NUMBERS, Sizes, number_ids
from finetune.vlm.finetune import FinetuneConfig, finetune
from finetune.vlm.lessons import PathLesson, PreferenceLesson, label_of, path_answer
from finetune.vlm.material import FrameInfo, Frames, moved
from finetune.vlm.recipe import Recipe
from finetune.vlm.train import Lesson, Task, TrainConfig, answer_loss, soft_numbers, train
from finetune.vlm.vision import VisionConfig, train_vision
from models.hamster.answer import parse_answer
from models.hamster.path import Path as GripperPath
from models.preference.contract import Pair
from models.vlm.checkpoint import load_checkpoint

SIZES = Sizes(
    image=64, vision_width=64, vision_layers=2, vision_heads=2, deepstack=(1,), width=64, layers=2, heads=2,
    key_value_heads=1, feed_forward=96,
)  # fmt: skip
TASKS = ("drawer-open", "push")


@pytest.fixture(scope="module")
def frames():
    """Frames in which a white square stands where the way ends; how far it is down tells the progress."""
    random = np.random.default_rng(0)
    images, infos = [], []
    for number in range(24):
        row, column = random.integers(8, 48, 2)
        image = np.full((64, 64, 3), 60 if number % 2 else 120, np.uint8)
        image[row : row + 8, column : column + 8] = 255
        images.append(image)
        end = np.array([column + 4, row + 4]) / 64
        path = GripperPath(points=np.stack([[0.5, 0.5], end]), gripper_open=np.array([True, False]))
        made = {"kind": "expert", "looks": "mixed", "scene": number // 6, "group": 0, "progress": float(row / 64)}
        infos.append(FrameInfo(task=TASKS[number % 2], way=path, path=path, **made))
    return Frames([np.stack(images)], infos, [(0, row) for row in range(len(images))])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return Recipe(data=tmp_path_factory.mktemp("data"), work=tmp_path_factory.mktemp("work"), tasks=TASKS, sizes=SIZES)


@pytest.fixture(scope="module")
def folder(recipe):
    tokenizer = recipe.tokenizer()
    return recipe.write(recipe.network(tokenizer, 0), tokenizer, model_id="mini")


def lessons_of(frames):
    return (
        Lesson(name="path", source=PathLesson(frames, Jitter()), share=2.0),
        Lesson(name="preference", source=PreferenceLesson(frames, Jitter())),
    )


def task_of(recipe, frames):
    tokenizer = recipe.tokenizer()
    return Task(
        network=recipe.network(tokenizer, 0),
        composer=recipe.composer(tokenizer),
        lessons=lessons_of(frames),
        numbers=number_ids(tokenizer),
    )


def test_a_number_is_one_token_and_between_two_numbers_stands_one(recipe):
    tokenizer = recipe.tokenizer()
    ids = number_ids(tokenizer)
    assert [tokenizer.decode([number]) for number in ids] == list(NUMBERS)
    text = "<ans>[(0.25, 0.32), <action>Open Gripper</action>, (0.41, 0.55), <action>Close Gripper</action>]</ans>"
    read = tokenizer(text)["input_ids"]
    assert len(read) == 9
    assert tokenizer.decode(read) == text
    assert all(len(tokenizer(label)["input_ids"]) == 1 for label in ("0", "1", "-1"))


def test_any_text_survives_the_tokenizer(recipe):
    tokenizer = recipe.tokenizer()
    for text in ("Zieh die Schublade auf, bitte!", "引き出し 3.14159\n\n\tx", "(1.00, 0.325)"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_answer_tells_the_state_of_its_first_point(frames):
    for state in (True, False):
        path = replace(frames.infos[0].path, gripper_open=np.array([state, state]))
        for assumed in (True, False):
            assert parse_answer(path_answer(path), initial_open=assumed).path.gripper_open.tolist() == [state, state]


def test_points_follow_the_picture_under_augmentation():
    random = np.random.default_rng(3)
    for _ in range(20):
        image = np.zeros((64, 64, 3), np.uint8)
        row, column = random.integers(16, 44, 2)
        image[row : row + 5, column : column + 5] = 255
        path = GripperPath(points=np.array([[(column + 2.5) / 64, (row + 2.5) / 64]]), gripper_open=np.array([True]))
        matrix = drawn_map(random, Jitter(shift=0.1, zoom=0.1, turn=10))
        seen = np.argwhere(mapped(image, matrix)[..., 0] > 128).mean(axis=0)[::-1] + 0.5
        assert np.abs(moved(path, matrix).points[0] * 64 - seen).max() < 0.75


def test_a_path_that_would_leave_the_picture_is_not_moved():
    path = GripperPath(points=np.array([[0.97, 0.5]]), gripper_open=np.array([True]))
    assert moved(path, np.array([[1.0, 0.0, 0.1], [0.0, 1.0, 0.0]])) is None


def test_labels_say_which_is_nearer():
    assert [label_of(0.5, 0.2), label_of(0.2, 0.5), label_of(0.5, 0.52)] == [0, 1, -1]


def test_only_the_answer_and_its_end_are_taught(recipe, frames):
    composer = recipe.composer(recipe.tokenizer())
    conversation = PathLesson(frames, None).draw(np.random.default_rng(0), 1)[0]
    example = encode(composer, conversation)
    taught = composer.tokenizer.decode(example.prompt.ids[example.asked :])
    assert taught == conversation.answer + "<|im_end|>"


def test_softened_numbers_are_likelier_the_nearer():
    table = soft_numbers(1.0)
    assert torch.allclose(table.sum(1), torch.ones(100))
    assert (table[50].argmax(), table[0].argmax(), table[99].argmax()) == (50, 0, 99)
    assert table[50, 51] > table[50, 53]


def test_a_run_that_was_killed_ends_where_one_that_was_not_does(recipe, frames, tmp_path):
    straight = TrainConfig(out=tmp_path / "a", steps=3, batch=6, smoothing=1.0, checkpoint_every=1, warmup=0.3)
    train(straight, task_of(recipe, frames))

    def killed(step, _losses):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(straight, out=tmp_path / "b"), task_of(recipe, frames), report=killed)
    train(replace(straight, out=tmp_path / "b"), task_of(recipe, frames))
    whole, resumed = (load_file(tmp_path / name / "state.safetensors") for name in ("a", "b"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole if name != "seconds")


def test_a_folder_with_another_run_is_refused(recipe, frames, tmp_path):
    config = TrainConfig(out=tmp_path, steps=1, batch=4)
    train(config, task_of(recipe, frames))
    with pytest.raises(ValueError, match="learning_rate"):
        train(replace(config, learning_rate=0.5), task_of(recipe, frames))


def test_gradients_of_small_forwards_are_those_of_a_large_one(recipe, frames, tmp_path):
    whole, parts = (
        TrainConfig(out=tmp_path / name, steps=1, batch=8, micro=micro, warmup=1.0)
        for name, micro in (("a", None), ("b", 4))
    )
    found = []
    for config in (whole, parts):
        task = replace(task_of(recipe, frames), lessons=(Lesson(name="path", source=PathLesson(frames, None)),))
        train(config, task)
        found.append(next(task.network.parameters()).detach().clone())
    assert torch.allclose(*found, atol=2e-5)


def test_the_tower_learns_and_resumes(recipe, frames, tmp_path):
    network = recipe.network(recipe.tokenizer(), 0)
    errors = []
    config = VisionConfig(out=tmp_path, sizes=SIZES, steps=30, batch=12, checkpoint_every=10, jitter=Jitter(turn=0.0))
    train_vision(config, network.model.visual, frames, report=lambda _, error: errors.append(error))
    assert len(errors) == 30
    assert errors[-1] < 0.8 * errors[0]
    train_vision(config, network.model.visual, frames, report=lambda _, error: errors.append(error))
    assert len(errors) == 30


def test_the_folder_loads_and_answers_in_form(folder, frames):
    asked = Answering(folder)
    images = [frames.image(0), np.zeros((224, 224, 3), np.uint8)]
    for answer in asked.paths(images, ["open the drawer", "push it"], adapter=None, constrain=True):
        parse_answer(answer)
    labels = asked.labels([Pair(goal="x", first=(images[0],), second=(images[1],))], adapter=None)
    assert len(labels[0]) == 3
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "chat_template.jinja", "video_preprocessor_config.json"} <= names


def test_folder_and_training_see_the_same_pixels(recipe, folder, frames):
    conversation = PathLesson(frames, None).draw(np.random.default_rng(0), 1)[0]
    quick = encode(recipe.composer(recipe.tokenizer()), conversation).prompt
    served = load_checkpoint(folder).composer.compose(conversation.messages, answer=conversation.answer)
    assert np.array_equal(quick.ids, served.ids[: len(quick)])
    assert torch.allclose(quick.patches, served.patches, atol=1e-6)


def test_float16_weights_answer_as_those_they_were_trained_in(recipe, frames):
    task = task_of(recipe, frames)
    written = recipe.write(task.network, recipe.tokenizer(), model_id="mini")
    read = load_checkpoint(written).network
    assert next(read.parameters()).dtype == torch.float32
    from finetune.vlm.conversations import batch

    learning = batch(task.composer, PathLesson(frames, None).draw(np.random.default_rng(0), 4))
    with torch.inference_mode():
        losses = [answer_loss(network, learning)[0] for network in (task.network.eval(), read)]
    assert torch.allclose(*losses, atol=1e-3)


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    root = tmp_path_factory.mktemp("talk")
    rows = []
    for number in range(4):
        Image.fromarray(np.full((70, 50, 3), 60 * number, np.uint8)).save(root / f"{number}.png")
        asked = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": "How light is it?"}]
        answer = {"role": "assistant", "content": str(number)}
        rows.append({"messages": [{"role": "user", "content": asked}, answer]})
    (root / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return root / "talk.jsonl"


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_any_folder_is_finetuned_on_conversations(folder, talk, tmp_path, method):
    losses = []
    train_config = TrainConfig(out=tmp_path, steps=6, batch=4, learning_rate=1e-2, warmup=0.2)
    config = FinetuneConfig(folder=folder, data=talk, train=train_config, method=method, lora=LoraSettings(rank=4))
    made = finetune(config, report=lambda _, found: losses.append(found["answers"]))
    assert losses[-1] < losses[0]
    if method == "full":
        assert load_checkpoint(made).folder.id == "mini-finetuned"
    else:
        settings = json.loads((made / "adapter_config.json").read_text())
        assert (settings["base_model_name_or_path"], settings["r"]) == ("mini", 4)
        assert not any("visual" in name for name in load_file(made / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, "last of two or more"),
        ({"messages": [{"role": "robot", "content": "x"}, {"role": "assistant", "content": "y"}]}, "robot"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "image": "../../etc/passwd"}]},
                    {"role": "assistant", "content": "y"},
                ]
            },
            "no file below",
        ),
    ],
)
def test_a_damaged_conversation_is_named_by_its_line(tmp_path, row, message):
    (tmp_path / "talk.jsonl").write_text(json.dumps(row), "utf-8")
    with pytest.raises(ValueError, match=f"line 1: .*{message}"):
        JsonlConversations(tmp_path / "talk.jsonl")
