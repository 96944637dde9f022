"""A small policy and a learner of its chunks, and macros made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from finetune.common.chunk_policy import ChunkPolicy
from finetune.common.experience import ExperienceConfig
from finetune.common.macro import Macro
from finetune.common.replay import StepReplay
from finetune.ogpo.agent import OgpoLearner
from finetune.ogpo.config import OgpoConfig, small
from models.policies.denoising import DiffusionSteps, FlowSteps
from models.policies.normalizer import Normalizer
from models.policies.state_flow.checkpoint import StatePolicyConfig
from models.policies.state_flow.network import StateFlowConfig, StateFlowNetwork

STATES, ROWS, COLUMNS = 3, 4, 2
DISCOUNT = 0.5


def macro(rewards: list[float], *, terminated: bool = False, truncated: bool = False, first: float = 0.0) -> Macro:
    steps = len(rewards)
    places = np.arange(first, first + steps + 1, dtype=np.float32)
    return Macro(
        observations=np.repeat(places[:, None], STATES, axis=1),
        actions=np.repeat(places[:steps, None], COLUMNS, axis=1) * np.float32(0.01),
        rewards=np.array(rewards, np.float32),
        terminated=terminated,
        truncated=truncated,
        success=terminated,
        infos=({},) * steps,
    )


def replay(horizon: int, *macros: Macro) -> StepReplay:
    made = StepReplay(capacity=100, state_size=STATES, action_size=COLUMNS, horizon=horizon, discount=DISCOUNT)
    for each in macros:
        made.add(each)
    return made


def policy(steps: FlowSteps | DiffusionSteps | None = None) -> tuple[ChunkPolicy, StateFlowNetwork]:
    torch.manual_seed(0)
    size = StateFlowConfig(state_size=STATES, action_size=COLUMNS, chunk_length=ROWS, width=16, blocks=1)
    config = StatePolicyConfig(
        id="small",
        network=size,
        state_normalizer=Normalizer(mean=(0.0,) * STATES, std=(1.0,) * STATES),
        execute=ROWS,
        denoising=steps or FlowSteps(),
    )
    return ChunkPolicy(config=config, steps=config.denoising, content_hash=""), StateFlowNetwork(size)


TINY = replace(
    small(),
    experience=ExperienceConfig(batch=16, capacity=1000, discount=DISCOUNT, start=0, updates=1.0),
    heads=3,
    hidden=16,
    layers=1,
    cloning_batch=8,
)


def learner(config: OgpoConfig = TINY, steps: FlowSteps | DiffusionSteps | None = None) -> OgpoLearner:
    return OgpoLearner(config, *policy(steps), seed=0)


def fill(made: OgpoLearner, *, solved: bool) -> OgpoLearner:
    for episode in range(6):
        made.keep(macro([-1.0] * ROWS, first=10 * episode))
        over = {"terminated": True} if solved and episode % 2 else {"truncated": True}
        made.keep(macro([-1.0] * ROWS, first=10 * episode + ROWS, **over))
    return made
