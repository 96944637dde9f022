from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.support.plain_ogpo import PlainOgpo
from finetune.common.chunk_policy import load_chunk_policy
from finetune.common.environments.slot import SlotEnv
from finetune.common.experience import sources
from finetune.common.macro import MacroEnv
from finetune.ogpo.agent import OgpoLearner
from finetune.ogpo.config import small, variant
from models.folders import checkpoint_folder


@pytest.mark.parametrize("states_at_once", [False, True])
def test_the_loops_take_the_steps_that_the_batched_update_takes(states_at_once):
    config = replace(variant(small(), "ogpo"), group=3, heads=2, hidden=16, layers=2)
    config = replace(config, experience=replace(config.experience, batch=4), critic_learning_rate=1e-2)
    ours = OgpoLearner(config, *load_chunk_policy(checkpoint_folder("zoo:slot-clone")), seed=0)
    env = MacroEnv(SlotEnv(), execute=4)
    env.reset(seed=0)
    for step in range(5):
        ours.keep(env.step(np.full((4, 2), 0.1 * step, np.float32)))
    for number in range(2):
        ours.update(sources(0, number))
    loops = PlainOgpo(copy.deepcopy(ours), states_at_once=states_at_once)
    for optimizer in ours.optimizers.values():
        optimizer.state.clear()
    batch, facts = ours.experience.sample(sources(0, 2).rows), ours.update(sources(0, 2))
    assert loops.update(batch, sources(0, 2).noise) == pytest.approx(facts["policy_loss"], abs=1e-6)
    for head, plain in enumerate(loops.critics):
        assert torch.allclose(plain[0].weight.T, ours.critics.weights[0][head], atol=1e-4)
    for plain, batched in zip(loops.learner.network.parameters(), ours.network.parameters(), strict=True):
        assert (plain - batched).abs().max() <= 2 * config.learning_rate  # the sign of a gradient near 0 may differ
        assert (plain - batched).abs().mean() < config.learning_rate / 20
