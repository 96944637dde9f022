"""Context noise: the published schedule, its ends, and what is left untouched (checklist C1 and C6)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.policies.context_noise import (
    REFERENCE_OGBENCH,
    ContextSchedule,
    noise_context,
    noise_feature,
    noise_slice,
    noise_tokens,
    unit_rms,
)

LINEAR, COSINE = ContextSchedule(levels=1000), ContextSchedule(kind="cosine")


def test_the_linear_schedule_is_the_published_one() -> None:
    top = torch.tensor([0.999])
    assert LINEAR.kept(top).item() == pytest.approx(4.0e-5, abs=1e-5)
    assert REFERENCE_OGBENCH.kept(top).sqrt().item() == pytest.approx(0.603, abs=1e-3)
    levels = torch.tensor([0.25, 0.5, 0.75])
    assert LINEAR.kept(levels).sqrt().tolist() == pytest.approx([0.722, 0.279, 0.057], abs=2e-3)
    assert REFERENCE_OGBENCH.kept(levels).sqrt().tolist() == pytest.approx([0.967, 0.877, 0.747], abs=2e-3)


def test_pi0s_port_rounds_otherwise() -> None:
    other = ContextSchedule(index="floor_last")
    level = torch.tensor([0.9995])
    assert other.kept(level) > LINEAR.kept(level)
    assert other.kept(torch.ones(1)) == LINEAR.kept(torch.ones(1))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.sampled_from([LINEAR, REFERENCE_OGBENCH, COSINE]))
@settings(max_examples=50, deadline=None)
def test_a_higher_level_never_leaves_more(levels: list[float], schedule: ContextSchedule) -> None:
    kept = schedule.kept(torch.tensor(sorted(levels)))
    assert bool((kept.diff() <= 1e-7).all())
    assert bool(((kept >= 0) & (kept <= 1)).all())


@pytest.mark.parametrize("schedule", [LINEAR, REFERENCE_OGBENCH, COSINE])
def test_level_zero_is_exactly_the_context(schedule: ContextSchedule) -> None:
    context, noise = torch.randn(3, 5), torch.randn(3, 5)
    assert torch.equal(noise_context(context, torch.zeros(3), noise, schedule), context)


def test_noising_is_the_formula() -> None:
    context, noise, level = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0.1, 0.4, 0.8, 1.0])
    index = (level * 1000).floor().long().clamp(0, 999)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[index].float()[:, None]
    wanted = kept.sqrt() * context + (1 - kept).sqrt() * noise
    assert torch.allclose(noise_context(context, level, noise, LINEAR), wanted, atol=1e-6)


@pytest.mark.parametrize("level", [-0.1, 1.5, float("nan")])
def test_a_level_outside_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match=r"context_level: .* must be from 0 to 1"):
        LINEAR.kept(torch.tensor([level]))


def test_what_is_not_context_keeps_its_bits() -> None:
    state, noise = torch.randn(6, 10), torch.randn(6, 3)
    noised = noise_slice(state, 4, 7, torch.full((6,), 0.9), noise, LINEAR)
    assert torch.equal(noised[:, :4], state[:, :4])
    assert torch.equal(noised[:, 7:], state[:, 7:])
    assert not torch.isclose(noised[:, 4:7], state[:, 4:7]).any()
    whole = noise_slice(state, 0, 10, torch.ones(6), torch.randn(6, 10), COSINE)
    assert not torch.isclose(whole, state).any()
    with pytest.raises(ValueError, match="columns 4 to 11"):
        noise_slice(state, 4, 11, torch.ones(6), noise, LINEAR)


def test_tokens_are_brought_to_unit_scale_and_padding_stays_out() -> None:
    tokens, mask = 40.0 * torch.randn(2, 7, 16), torch.arange(7)[None] < torch.tensor([[5], [7]])
    noise = torch.randn(2, 7, 16)
    clean = noise_tokens(tokens, mask, torch.zeros(2), noise, LINEAR)
    assert torch.allclose(clean[mask].square().mean(dim=-1), torch.ones(12), atol=1e-5)
    assert bool((clean[0, 5:] == 0).all())
    erased = noise_tokens(tokens, mask, torch.ones(2), noise, LINEAR)
    assert torch.allclose(erased[mask], noise[mask], atol=0.05)
    one = noise_tokens(tokens, mask, torch.ones(2), noise[:, :1], LINEAR)
    assert torch.allclose(one[1, 0], one[1, 6], atol=0.05)


def test_a_feature_of_any_scale_is_erased_alike() -> None:
    feature, noise = torch.randn(3, 32), torch.randn(3, 32)
    small, large = (noise_feature(scale * feature, torch.full((3,), 0.5), noise, LINEAR) for scale in (0.01, 100.0))
    assert torch.allclose(small, large, atol=1e-4)
    assert torch.equal(unit_rms(torch.zeros(2, 4)), torch.zeros(2, 4))
