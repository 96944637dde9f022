"""The job of OGPO and its baselines on the slot: improvement, exact resume, what each trains, and DPPO by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from finetune.baselines.__main__ import app as baselines_app
from finetune.baselines.bptt import BpttLearner, bptt
from finetune.baselines.distillation import DistillationLearner, distillation
from finetune.baselines.dppo import DppoConfig, DppoLearner, Played
from finetune.baselines.residual import ResidualConfig, ResidualLearner
from finetune.baselines.rlpd import RlpdConfig, RlpdLearner
from finetune.common.chunk_policy import ChunkPolicy, load_chunk_policy
from finetune.common.environments.registry import make_env
from finetune.common.environments.slot import SlotEnv
from finetune.common.experience import ExperienceConfig, sources
from finetune.common.learning import JobConfig, LearningJob
from finetune.common.macro import MacroEnv
from finetune.common.options import keep_best
from finetune.common.run import metrics
from finetune.ogpo.__main__ import app as ogpo_app
from finetune.ogpo.agent import OgpoLearner
from finetune.ogpo.config import small
from finetune.ogpo.train import OgpoJob
from models.folders import checkpoint_folder
from models.policies.state_flow.checkpoint import load_state_policy
from tests.weights import parameters_hash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from finetune.common.learner import Learner
    from models.policies.state_flow.network import StateFlowNetwork

TASK = "slot:shift=0.018"
TINY = replace(
    small(),
    experience=ExperienceConfig(batch=8, capacity=1000, start=30, updates=0.2),
    group=4,
    heads=3,
    hidden=16,
    layers=1,
    cloning_batch=8,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def cloned() -> tuple[ChunkPolicy, StateFlowNetwork]:
    return load_chunk_policy(checkpoint_folder("zoo:slot-clone"))


def bptt_learner() -> BpttLearner:
    return BpttLearner(bptt(TINY), *cloned(), seed=0)


def distillation_learner() -> DistillationLearner:
    return DistillationLearner(distillation(TINY, best_of=2), *cloned(), seed=0)


def residual_learner() -> ResidualLearner:
    config = ResidualConfig(experience=TINY.experience, heads=2, hidden=16, layers=1, mixed_after=100)
    return ResidualLearner(config, *cloned(), seed=0)


def dppo_learner() -> Learner:
    return DppoLearner(DppoConfig(chunks=8, epochs=2, batch=10, hidden=16, layers=1), *cloned(), seed=0)


def rlpd_learner() -> Learner:
    config = RlpdConfig(experience=TINY.experience, demonstrations=3, heads=2, hidden=16, layers=1)
    return RlpdLearner(config, cloned()[0].config, make_env(TASK), seed=0)


def ogpo_learner() -> OgpoLearner:
    return OgpoLearner(replace(TINY, best_of=2), *cloned(), seed=0)


MAKERS: list[Callable[[], Learner]] = [
    ogpo_learner,
    bptt_learner,
    distillation_learner,
    residual_learner,
    dppo_learner,
    rlpd_learner,
]


def fill(made: OgpoLearner) -> None:
    env = MacroEnv(SlotEnv(), execute=4)
    env.reset(seed=0)
    for _ in range(3):
        made.keep(env.step(np.zeros((4, 2), np.float32)))


def job(folder: Path, make: Callable[[], Learner]) -> LearningJob:
    config = JobConfig(out=folder, steps=130, evaluate_every=40, episodes=2)
    return LearningJob(config, make(), partial(make_env, TASK), identity={"method": make.__name__})


@pytest.mark.parametrize("make", MAKERS)
def test_a_killed_run_ends_as_one_that_was_not(make: Callable[[], Learner], tmp_path: Path) -> None:
    whole = job(tmp_path / "whole", make)
    whole.train(lambda *_: None)

    def kill(step: int, _: str) -> None:
        if step > 90:
            raise KeyboardInterrupt

    killed = job(tmp_path / "killed", make)
    with pytest.raises(KeyboardInterrupt):
        killed.train(kill)
    again = job(tmp_path / "killed", make)
    assert 0 < again.counts.steps < killed.counts.steps
    again.train(lambda *_: None)
    for name, module in whole.learner.modules.items():
        assert parameters_hash(module) == parameters_hash(again.learner.modules[name]), name
    assert [drop(row) for row in metrics(tmp_path / "whole")] == [drop(row) for row in metrics(tmp_path / "killed")]
    assert metrics(tmp_path / "whole")[-1]["updates"] > 0


def drop(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "seconds"}


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    config = JobConfig(out=tmp_path, steps=10, episodes=1)
    folder = checkpoint_folder("zoo:slot-clone")
    OgpoJob(config, TINY, folder, task=TASK)
    with pytest.raises(ValueError, match="other settings"):
        OgpoJob(config, replace(TINY, clip=0.02), folder, task=TASK)


@pytest.mark.parametrize("make", [ogpo_learner, bptt_learner, distillation_learner])
def test_an_update_changes_the_whole_policy(make: Callable[[], OgpoLearner]) -> None:
    made = make()
    before = {name: value.clone() for name, value in made.network.state_dict().items()}
    fill(made)
    made.update(sources(0, 0))
    after = made.network.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_backpropagation_climbs_the_critics_gradient() -> None:
    made = BpttLearner(replace(bptt(TINY), learning_rate=1e-3), *cloned(), seed=0)
    fill(made)
    batch = made.experience.sample(sources(0, 0).rows)
    losses = []
    for _ in range(20):
        loss, facts = made.policy_loss(batch, torch.Generator().manual_seed(0))
        made.optimizers["network"].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        made.optimizers["network"].step()
        losses.append(facts["policy_loss"])
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in made.target.parameters())


def test_dppos_advantages_by_hand() -> None:
    made = DppoLearner(DppoConfig(discount=0.5, smoothing=0.5, hidden=4, layers=1), *cloned(), seed=0)
    for parameter in made.value.parameters():
        parameter.data.zero_()
    made.value.biases[-1].data.fill_(8.0)  # V is 8 everywhere, and a chunk of four steps has a discount of 1 / 16
    state, chain = torch.zeros(3, 3), torch.zeros(3, 6, 4, 2)
    rollout = Played(
        state=state,
        points=chain,
        scores=torch.zeros(3, 5),
        after=state,
        reward=torch.tensor([1.0, 2.0, 3.0]),
        alive=torch.tensor([1.0, 0.0, 1.0]),
        over=torch.tensor([0.0, 1.0, 1.0]),
    )
    advantages, returns = made.advantages(rollout)
    second, third = 2.0 - 8.0, 3.0 + 8.0 / 16 - 8.0
    first = 1.0 + 8.0 / 16 - 8.0 + second / 32
    assert advantages.tolist() == pytest.approx([first, second, third])
    assert returns.tolist() == pytest.approx([first + 8, second + 8, third + 8])


def test_dppos_clip_grows_over_the_denoising_steps() -> None:
    clips = DppoLearner(DppoConfig(), *cloned(), seed=0).clips()
    assert clips[0].item() == pytest.approx(0.001)
    assert clips[-1].item() == pytest.approx(0.01)
    ratios = clips.diff()[1:] / clips.diff()[:-1]
    assert torch.allclose(ratios, torch.full((3,), float(np.exp(3 / 4))), rtol=1e-3)


def test_a_residual_begins_as_the_policy_it_corrects() -> None:
    made, (policy, network) = residual_learner(), cloned()
    states = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    chunks = made.act(states, torch.Generator().manual_seed(0), "draw").chunks
    seen = policy.config.normalize(torch.from_numpy(states))
    assert np.allclose(chunks, policy.draw(network, seen, torch.Generator().manual_seed(0)).actions.clamp(-1, 1))


def test_the_checkpoint_of_the_best_evaluation_is_kept(tmp_path: Path) -> None:
    made = job(tmp_path, ogpo_learner)
    written: list[float] = []

    def export(folder: Path) -> None:
        folder.mkdir()
        (folder / "steps").write_text(str(made.counts.steps), "utf-8")
        written.append(made.counts.steps)

    def evaluated(success: float) -> None:
        made.counts.steps += 10
        made.run.step = made.counts.steps
        made.run.log(success=success)
        keep_best(made, export, {"success": success})

    for success in (0.2, 0.1, 0.6, 0.6, 0.3):
        evaluated(success)
    assert written == [10, 30]
    assert (tmp_path / "best" / "steps").read_text("utf-8") == "30"
    assert not (tmp_path / "best.new").exists()


def test_the_command_trains_and_exports_a_policy_that_loads(tmp_path: Path) -> None:
    common = ["--policy", "zoo:slot-clone", "--task", TASK, "--steps", "30", "--episodes", "2"]
    said = CliRunner().invoke(
        ogpo_app, ["train", "--out", str(tmp_path / "ogpo"), *common, "--correction", "reference", "--last", "2"]
    )
    assert said.exit_code == 0, said.output
    config, _, _ = load_state_policy(tmp_path / "ogpo" / "checkpoint")
    assert (config.denoising.last, getattr(config.denoising, "correction", None)) == (2, "reference")
    assert "OGPO, " in (tmp_path / "ogpo" / "best" / "README.md").read_text("utf-8")
    said = CliRunner().invoke(baselines_app, ["train", "--out", str(tmp_path / "dppo"), *common, "--method", "dppo"])
    assert said.exit_code == 0, said.output
    first = metrics(tmp_path / "dppo")[0]
    assert first["success_low"] <= first["success"] <= first["success_high"]
