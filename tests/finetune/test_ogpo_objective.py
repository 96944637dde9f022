"""OGPO's policy loss: what it teaches and what not, ratios, and advantages, by hand-made values."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.baselines.residual import ResidualConfig, ResidualLearner
from finetune.common.experience import sources
from finetune.ogpo.advantage import advantages, agreed, standardised
from finetune.ogpo.agent import OgpoLearner
from finetune.ogpo.objective import clipped_loss
from models.policies.denoising import DiffusionSteps, FlowSteps, whole_score
from tests.chunk_learners import STATES, TINY, fill, learner, macro, policy
from tests.weights import parameters_hash

if TYPE_CHECKING:
    from finetune.common.critics import CriticEnsemble


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
