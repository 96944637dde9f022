"""Where jobs compute. PyTorch's device without values stands for a GPU: what is mixed up is refused there as well."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from finetune.baselines.bptt import BpttLearner, bptt
from finetune.baselines.distillation import DistillationLearner, distillation
from finetune.baselines.dppo import DppoConfig, DppoLearner
from finetune.baselines.dsrl import DsrlAgent
from finetune.baselines.residual import ResidualConfig, ResidualLearner
from finetune.baselines.rlpd import RlpdConfig, RlpdLearner
from finetune.common.chunk_policy import load_chunk_policy
from finetune.common.device import CPU, chosen
from finetune.common.environments.registry import make_env
from finetune.common.macro import MacroEnv
from finetune.ogpo.agent import OgpoLearner
from finetune.ogpo.config import ChiSquaredConfig
from finetune.tmrl.agent import TmrlAgent
from finetune.tmrl.base import LocalPolicy
from finetune.tmrl.config import AgentConfig, TmrlConfig
from finetune.tmrl.learner import SteeringLearner
from models.folders import checkpoint_folder
from tests.finetune.test_ogpo_job import TINY

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune.common.learner import Learner

ELSEWHERE = torch.device("meta")


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give some values to what brings them back from the device, as any must before it reads them."""
    adam = torch.optim.Adam

    def plain(parameters: Any, *, fused: bool = False, **settings: Any) -> torch.optim.Adam:
        del fused  # there is no such step without values
        return adam(parameters, **settings)

    monkeypatch.setattr(torch.optim, "Adam", plain)
    item, cpu, truth = torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda own: own.is_meta or truth(own))
    monkeypatch.setattr(torch.Tensor, "item", lambda own: 1.0 if own.is_meta else item(own))
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda own: torch.zeros(own.shape, dtype=own.dtype) if own.is_meta else cpu(own)
    )


def cloned(device: torch.device) -> Any:
    return load_chunk_policy(checkpoint_folder("zoo:slot-clone"), device=device)


def rlpd(device: torch.device) -> Learner:
    config = RlpdConfig(experience=TINY.experience, demonstrations=2, heads=2, hidden=16, layers=1)
    return RlpdLearner(config, cloned(device)[0].config, make_env("slot"), seed=0, device=device)


def steering(agent: Any, **bounds: float) -> Callable[[torch.device], Learner]:
    def make(device: torch.device) -> Learner:
        config = TmrlConfig(agent=AgentConfig(hidden=16, layers=1, critics=2, **bounds), warmup=2, updates=1, batch=4)
        base = LocalPolicy(checkpoint_folder("zoo:eight-goals"), device=device)
        return SteeringLearner(config, base, states=10, seed=0, agent=agent, device=device)

    return make


RESIDUAL = ResidualConfig(experience=TINY.experience, heads=2, hidden=16, layers=1, mixed_after=100)
MAKERS: dict[str, Callable[[torch.device], Learner]] = {
    "ogpo": lambda device: OgpoLearner(TINY, *cloned(device), seed=0),
    "best-of": lambda device: DistillationLearner(distillation(TINY, best_of=2), *cloned(device), seed=0),
    "chi-squared": lambda device: OgpoLearner(
        bptt(TINY).__class__(**{**vars(TINY), "advantage": "group", "chi_squared": ChiSquaredConfig()}),
        *cloned(device),
        seed=0,
    ),
    "bptt": lambda device: BpttLearner(bptt(TINY), *cloned(device), seed=0),
    "residual": lambda device: ResidualLearner(RESIDUAL, *cloned(device), seed=0),
    "dppo": lambda device: DppoLearner(
        DppoConfig(chunks=4, epochs=1, batch=4, hidden=16, layers=1), *cloned(device), seed=0
    ),
    "rlpd": rlpd,
    "tmrl": steering(TmrlAgent),
    "dsrl": steering(DsrlAgent, level_bound=0.0, context_bound=0.0),
}


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("name", MAKERS)
def test_a_learner_acts_learns_and_saves_on_its_device(name: str) -> None:
    learner = MAKERS[name](ELSEWHERE)
    env = MacroEnv(make_env("eight-goals" if name in ("tmrl", "dsrl") else "slot"), execute=learner.execute)
    steps, episode, over, said = 0, 0, True, []
    seen = np.zeros(0, np.float32)
    while not said:
        if over:
            seen, episode = env.reset(seed=episode), episode + 1
        picked = learner.act(seen[None], torch.Generator().manual_seed(steps), "collect")
        macro = env.step(picked.chunks[0], picked.note(0))
        learner.keep(macro)
        seen, over, steps = macro.observations[-1], macro.over, steps + len(macro.rewards)
        said = list(itertools.islice(learner.learn(steps), 1))
        assert episode < 10, "it never learned"
    for module in learner.modules.values():
        assert {parameter.device for parameter in module.parameters()} == {ELSEWHERE}, name
    learner.act(seen[None], torch.Generator().manual_seed(0), "draw")
    learner.load(learner.state())


def test_a_device_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen("auto") == CPU
    with pytest.raises(ValueError, match="device: 'cuda' was asked for and this machine has none"):
        chosen("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen("auto") == chosen("cuda") == torch.device("cuda")
