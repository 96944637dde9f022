"""The embedded vision-language model as it ships: its folder is whole, small, and answers as its card says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from models.folders import ZOO
from models.hamster.answer import format_answer, parse_answer
from models.hamster.grammar import answer_regex
from models.hamster.path import Path as GripperPath
from models.hamster.prompt import read_prompt
from models.preference.contract import Pair
from models.preference.prompt import FILE, PreferencePrompt
from models.vlm.adapters import Adapters
from models.vlm.checkpoint import load_checkpoint
from models.vlm.constraint import Grammars
from models.vlm.decoding import Decoding, Draw, label_logprobs
from models.vlm.messages import user

FOLDER = ZOO / "metaworld-vlm"


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(FOLDER)


@pytest.fixture(scope="module")
def adapters(checkpoint):
    adapters = Adapters(checkpoint.network)
    slots = {name: adapters.load(name, folder) for name, folder in checkpoint.folder.adapters.items()}
    return adapters, slots


def test_the_folder_is_small_and_its_card_and_figures_are_of_these_weights(checkpoint):
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25_000_000
    found = json.loads((FOLDER / "evaluation.json").read_text("utf-8"))
    assert found["content_hash"] == checkpoint.folder.content_hash
    card = (FOLDER / "README.md").read_text("utf-8")
    assert f"{found['paths']['trained/path']['plain']['point_error']:.4f}" in card
    assert (FOLDER / "examples.png").stat().st_size < 400_000


def test_heads_have_a_size_that_vllm_serves_on_a_cpu(checkpoint):
    config = checkpoint.network.config
    assert config.text_config.head_dim in {32, 64}
    assert config.vision_config.hidden_size // config.vision_config.num_heads in {32, 64}


def test_it_draws_a_way_that_begins_at_the_gripper(checkpoint, adapters):
    """The first example of the card, whose picture is at its top left: the gripper stands near the middle."""
    switch, slots = adapters
    switch.use(slots["path"])
    with Image.open(FOLDER / "examples.png") as image:
        side = image.width // 6 - 4
        tile = np.asarray(image.convert("RGB").crop((2, 0, 2 + side, side)))
    prompt = checkpoint.composer.compose((user(tile, read_prompt(FOLDER).text("press the button")),))
    decoding = Decoding(checkpoint, [prompt], [Draw()])
    tokens = []
    while decoding.rows:
        token = decoding.draw()[0].token
        ended = decoding.is_end(token)
        tokens += [] if ended else [token]
        decoding.advance({0} if ended or len(tokens) > 100 else set())
    path = parse_answer(checkpoint.tokenizer.decode(tokens)).path
    assert len(path) >= 2
    assert np.abs(path.points[0] - 0.45).max() < 0.25


def test_labels_are_single_tokens_and_take_nearly_all_probability(checkpoint, adapters):
    switch, slots = adapters
    switch.use(slots["preference"])
    prompts = PreferencePrompt.read(FOLDER / FILE)
    picture = np.full((224, 224, 3), 128, np.uint8)
    question = prompts.ask_one_token(Pair(goal="the drawer is open", first=(picture,), second=(picture,)))
    ids = [checkpoint.tokenizer(word)["input_ids"] for word in prompts.one_token.labels.listed]
    assert [len(one) for one in ids] == [1, 1, 1]
    found = label_logprobs(checkpoint, [checkpoint.composer.compose(question)], [[one[0] for one in ids]])
    assert np.exp(found[0]).sum() > 0.95


def test_an_answer_that_is_held_to_its_form_is_written_in_the_tokens_that_were_taught(checkpoint):
    style = read_prompt(FOLDER).answer.style
    grammars = Grammars(checkpoint.tokenizer, vocabulary=len(checkpoint.tokenizer), ends=checkpoint.ends)
    mask = grammars.compile("regex", answer_regex(style))
    path = GripperPath(points=np.array([[0.25, 0.32], [1.0, 0.5]]), gripper_open=np.array([True, False]))
    for token in checkpoint.tokenizer(format_answer(path, style=style))["input_ids"]:
        assert mask.allowed()[token]
        mask.take(token)
