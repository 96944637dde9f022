"""What Robometer is taught: targets by hand values, two-hot bins, losses with their masks, and the four strategies."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from models.rewards.episodes import EpisodeInfo
from models.robometer.losses import PairTargets, pair_losses
from models.robometer.sampling import STRATEGIES, PairSampler, SamplerConfig
from models.robometer.targets import progress_targets, success_mask, success_targets, two_hot


@pytest.mark.parametrize(
    ("indices", "length", "cutoff", "expected"),
    [
        ((0, 5, 10), 11, 1.0, (0.0, 0.5, 1.0)),
        ((0, 3, 9, 10, 19), 20, 0.5, (0.0, 1 / 3, 1.0, 1.0, 1.0)),
        ((4, 7, 10), 11, 1.0, (0.0, 0.5, 1.0)),
        ((10, 5, 0), 11, 1.0, (1.0, 0.5, 0.0)),
        ((0, 5, 10, 5, 2), 11, 1.0, (0.0, 0.5, 1.0, 0.5, 0.2)),
        ((15, 16, 17), 20, 0.5, (0.0, 1.0, 1.0)),
        ((0,), 1, 1.0, (0.0,)),
    ],
)
def test_progress_is_relative_to_the_first_frame_shown(indices, length, cutoff, expected):
    np.testing.assert_allclose(progress_targets(indices, length, cutoff=cutoff), expected, atol=1e-6)


@pytest.mark.parametrize(("indices", "cutoff"), [((), 1.0), ((11,), 1.0), ((-1,), 1.0), ((0,), 0.0), ((0,), 1.2)])
def test_impossible_targets_are_refused(indices, cutoff):
    with pytest.raises(ValueError, match=r"indices|cutoff"):
        progress_targets(indices, 11, cutoff=cutoff)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(2, 20))
def test_two_hot_expects_its_value(values, bins):
    spread = two_hot(np.array(values, dtype=np.float32), bins)
    np.testing.assert_allclose(spread.sum(-1), 1.0, atol=1e-6)
    assert ((spread > 0).sum(-1) <= 2).all()
    np.testing.assert_allclose(spread @ np.linspace(0, 1, bins), values, atol=1e-5)


def test_success_is_taught_early_late_and_in_failures():
    progress = np.array([0.0, 0.4, 0.5, 0.9, 1.0], dtype=np.float32)
    done = success_targets(progress, cutoff=0.95, successful=True)
    assert done.tolist() == [0, 0, 0, 0, 1]
    assert success_mask(progress, done, successful=True).tolist() == [1, 1, 0, 0, 1]
    failed = success_targets(progress, cutoff=0.95, successful=False)
    assert failed.tolist() == [0] * 5
    assert success_mask(progress, failed, successful=False).tolist() == [1] * 5


def targets(batch=3, frames=4, bins=10, **changes):
    random = np.random.default_rng(0)
    made = PairTargets(
        first_is_better=torch.tensor([1.0, 0.0, 1.0]),
        progress=torch.from_numpy(two_hot(random.random((batch, frames)).astype(np.float32), bins)),
        progress_mask=torch.ones(batch, frames),
        success=torch.zeros(batch, frames),
        success_mask=torch.ones(batch, frames),
    )
    return replace(made, **changes)


def logits(batch=3, frames=4, bins=10):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, frames, bins, generator=generator),
        torch.randn(batch, frames, generator=generator),
        torch.randn(batch, generator=generator),
    )


def test_losses_are_their_formulas():
    progress, success, preference = logits()
    wanted = targets()
    losses = pair_losses(progress, success, preference, wanted)
    entropy = functional.cross_entropy(progress.flatten(0, 1), wanted.progress.flatten(0, 1))
    torch.testing.assert_close(losses.progress, entropy)
    torch.testing.assert_close(
        losses.preference, functional.binary_cross_entropy_with_logits(preference, wanted.first_is_better)
    )
    torch.testing.assert_close(losses.success, functional.softplus(success).mean())
    torch.testing.assert_close(losses.total, losses.preference + losses.progress + losses.success)


def test_parity_divides_the_progress_loss_by_the_frames_once_more():
    arguments = (*logits(), targets())
    plain, same = pair_losses(*arguments), pair_losses(*arguments, parity=True)
    torch.testing.assert_close(same.progress, plain.progress / 4)
    torch.testing.assert_close(same.success, plain.success)


def test_masked_frames_teach_nothing_and_an_empty_mask_is_no_nan():
    progress, success, preference = logits()
    mask = torch.ones(3, 4)
    mask[0] = 0
    masked = pair_losses(progress, success, preference, targets(progress_mask=mask, success_mask=mask))
    changed = progress.clone()
    changed[0] += 5
    again = pair_losses(changed, success, preference, targets(progress_mask=mask, success_mask=mask))
    torch.testing.assert_close(masked.progress, again.progress)
    nothing = torch.zeros(3, 4)
    none = pair_losses(progress, success, preference, targets(progress_mask=nothing, success_mask=nothing))
    assert none.progress.item() == none.success.item() == 0.0


def test_extreme_logits_stay_finite():
    progress, success, preference = (tensor * 1e6 for tensor in logits())
    assert torch.isfinite(pair_losses(progress, success, preference, targets()).total)


def episode(task, quality, length=40, **more):
    return EpisodeInfo(
        task=task, instruction=f"do {task}", quality=quality, length=length, source=task, cutoff=1.0, **more
    )


EPISODES = [
    episode(task, quality)
    for task in ("a", "b", "c")
    for quality in ("successful", "successful", "suboptimal", "failure")
]


def drawn(episodes=EPISODES, count=3000, **config):
    sampler = PairSampler(episodes=episodes, config=SamplerConfig(**config))
    random = np.random.default_rng(0)
    return [sampler.draw(random) for _ in range(count)]


def test_the_strategies_are_equally_likely_and_the_order_is_a_fair_coin():
    successes = [item for item in EPISODES if item.quality == "successful"]
    worse = [item for item in EPISODES if item.quality != "successful"]
    pairs = drawn(successes * 30 + worse, 4000)
    counts = Counter(pair.strategy for pair in pairs)
    share_from_failures = len(worse) / (30 * len(successes) + len(worse))
    for strategy in STRATEGIES:
        expected = (1 - share_from_failures) / 4 + (share_from_failures if strategy == "suboptimal" else 0)
        assert counts[strategy] / len(pairs) == pytest.approx(expected, abs=0.03)
    assert np.mean([pair.first_is_better for pair in pairs]) == pytest.approx(0.5, abs=0.03)


def better_and_worse(pair):
    return (pair.first, pair.second) if pair.first_is_better else (pair.second, pair.first)


def test_what_each_strategy_shows():
    for pair in drawn(from_start=0.3):
        better, worse = better_and_worse(pair)
        frames = np.array(worse.frames)
        assert len(better.frames) == len(worse.frames) == 8
        assert EPISODES[better.episode].quality == "successful"
        assert (np.diff(better.frames) >= 0).all()
        if pair.strategy == "reverse":
            assert worse.episode == better.episode
            assert worse.frames == better.frames[::-1] or (np.diff(frames) <= 0).all()
        elif pair.strategy == "rewind":
            assert worse.episode == better.episode
            top = int(frames.argmax())
            assert (np.diff(frames[: top + 1]) >= 0).all()
            assert (np.diff(frames[top:]) <= 0).all()
        elif pair.strategy == "different_task":
            assert EPISODES[worse.episode].task != EPISODES[better.episode].task
            assert not worse.progress.any()
            assert not worse.success.any()
            assert worse.progress_mask.any()
        else:
            assert EPISODES[worse.episode].task == EPISODES[better.episode].task
            assert EPISODES[worse.episode].quality != "successful"
            assert not worse.progress_mask.any(), "how far a failure got is not known"
            assert better.frames[0] == 0
            assert better.frames[-1] == 39
            assert worse.frames[-1] == 39
        task = pair.instruction.removeprefix("do ")
        assert task == EPISODES[better.episode].task


def test_a_failure_is_only_set_against_a_success_of_its_task():
    lonely = [episode("a", "successful"), episode("b", "failure"), episode("b", "failure")]
    for pair in drawn(lonely, 300):
        better, worse = better_and_worse(pair)
        assert better.episode == 0
        assert pair.strategy != "suboptimal"
        assert pair.strategy == "different_task" or worse.episode == 0


def test_partial_successes_are_paired_only_when_far_apart():
    graded = [
        episode("a", "successful", partial_success=1.0),
        episode("a", "suboptimal", partial_success=0.9),
        episode("a", "suboptimal", partial_success=0.5),
    ]
    met = {better_and_worse(pair)[1].episode for pair in drawn(graded, 500) if pair.strategy == "suboptimal"}
    assert met == {2}


def test_preference_only_sources_teach_no_progress():
    only = [replace(item, preference_only=True) for item in EPISODES]
    pairs = drawn(only, 300)
    assert not any(clip.progress_mask.any() for pair in pairs for clip in (pair.first, pair.second))
    assert any(clip.success_mask.any() for pair in pairs for clip in (pair.first, pair.second))


def test_padding_teaches_only_under_parity():
    short = [episode("a", "successful", length=4), episode("b", "successful", length=4)]
    clips = [clip for pair in drawn(short, 200) for clip in (pair.first, pair.second)]
    assert any(not clip.progress_mask.all() for clip in clips)
    padded = [clip for pair in drawn(short, 200, parity=True) for clip in (pair.first, pair.second)]
    assert all(clip.progress_mask.all() for clip in padded)


def test_the_same_generator_state_gives_the_same_pairs():
    first, second = drawn(count=20), drawn(count=20)
    assert [pair.first.frames for pair in first] == [pair.first.frames for pair in second]


def test_without_a_success_there_is_nothing_to_learn():
    with pytest.raises(ValueError, match="none is successful"):
        PairSampler(episodes=[episode("a", "failure")])


def test_a_share_of_successes_and_a_strategy_named_twice_decide_what_is_drawn():
    twice = ("rewind", "different_task", "different_task")
    counts = Counter(pair.strategy for pair in drawn(strategies=twice, successes=1.0))
    assert counts["different_task"] / counts.total() == pytest.approx(2 / 3, abs=0.03)
    counts = Counter(pair.strategy for pair in drawn(successes=0.6))
    assert counts["suboptimal"] / counts.total() == pytest.approx(0.4 + 0.6 / 4, abs=0.03)
