"""OGPO's parts: the checklist's O1, O2, O4 to O11, by hand-made values and small policies."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.baselines.residual import ResidualConfig, ResidualLearner
from finetune.common.chunk_policy import ChunkPolicy
from finetune.common.experience import ExperienceConfig, sources
from finetune.common.macro import Macro
from finetune.common.replay import StepReplay
from finetune.ogpo.advantage import advantages, agreed, blended, centred, penalised, standardised
from finetune.ogpo.agent import OgpoLearner
from finetune.ogpo.config import ChiSquaredConfig, OgpoConfig, small, variant
from finetune.ogpo.objective import clipped_loss
from models.policies.denoising import DiffusionSteps, FlowSteps, whole_score
from models.policies.normalizer import Normalizer
from models.policies.state_flow.checkpoint import StatePolicyConfig
from models.policies.state_flow.network import StateFlowConfig, StateFlowNetwork
from tests.weights import parameters_hash

if TYPE_CHECKING:
    from finetune.common.critics import CriticEnsemble

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


def gradients(made: OgpoLearner) -> list[Tensor | None]:
    loss, _ = made.policy_loss(made.experience.sample(sources(0, 0).rows), torch.Generator().manual_seed(0))
    loss.backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in made.network.parameters()]


def kept_bytes(made: OgpoLearner) -> tuple[int, list[Tensor | None]]:
    """Return the bytes that a policy's loss keeps for its gradient, and the gradient."""
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    batch = made.experience.sample(sources(0, 0).rows)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss, _ = made.policy_loss(batch, torch.Generator().manual_seed(0))
    loss.backward()  # type: ignore[no-untyped-call]
    return sum(kept.values()), [parameter.grad for parameter in made.network.parameters()]


@pytest.mark.parametrize("steps", [FlowSteps(), DiffusionSteps(steps=4)])
def test_what_is_computed_again_for_the_gradient_gives_the_same_one_from_less(
    steps: FlowSteps | DiffusionSteps,
) -> None:
    whole, network = policy(steps)
    plain = fill(OgpoLearner(TINY, whole, copy.deepcopy(network), seed=0), solved=False)
    again = fill(OgpoLearner(TINY, replace(whole, recompute=True), network, seed=0), solved=False)
    (most, wanted), (least, given) = kept_bytes(plain), kept_bytes(again)
    for one, other in zip(given, wanted, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)
    assert least < most / 2


# O1, O11


@pytest.mark.parametrize("steps", [FlowSteps(), FlowSteps(correction="reference"), DiffusionSteps(steps=4)])
def test_the_policys_loss_teaches_the_whole_denoiser_and_no_critic(steps: FlowSteps | DiffusionSteps) -> None:
    made = fill(learner(replace(TINY, advantage="group"), steps), solved=False)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients(made))
    for frozen in (made.critics, made.target, made.average, made.slow):
        assert all(parameter.grad is None for parameter in frozen.parameters())


def test_the_policys_loss_does_not_read_what_the_environment_paid() -> None:
    made = fill(learner(replace(TINY, advantage="group")), solved=True)
    batch = made.experience.sample(sources(0, 0).rows)
    losses = [
        made.policy_loss(each, torch.Generator().manual_seed(0))[0]
        for each in (batch, batch._replace(returns=100 * batch.returns, alive=1 - batch.alive, chunks=-batch.chunks))
    ]
    assert torch.equal(losses[0], losses[1])


def test_critics_take_no_gradient_with_respect_to_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    made = fill(learner(replace(TINY, advantage="group")), solved=False)
    seen: list[bool] = []
    true = made.values

    def watched(critics: CriticEnsemble, states: Tensor, chunks: Tensor) -> Tensor:
        seen.append(chunks.requires_grad)
        return true(critics, states, chunks)

    monkeypatch.setattr(made, "values", watched)
    made.update(sources(0, 0))
    assert len(seen) == 3  # for the policy's loss, for targets, for the regression
    assert not any(seen)


def test_a_residual_leaves_the_denoiser_as_it_was() -> None:
    config = ResidualConfig(experience=TINY.experience, heads=2, hidden=8, layers=1)
    made, chunk_policy = ResidualLearner(config, *policy(), seed=0), policy()[1]
    made.keep(macro([-1.0] * 8, truncated=True))
    before = made.act(np.zeros((1, STATES), np.float32), torch.Generator().manual_seed(0), "draw").chunks
    for number in range(3):
        made.update(sources(0, number))
    assert parameters_hash(made.network) == parameters_hash(chunk_policy)
    after = made.act(np.zeros((1, STATES), np.float32), torch.Generator().manual_seed(0), "draw").chunks
    assert 0 < np.abs(after - before).max() <= config.bound


# O2


def test_the_first_step_of_an_average_that_is_the_policy_has_ratios_of_one() -> None:
    _, facts = fill(learner(), solved=False).policy_loss(
        fill(learner(), solved=False).experience.sample(sources(0, 0).rows), torch.Generator().manual_seed(0)
    )
    assert facts["ratio_least"] == facts["ratio_most"] == 1.0
    assert facts["clip_fraction"] == 0.0


def test_after_updates_the_ratio_is_that_to_the_average() -> None:
    made = fill(learner(replace(TINY, learning_rate=1e-2)), solved=False)
    for number in range(3):
        made.update(sources(0, number))
    states = torch.randn(5, STATES)
    chain = made.policy.draw(made.average, states, torch.Generator().manual_seed(0), group=2)
    old = made.policy.score(made.average, states, chain)
    assert torch.allclose(old, whole_score(chain.scores, chain, normalised=True), atol=1e-5)
    assert not torch.allclose(made.policy.score(made.network, states, chain), old, atol=1e-5)


def test_the_clipped_loss_is_flat_beyond_its_bounds() -> None:
    ratio = torch.tensor([[1.2, 0.8, 1.005, 1.2, 0.8]], requires_grad=True)
    advantage = torch.tensor([[1.0, 1.0, 1.0, -1.0, -1.0]])
    loss, clipped = clipped_loss(ratio, advantage, low=0.99, high=1.01)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(-(1.01 + 0.8 + 1.005 - 1.2 - 0.99) / 5)
    assert ratio.grad is not None
    assert ratio.grad[0].tolist() == pytest.approx([0.0, -0.2, -0.2, 0.2, 0.0])
    assert clipped.item() == pytest.approx(2 / 5)


# O4


def test_a_groups_advantages_have_no_mean_and_keep_their_scale() -> None:
    values = 7 + 3 * torch.randn(5, 4, 8)
    advantage = advantages(values, "group")
    assert advantage.mean(dim=1).abs().max() < 1e-5
    assert torch.allclose(advantages(10 * values, "group"), 10 * advantage, atol=1e-4)
    assert torch.allclose(standardised(advantage).std(dim=1), torch.ones(4), atol=1e-3)


def test_two_chunks_of_equal_value_teach_nothing() -> None:
    made = fill(learner(replace(TINY, advantage="group", group=2)), solved=False)
    for parameter in made.target.parameters():
        parameter.zero_()
    assert all(gradient is not None and not gradient.any() for gradient in gradients(made))


# O5


def test_conservative_advantages_are_what_all_heads_agree_on() -> None:
    heads = torch.tensor([[3.0, -3.0, 1.0, 0.0], [1.0, -1.0, -1.0, 2.0]])[:, None]
    assert agreed(heads, dissenters=0).tolist() == [[1.0, -1.0, 0.0, 0.0]]


def test_conservative_advantages_centre_each_head_first() -> None:
    values = torch.tensor([[[0.0, 2.0, 4.0]], [[10.0, 13.0, 10.0]]])  # centred: -2 0 2 and -1 2 -1
    assert advantages(values, "conservative").tolist() == [[-1.0, 0.0, 0.0]]


def test_one_head_alone_is_as_good_as_its_word() -> None:
    values = torch.randn(1, 4, 8)
    assert torch.equal(advantages(values, "conservative"), advantages(values, "group"))


def test_the_penultimate_variant_passes_one_head_over() -> None:
    heads = torch.tensor([[-1.0, 1.0, -1.0], [2.0, -2.0, 1.0], [3.0, -3.0, 0.0]])[:, None]
    assert agreed(heads, dissenters=1).tolist() == [[2.0, -2.0, 0.0]]
    with pytest.raises(ValueError, match="heads: 2, must be 3 or more"):
        agreed(heads[:2], dissenters=1)


# O6


def test_a_target_by_hand_over_three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    made = OgpoLearner(TINY, *policy(), seed=0)
    monkeypatch.setattr(made, "values", lambda _critics, states, _chunks: torch.full((3, len(states), 1), 8.0))
    whole = replay(3, macro([1.0, 2.0, 4.0], truncated=True)).windows(np.array([0]))
    assert whole.returns[0] == 1 + 0.5 * 2 + 0.25 * 4
    assert (whole.alive[0], whole.weights[0]) == (1, 1)
    assert whole.after[0].tolist() == [3.0] * STATES
    ended = replay(3, macro([1.0, 2.0], terminated=True), macro([50.0, 50.0])).windows(np.array([0]))
    assert ended.returns[0] == 1 + 0.5 * 2
    assert (ended.alive[0], ended.weights[0]) == (0, 1)
    assert ended.played[0].tolist() == [1, 1, 0]
    made.execute = 3
    for windows, follows in ((whole, 0.5**3 * 8.0), (ended, 0.0)):
        batch = made.experience._tensors(windows)
        assert made.targets(batch, torch.Generator()).tolist() == [pytest.approx(windows.returns[0] + follows)]


def test_where_fewer_rows_are_played_than_a_chunk_has_these_alone_have_a_value() -> None:
    made = StepReplay(capacity=100, state_size=STATES, action_size=COLUMNS, horizon=3, execute=2, discount=DISCOUNT)
    for one in (macro([1.0, 2.0]), macro([4.0], truncated=True), macro([8.0, 16.0], terminated=True), macro([1.0] * 2)):
        made.add(one)
    windows = made.windows(np.arange(4))
    assert windows.chunks.shape == (4, 3, COLUMNS)
    assert windows.returns.tolist() == [1 + 0.5 * 2, 2 + 0.5 * 4, 4.0, 8 + 0.5 * 16]
    assert windows.after[:, 0].tolist() == [2.0, 1.0, 1.0, 2.0]
    assert windows.weights.tolist() == [1, 1, 0, 1]
    assert windows.alive.tolist() == [1, 1, 1, 0]
    assert windows.played.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]
    with pytest.raises(ValueError, match="capacity, horizon, execute: 100, 3, 4"):
        StepReplay(capacity=100, state_size=STATES, action_size=COLUMNS, horizon=3, execute=4, discount=DISCOUNT)


def test_critics_read_the_rows_that_are_played_and_the_likelihood_is_of_all() -> None:
    whole, network = policy()
    short = replace(whole, config=replace(whole.config, execute=1))
    made = OgpoLearner(TINY, short, network, seed=0)
    batch = fill(made, solved=False).experience.sample(sources(0, 0).rows)
    changed = batch.chunks.clone()
    changed[:, 1:] = 0.5
    values = made.values(made.critics, batch.states, batch.chunks)
    torch.testing.assert_close(made.values(made.critics, batch.states, changed), values)
    changed[:, 0] += 0.1
    assert not torch.allclose(made.values(made.critics, batch.states, changed), values)
    loss, _ = made.policy_loss(batch, torch.Generator().manual_seed(0))
    loss.backward()
    last = [value.grad for value in network.parameters()][-1]
    assert last is not None
    assert last.reshape(whole.chunk)[1:].abs().max() > 0


def test_windows_that_cross_an_episodes_end_do_not_count() -> None:
    cut_off = replay(3, macro([1.0, 2.0], truncated=True), macro([50.0], terminated=True), macro([1.0]))
    windows = cut_off.windows(np.array([0, 1]))
    assert windows.weights.tolist() == [0, 0]
    assert windows.returns.tolist() == [2.0, 2.0]


def test_a_window_without_weight_teaches_the_critics_nothing() -> None:
    made = fill(learner(), solved=False)
    batch = made.experience.sample(sources(0, 0).rows)
    before = parameters_hash(made.critics)
    for group in made.optimizers["critics"].param_groups:
        group["weight_decay"] = 0.0
    made._regress(batch._replace(weights=torch.zeros(len(batch.weights))), torch.Generator())
    assert parameters_hash(made.critics) == before


# O7


def test_the_success_buffer_holds_steps_of_solved_episodes_alone() -> None:
    made = replay(2, macro([-1.0] * 3, truncated=True), macro([-1.0] * 3, terminated=True, first=50))
    made.add(macro([-1.0] * 2, first=90))
    assert made.solved == 3
    assert made.sample_solved(200, np.random.default_rng(0)).states.min() >= 50
    assert made.sample_solved(200, np.random.default_rng(0)).states.max() < 60


def test_cloning_waits_for_the_first_success_and_is_weighed() -> None:
    assert "cloning_loss" not in fill(learner(), solved=False).update(sources(0, 0))
    assert "cloning_loss" not in fill(learner(replace(TINY, cloning=0.0)), solved=True).update(sources(0, 0))
    moved = []
    for weight in (1.0, 1000.0):
        made = fill(learner(replace(TINY, cloning=weight)), solved=True)
        facts = made.update(sources(0, 0))
        assert facts["cloning_loss"] > 0
        moved.append(
            [parameter.grad.norm().item() for parameter in made.network.parameters() if parameter.grad is not None]
        )
    assert np.median(np.array(moved[1]) / np.array(moved[0])) > 50


# O8


def test_chi_squared_starts_as_a_constant_that_centring_cancels() -> None:
    values, ratio = torch.randn(3, 4, 8), torch.ones(4, 8)
    config = ChiSquaredConfig()
    advantage, beta = penalised(values, ratio, config)
    assert torch.allclose(advantage, centred(blended(values, ratio, config)), atol=1e-6)
    assert beta == pytest.approx(0.1 * values.std(dim=0).mean().item())
    assert torch.allclose(blended(values, ratio, config), (values.mean(dim=0) + values.min(dim=0).values) / 2)
    assert torch.allclose(blended(values, 10 * ratio, config), values.min(dim=0).values, atol=1e-5)


def test_the_slow_policy_moves_ten_times_slower_than_the_average() -> None:
    made = fill(learner(replace(variant(TINY, "ogpo+chi2"), learning_rate=1e-2)), solved=False)
    start = copy.deepcopy(made.network)
    for number in range(5):
        made.update(sources(0, number))

    def distance(network: StateFlowNetwork) -> float:
        pairs = zip(network.parameters(), start.parameters(), strict=True)
        return float(torch.stack([(first - second).detach().norm() for first, second in pairs]).norm())

    assert 8 < distance(made.average) / distance(made.slow) < 12
    assert float(made.state()["ratio"]["mean"]) < 1  # chains of the average are likelier under what is still near it


def test_chi_squared_narrows_the_upper_clip_when_critics_disagree() -> None:
    bounds: list[float] = []
    for most in (100.0, 1e-4):
        made = fill(
            learner(replace(TINY, advantage="group", chi_squared=ChiSquaredConfig(most_return=most))), solved=False
        )
        states = made.experience.sample(sources(0, 0).rows)
        with torch.no_grad():
            for parameter in made.network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        bounds.append(made.policy_loss(states, torch.Generator().manual_seed(0))[1]["clip_high"])
    assert bounds[0] == pytest.approx(1.01)
    assert 1 < bounds[1] < 1.01


# O9


def test_more_next_actions_make_the_target_vary_less() -> None:
    spreads = []
    for number in (1, 8):
        made = learner(replace(TINY, next_actions=number))
        for parameter in made.target.parameters():
            parameter.mul_(3.0)
        fill(made, solved=False)
        batch = made.experience.sample(sources(0, 0).rows, 1)
        drawn = [made.targets(batch, torch.Generator().manual_seed(seed)).item() for seed in range(400)]
        spreads.append(np.var(drawn))
    assert spreads[1] / spreads[0] == pytest.approx(1 / 8, rel=0.3)


# O10


def test_targets_take_the_heads_mean_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.tensor([[[1.0, 9.0]], [[3.0, 5.0]]])

    def target(**changes: object) -> float:
        config = replace(TINY, heads=2, **changes)  # type: ignore[arg-type]
        made = learner(config)
        drawn = config.next_actions * config.target_best_of
        monkeypatch.setattr(made, "values", lambda *_: values[..., :drawn])
        fill(made, solved=False)
        batch = made.experience.sample(sources(0, 0).rows, 1)
        batch = batch._replace(returns=torch.zeros(1), alive=torch.ones(1))
        return made.targets(batch, torch.Generator()).item() / DISCOUNT**ROWS

    assert OgpoConfig().aggregate == "mean"
    assert target() == pytest.approx(2.0)
    assert target(aggregate="min") == pytest.approx(1.0)
    assert target(next_actions=2) == pytest.approx(4.5)
    assert target(target_best_of=2) == pytest.approx(7.0)
    assert target(target_best_of=2, aggregate="min") == pytest.approx(5.0)


def test_collection_takes_the_best_of_several_and_drawing_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner(replace(TINY, best_of=16))

    def first(_critics: CriticEnsemble, states: Tensor, chunks: Tensor) -> Tensor:
        return chunks[:, 0, 0].reshape(1, len(states), -1).expand(3, -1, -1)

    monkeypatch.setattr(made, "values", first)
    states = np.zeros((20, STATES), np.float32)
    best = made.act(states, torch.Generator().manual_seed(0), "collect").chunks[:, 0, 0].mean()
    plain = made.act(states, torch.Generator().manual_seed(0), "draw").chunks[:, 0, 0].mean()
    assert best > plain + 0.5
    assert set(made.judged.values()) == {"collect", "draw"}


def test_replay_begins_empty_and_updates_wait_for_steps() -> None:
    made = learner(replace(TINY, experience=replace(TINY.experience, start=10, updates=0.5)))
    assert made.facts() == {"updates": 0, "kept_steps": 0, "solved_steps": 0}
    fill(made, solved=False)
    assert [len(list(made.learn(steps))) for steps in (11, 12, 20, 20)] == [0, 1, 4, 0]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="group, clip, cloning: 1"):
        OgpoConfig(group=1)
    with pytest.raises(ValueError, match="advantage: 'conservative', must be \"group\""):
        OgpoConfig(chi_squared=ChiSquaredConfig())
    with pytest.raises(ValueError, match="heads: 1, must be 2 or more"):
        OgpoConfig(heads=1, best_of=8)
