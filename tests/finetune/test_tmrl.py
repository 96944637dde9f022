"""TMRL on the eight goals (checklist T1 to T7), and its frozen policy behind a served endpoint."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from clients.errors import RoboserveError
from clients.policy import ActOptions, PolicyClient
from finetune.baselines.dsrl import DsrlAgent
from finetune.common.decisions import DecisionReplay, Decisions
from finetune.common.environments.registry import make_env
from finetune.common.learning import JobConfig
from finetune.common.run import metrics
from finetune.tmrl.agent import TmrlAgent
from finetune.tmrl.base import LocalPolicy, ServedPolicy
from finetune.tmrl.config import AgentConfig, TmrlConfig
from finetune.tmrl.train import TmrlJob
from models.folders import checkpoint_folder
from models.policies.contract import ActItem, Observation
from models.policies.contract import ActOptions as Options
from models.policies.steered import SteeredPolicy
from models.policies.steered.checkpoint import load_steered
from models.policies.steered.choice import ChoiceSpace, context_basis
from tests.serving.policy_running import RunningPolicy
from tests.weights import parameters_hash

if TYPE_CHECKING:
    from pathlib import Path

    from finetune.tmrl.base import SteeredPolicy as Frozen
    from finetune.tmrl.learner import MakeAgent
    from models.policies.steered.choice import Playing

TASK = "eight-goals:named=0,shift=4"
SMALL = AgentConfig(hidden=32, layers=2, critics=3, temperature=0.05, learning_rate=1e-3)
UNMODULATED = replace(SMALL, level_bound=0.0, context_bound=0.0)


def policy() -> LocalPolicy:
    torch.set_num_threads(1)
    return LocalPolicy(checkpoint_folder("zoo:eight-goals"))


def job(
    out: Path,
    agent: AgentConfig = SMALL,
    *,
    base: Frozen | None = None,
    make: MakeAgent = TmrlAgent,
    playing: Playing = "likeliest",
) -> TmrlJob:
    config = JobConfig(out=out, steps=480, evaluate_every=160, episodes=3)
    method = TmrlConfig(agent=agent, warmup=15, updates=1, batch=16, playing=playing)
    return TmrlJob(config, method, base or policy(), task=TASK, agent=make)


def played(made: TmrlJob) -> dict[str, np.ndarray]:
    made.train(lambda step, note: None)
    return made.learner.replay.state()


def space(agent: AgentConfig) -> ChoiceSpace:
    return ChoiceSpace.of(rows=8, columns=2, context_size=8, **agent.bounds)


def decisions(number: int = 6, *, choices: int = 11, done: float = 0.0) -> Decisions:
    random = np.random.default_rng(0)
    return Decisions(
        states=random.standard_normal((number, 10), np.float32),
        after=random.standard_normal((number, 10), np.float32),
        choices=random.uniform(-1, 1, (number, choices)).astype(np.float32),
        rewards=np.arange(number, dtype=np.float32),
        done=np.full(number, done, np.float32),
    )


def test_the_frozen_policy_stays_as_it_was(tmp_path: Path) -> None:
    base = policy()
    before = parameters_hash(base.flow.network)
    played(job(tmp_path, base=base))
    assert parameters_hash(base.flow.network) == before
    assert all(weight.grad is None and not weight.requires_grad for weight in base.flow.network.parameters())


def test_a_choice_is_spread_within_its_bounds() -> None:
    bounds = replace(SMALL, noise_bound=1.5, level_bound=0.6, context_bound=0.8)
    whole = space(bounds)
    assert whole.parts == (2, 1, 8)
    random = np.random.default_rng(0)
    choices = random.uniform(-1, 1, (50, whole.size)).astype(np.float32)
    choices[0], choices[1] = 1.0, -1.0
    steering = whole.spread(choices, random)
    assert steering.noise.shape == (50, 8, 2)
    assert np.array_equal(steering.noise[:, 0], steering.noise[:, 7])
    assert np.abs(steering.noise).max() == 1.5
    assert steering.level[:2].tolist() == pytest.approx([0.6, 0.0])
    assert np.allclose(steering.level, (choices[:, 2] + 1) / 2 * 0.6, atol=1e-6)
    assert np.abs(steering.context_noise).max() == pytest.approx(0.8)
    rows = space(replace(bounds, whole_chunk=True))
    assert rows.parts == (16, 1, 8)
    assert not np.array_equal(*rows.spread(random.uniform(-1, 1, (1, 25)), random).noise[0, :2])
    narrow = space(replace(bounds, level_least=0.4)).spread(choices, random).level
    assert narrow[:2].tolist() == pytest.approx([0.6, 0.4])
    fixed = space(replace(bounds, level_least=0.6))
    assert fixed.parts == (2, 1, 8)
    assert fixed.spread(choices, random).level.tolist() == pytest.approx([0.6] * 50)
    with pytest.raises(ValueError, match=r"level_least: 0.7, must be from 0 to level_bound, 0.6"):
        space(replace(bounds, level_least=0.7))
    with pytest.raises(ValueError, match="trained without context noise"):
        ChoiceSpace.of(rows=8, columns=2, context_size=0, **bounds.bounds)


def test_unmodulated_it_is_dsrl_step_for_step(tmp_path: Path) -> None:
    ours = played(job(tmp_path / "tmrl", UNMODULATED))
    theirs = played(job(tmp_path / "dsrl", UNMODULATED, make=DsrlAgent))
    for name, value in ours.items():
        assert np.array_equal(value, theirs[name]), name


def test_the_target_is_the_smallest_critic_without_entropy_discounted_once() -> None:
    agent = TmrlAgent(SMALL, space(SMALL), 10, seed=0)
    noise = torch.zeros(6, 11)
    batch = decisions()
    with torch.no_grad():
        choices, scores = agent.actor(torch.from_numpy(batch.after), noise)
        values = agent.target(agent.inputs(torch.from_numpy(batch.after), choices))
    lowest = values.min(dim=0).values
    assert len(values) == 3
    paid = torch.from_numpy(batch.rewards)
    assert torch.allclose(agent.targets(batch, noise), paid + 0.995 * lowest)
    assert torch.equal(agent.targets(decisions(done=1.0), noise), paid)
    entropic = TmrlAgent(replace(SMALL, entropy_backup=True), space(SMALL), 10, seed=0)
    surprise = (0.05 * scores).sum(dim=0)
    assert torch.allclose(entropic.targets(batch, noise), paid + 0.995 * (lowest - surprise), atol=1e-5)


def test_sums_of_rewards_are_kept_and_only_success_ends_the_value(tmp_path: Path) -> None:
    kept = played(job(tmp_path))
    assert set(np.unique(kept["rewards"])) <= {0.0, 1.0}
    assert np.array_equal(kept["done"] == 1.0, kept["rewards"] == 1.0)
    assert kept["done"].sum() < len(kept["done"]) / 3  # the clock cut most episodes off


def test_each_part_has_a_temperature_that_follows_its_size() -> None:
    agent = TmrlAgent(SMALL, space(SMALL), 10, seed=0)
    states, noise = torch.randn(64, 10), torch.randn(64, 11)
    before = agent.log_temperatures.detach().clone()
    _, scores = agent.actor(states, noise)
    surplus = (scores.detach() - torch.tensor([[2.0], [1.0], [8.0]])).mean(dim=1)
    agent._improve(states, noise)
    assert torch.equal(torch.sign(agent.log_temperatures.detach() - before), torch.sign(surplus))
    assert len(agent.log_temperatures) == 3


def test_log_probabilities_are_those_of_a_squashed_gaussian() -> None:
    agent = TmrlAgent(SMALL, space(SMALL), 10, seed=1)
    states, noise = torch.randn(5, 10), torch.randn(5, 11)
    choices, scores = agent.actor(states, noise)
    mean, raw = agent.actor.heads[2](agent.actor.trunk(states)).chunk(2, dim=-1)
    gaussian = torch.distributions.Normal(mean, (3.5 * raw.tanh() - 1.5).exp())
    squashed = torch.distributions.TransformedDistribution(gaussian, torch.distributions.TanhTransform())
    assert torch.allclose(squashed.log_prob(choices[:, 3:]).sum(dim=-1), scores[2], atol=1e-3)


def test_half_of_a_batch_is_of_successes() -> None:
    replay = DecisionReplay(capacity=100, state_size=1, choice_size=1, half_solved=True)
    for episode in range(20):
        one = np.full(1, episode, np.float32)
        for last in (False, True):
            replay.add(one, one, 0.0, one, done=False, over=last, success=last and episode == 7)
    batch = replay.sample(40, np.random.default_rng(0))
    assert (batch.states[:20] == 7).all()
    assert not (batch.states[20:] == 7).any()


def test_what_is_logged_shows_the_level(tmp_path: Path) -> None:
    played(job(tmp_path))
    rows = metrics(tmp_path)
    assert [row["step"] // 160 for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert 0 <= row["t_min"] <= row["t_mean"] <= row["t_max"] <= 1
        assert row["success_low"] <= row["success"] <= row["success_high"]
        assert row["decisions"] * 8 >= row["env_steps"]


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = job(tmp_path / "whole")
    played(whole)

    def kill(step: int, _: str) -> None:
        if step >= 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "killed").train(kill)
    resumed = job(tmp_path / "killed")
    assert 0 < resumed.counts.steps < 400
    kept, wanted = played(resumed), whole.learner.replay.state()
    for name, value in wanted.items():
        assert np.array_equal(kept[name], value), name
    assert parameters_hash(resumed.learner.agent.actor) == parameters_hash(whole.learner.agent.actor)
    own, other = (
        [{name: value for name, value in row.items() if name != "seconds"} for row in metrics(tmp_path / name)]
        for name in ("whole", "killed")
    )
    assert own == other


def test_what_was_learned_is_served_and_tells_its_level(tmp_path: Path) -> None:
    learned = job(tmp_path / "run")
    played(learned)
    learned.export(tmp_path / "policy", name="steered", revision="7")
    settings = {"checkpoint": str(tmp_path / "policy")}
    state = make_env(TASK).reset(seed=5)[0]
    learner = learned.learner
    wanted = learner.space.spread(
        learner.agent.choose(learner.policy.look(state[None]), None), np.random.default_rng(0)
    )
    with RunningPolicy.serving("models.policies.steered:SteeredPolicy", settings) as served:
        client = PolicyClient(served.url)
        reply = client.act(images={}, state=state, instruction="", options=ActOptions(seed=0))
        assert client.contract.revision == "7"
        told = ActOptions(noise=np.zeros((8, 2), np.float32))
        with pytest.raises(RoboserveError, match="noise"):
            client.act(images={}, state=state, instruction="", options=told)
        assert "summary" not in client.contract.supports
        with pytest.raises(RoboserveError, match=r"options\.return_summary: policy 'steered' does not support it"):
            client.act(images={}, state=state, instruction="", options=ActOptions(return_summary=True))
        client.close()
    assert reply.context_level == pytest.approx(wanted.level[0])
    assert np.allclose(reply.actions, learner.policy.act(state[None], wanted)[0], atol=1e-5)
    other = checkpoint_folder("zoo:eight-goals-clone")
    shutil.copytree(other, tmp_path / "policy" / "base", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="its actor steers"):
        load_steered(tmp_path / "policy")


def test_a_few_numbers_make_noise_for_a_large_context() -> None:
    basis = context_basis(4, 1000)
    assert np.array_equal(basis, context_basis(4, 1000))
    assert np.allclose(np.abs(basis), np.sqrt(3 / 4))
    assert np.abs(basis @ basis.T / 1000 * 4 / 3 - np.eye(4)).max() < 0.15
    agent = replace(SMALL, context_rank=3)
    chosen = space(agent)
    assert chosen.parts == (2, 1, 3)
    random = np.random.default_rng(0)
    choices = random.uniform(-1, 1, (4000, chosen.size)).astype(np.float32)
    noise = chosen.spread(choices, random).context_noise
    assert noise.shape == (4000, 8)
    assert np.allclose(noise.std(axis=0), 1.0, atol=0.05)
    np.testing.assert_allclose(noise[:1], choices[:1, 3:] @ context_basis(3, 8), rtol=1e-6)
    with pytest.raises(ValueError, match="context_rank: 9, must be from 0 to the context's size, 8"):
        space(replace(SMALL, context_rank=9))


def test_a_choice_may_be_drawn_where_it_is_judged_and_served(tmp_path: Path) -> None:
    likeliest, drawn = job(tmp_path / "likeliest"), job(tmp_path / "drawn", playing="drawn")
    ours, theirs = played(likeliest), played(drawn)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours), "what is learned does not depend on it"
    rows = [[row["t_std"] for row in metrics(tmp_path / name)] for name in ("likeliest", "drawn")]
    assert all(one < other for one, other in zip(*rows, strict=True))
    drawn.export(tmp_path / "policy", name="steered", revision="1")
    served = SteeredPolicy.Config(checkpoint=str(tmp_path / "policy"))
    state = make_env(TASK).reset(seed=5)[0]
    observation = Observation(images={}, state=state, instruction="")
    one, other, again = SteeredPolicy(served).act(
        [ActItem(observation=observation, options=Options(seed=seed)) for seed in (3, 4, 3)]
    )
    random = np.random.default_rng(3)
    choice = drawn.learner.agent.choose(drawn.learner.policy.look(state[None]), random)
    wanted = drawn.learner.policy.act(state[None], drawn.learner.space.spread(choice, random))[0]
    np.testing.assert_allclose(one.actions, wanted, atol=1e-5)
    assert np.array_equal(one.actions, again.actions)
    assert one.context_level != other.context_level


def test_a_served_policy_gives_the_trajectories_of_a_local_one(tmp_path: Path) -> None:
    settings = {"checkpoint": "zoo:eight-goals", "integration_steps": 10}
    with RunningPolicy.serving("models.policies.state_flow:StateFlowPolicy", settings) as served:
        base = ServedPolicy(served.url)
        far = played(job(tmp_path / "far", base=base))
        base.close()
    near = played(job(tmp_path / "near"))
    for name, value in near.items():
        assert np.array_equal(value, far[name]), name
