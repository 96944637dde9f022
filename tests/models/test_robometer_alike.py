"""Queries that begin alike: read as a tree they give what each gives alone, from fewer tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.robometer.embedded import Sizes, make_config, make_tokenizer
from models.rewards.contract import Query
from models.rewards.frames import FramePolicy, windows
from models.robometer.checkpoint import RobometerCheckpoint, RobometerSettings
from models.robometer.network import RobometerNetwork
from models.robometer.prompt import EMBEDDED_PROMPT
from models.robometer.reward import RobometerReward
from models.robometer.sequence import Sequencer

SIZES = Sizes(image=64, vision_width=64, vision_layers=2, vision_heads=2, deepstack=(0,), width=64, layers=2, heads=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = make_tokenizer(["open the drawer", EMBEDDED_PROMPT.progress_before], SIZES)
    network = RobometerNetwork(make_config(tokenizer, SIZES)).eval()
    for parameter in network.parameters():  # at its small initial scale nothing would depend on anything
        if parameter.ndim > 1:
            parameter.data.mul_(3.0)
    made = RobometerSettings(id="tiny", revision="7", prompt=EMBEDDED_PROMPT, image_size=None)
    return RobometerReward.of(
        RobometerCheckpoint(
            settings=made,
            network=network,
            sequencer=Sequencer(tokenizer, EMBEDDED_PROMPT),
            tokenizer=tokenizer,
            content_hash="0" * 64,
        )
    )


@pytest.fixture(scope="module")
def seen(model):
    random = np.random.default_rng(0)
    sizes = [(64, 64)] * 20 + [(64, 128), (128, 64), (64, 128)]
    return model.encode([random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes])


@pytest.fixture
def tokens(model):
    """Tokens of every run of the language model."""
    counted = []
    text = model._network.model.language_model
    hook = text.register_forward_pre_hook(
        lambda _, __, given: counted.append(given["inputs_embeds"].shape[0] * given["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    yield counted
    hook.remove()


def asked(seen, policy, length, instruction="open the drawer"):
    shown = windows(FramePolicy.parse(policy), "prefix", length)
    return [Query(instruction=instruction, frames=tuple(seen[i] for i in window)) for window in shown]


@pytest.mark.parametrize("policy", ["linspace-4-pad", "floor-4", "linspace-8", "linspace-8-repeat"])
def test_a_tree_gives_what_each_gives_alone_from_fewer_tokens(model, seen, tokens, policy):
    queries = asked(seen, policy, 20)
    together = model.score(queries)
    shared = sum(tokens)
    tokens.clear()
    alone = [model.score([query])[0] for query in queries]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.progress, other.progress, atol=2e-6)
        np.testing.assert_allclose(one.success, other.success, atol=2e-6)
    assert shared < 0.8 * sum(tokens)


def test_trees_of_several_instructions_and_queries_in_none_answer_in_order(model, seen):
    queries = [
        *asked(seen, "floor-4", 12),
        Query(instruction="another", frames=(seen[20], seen[3], seen[21])),
        *asked(seen, "floor-4", 12, instruction="shut it, slowly"),
        Query(instruction="open the drawer", frames=(seen[0],)),
    ]
    order = np.random.default_rng(1).permutation(len(queries))
    together = model.score([queries[index] for index in order])
    for index, values in zip(order, together, strict=True):
        np.testing.assert_allclose(values.progress, model.score([queries[index]])[0].progress, atol=2e-6)


def test_frames_of_as_many_tokens_but_another_shape_are_kept_apart(model, seen):
    """Wide and tall frames have equally many tokens, and other positions from there on."""
    queries = [
        Query(instruction="x", frames=(seen[0], seen[1], seen[2], middle, seen[last]))
        for middle in (seen[20], seen[21], seen[22])
        for last in range(3, 6)
    ]
    together = model.score(queries)
    for query, values in zip(queries, together, strict=True):
        np.testing.assert_allclose(values.progress, model.score([query])[0].progress, atol=2e-6)
