"""Chains of denoising: the checklist's O2, O3 and O12, on fields whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.policies.denoising import (
    Chain,
    DiffusionSteps,
    FlowSteps,
    Transitions,
    chain_log_prob,
    sample_chain,
    step_log_probs,
    whole_score,
)
from models.policies.flow_vla.flow import Field, integrate
from models.policies.state_flow.network import StateFlowConfig, StateFlowNetwork

MEAN, STD = 0.3, 0.05


def exact_velocity(moving: Tensor, time: Tensor) -> Tensor:
    """Of the straight path from the standard normal to N(0.3, 0.05^2)."""
    t = time[:, None, None]
    variance = t**2 + (1 - t) ** 2 * STD**2
    return (t - (1 - t) * STD**2) / variance * (moving - (1 - t) * MEAN) - MEAN


def ends(steps: FlowSteps) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(40_000, 1, 1, generator=generator)
    return sample_chain(steps, exact_velocity, noise, generator=generator).actions


def network_field(*, seed: int = 0, number: int = 6) -> tuple[StateFlowNetwork, Field]:
    torch.manual_seed(seed)
    network = StateFlowNetwork(StateFlowConfig(state_size=3, action_size=2, chunk_length=4, width=16, blocks=1))
    prefix = network.encode(torch.randn(number, 3))
    return network, lambda moving, time: network.velocity(prefix, moving, time)


def test_matched_noise_ends_where_the_flow_without_noise_does() -> None:
    noise = torch.randn(40_000, 1, 1, generator=torch.Generator().manual_seed(0))
    still = integrate(exact_velocity, noise, steps=50)
    assert still.std().item() == pytest.approx(0.0422, abs=4e-4)
    for steps in (FlowSteps(steps=50), FlowSteps(steps=50, noise=0.05 / math.sqrt(50))):
        drawn = ends(steps)
        assert drawn.mean().item() == pytest.approx(still.mean().item(), rel=0.05)
        assert drawn.std().item() == pytest.approx(still.std().item(), rel=0.05)


@pytest.mark.parametrize(
    ("steps", "std"),
    [
        (FlowSteps(steps=50, correction="none"), 0.0516),
        (FlowSteps(steps=50, correction="reference"), 0.0514),
        (FlowSteps(steps=50, correction="matched"), 0.0435),
        (FlowSteps(steps=50, correction="matched", noise=0.05 / math.sqrt(50)), 0.0424),
    ],
)
def test_each_correction_has_its_known_spread(steps: FlowSteps, std: float) -> None:
    assert ends(steps).std().item() == pytest.approx(std, abs=7e-4)


def test_a_diffusion_of_a_gaussian_ends_there_too() -> None:
    steps, std = DiffusionSteps(steps=100, least=1e-3, clip=None), 0.5

    def exact_noise(moving: Tensor, time: Tensor) -> Tensor:
        kept = steps.kept(round((1 - float(time[0])) * steps.steps))
        return math.sqrt(1 - kept) * (moving - math.sqrt(kept) * MEAN) / (kept * std**2 + 1 - kept)

    noise = torch.randn(20_000, 1, 1, generator=torch.Generator().manual_seed(0))
    drawn = sample_chain(steps, exact_noise, noise, generator=torch.Generator().manual_seed(1)).actions
    assert drawn.mean().item() == pytest.approx(MEAN, rel=0.05)
    assert drawn.std().item() == pytest.approx(std, rel=0.05)


EVERY = [
    FlowSteps(),
    FlowSteps(correction="reference", clip=1.0),
    FlowSteps(taper=False),
    FlowSteps(last=2),
    DiffusionSteps(steps=6),
    DiffusionSteps(steps=6, last=2),
]


@pytest.mark.parametrize("steps", EVERY)
def test_the_network_that_drew_a_chain_gives_it_a_ratio_of_exactly_one(steps: Transitions) -> None:
    _, field = network_field()
    chain = sample_chain(steps, field, 3 * torch.randn(6, 4, 2), generator=torch.Generator().manual_seed(0))
    assert chain.actions.abs().max() > 1  # some actions are cut when they are played, and the chain is not
    for normalised in (False, True):
        ratio = chain_log_prob(steps, field, chain, normalised=normalised) - whole_score(
            chain.scores, chain, normalised=normalised
        )
        assert torch.equal(ratio.exp(), torch.ones(6))


@pytest.mark.parametrize("steps", EVERY)
def test_a_chains_likelihood_is_the_sum_of_its_gaussian_steps(steps: Transitions) -> None:
    _, field = network_field()
    chain = sample_chain(steps, field, torch.randn(6, 4, 2))
    by_hand = torch.zeros(6)
    for step in steps.scored:
        mean, deviation = steps.transition(field, chain.points[step], step)
        assert deviation > 0
        density = torch.exp(-0.5 * ((chain.points[step + 1] - mean) / deviation) ** 2) / (
            deviation * math.sqrt(2 * math.pi)
        )
        by_hand += density.log().sum(dim=(1, 2))
    whole = chain_log_prob(steps, field, chain, normalised=False)
    assert torch.allclose(whole, by_hand, atol=1e-3)
    normalised = chain_log_prob(steps, field, chain, normalised=True)
    assert torch.allclose(normalised, whole / ((steps.steps + 1) * 8))


def test_only_the_last_steps_are_random_and_scored_where_so_told() -> None:
    _, field = network_field()
    noise = torch.randn(6, 4, 2)
    first, second = (
        sample_chain(FlowSteps(last=2), field, noise, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    assert torch.equal(first.points[:4], second.points[:4])
    assert not torch.equal(first.points[4], second.points[4])
    assert len(step_log_probs(FlowSteps(last=2), field, first)) == 2
    assert len(step_log_probs(FlowSteps(taper=False), field, first)) == 4  # the last is without noise
    assert len(step_log_probs(DiffusionSteps(steps=5, last=3), field, first)) == 3


@pytest.mark.parametrize("steps", EVERY)
def test_the_likelihood_teaches_every_parameter_of_the_denoiser(steps: Transitions) -> None:
    network, field = network_field()
    chain = sample_chain(steps, field, torch.randn(6, 4, 2))
    chain_log_prob(steps, field, chain, normalised=True).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_lessons_are_of_the_declared_convention() -> None:
    actions, generator = torch.full((500, 4, 2), 0.25), torch.Generator().manual_seed(0)
    flow = FlowSteps().lesson(actions, generator=generator)
    moved = flow.noisy - flow.time[:, None, None] * flow.target
    assert torch.allclose(moved, actions, atol=1e-5)  # from anywhere, time's worth of velocity leads to the actions
    steps = DiffusionSteps(steps=6)
    diffusion = steps.lesson(actions, generator=generator)
    kept = torch.tensor([steps.kept(round(float(1 - time) * 6)) for time in diffusion.time])[:, None, None]
    assert torch.allclose((diffusion.noisy - (1 - kept).sqrt() * diffusion.target) / kept.sqrt(), actions, atol=1e-3)


def test_grouped_chunks_are_answered_as_repeated_states_are() -> None:
    network, _ = network_field()
    states, noisy, time = torch.randn(3, 3), torch.randn(3, 5, 4, 2), torch.rand(3)
    prefix = network.encode(states)
    repeated = network.velocity(prefix.repeat(5), noisy.reshape(15, 4, 2), time.repeat_interleave(5))
    assert torch.allclose(network.velocity(prefix, noisy, time).reshape(15, 4, 2), repeated, atol=1e-5)


def test_a_chain_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="steps, noise: 5, 0, must be"):
        FlowSteps(noise=0)
    with pytest.raises(ValueError, match="last: 7, must be from 1 to 6"):
        DiffusionSteps(steps=6, last=7)
    assert Chain(points=torch.zeros(3, 2, 4, 2), scores=torch.ones(2, 2)).actions.shape == (2, 4, 2)
