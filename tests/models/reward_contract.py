"""The shared test suite of the reward contract: every reward model runs through all of it.

A test module subclasses `RewardContract` and gives a fixture `model`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.rewards.contract import Pair, Query
from models.rewards.frames import FramePolicy

if TYPE_CHECKING:
    from models.rewards.contract import FrameFeatures, RewardModel

TOLERANCE = 1e-4
TASK, OTHER_TASK = "open the drawer", "push the red button"


def pixels(model: RewardModel, count: int, seed: int = 0) -> list[np.ndarray]:
    """Frames that resemble no other, brought to the model's size."""
    height, width = model.spec.image_size or (64, 96)
    random = np.random.default_rng(seed)
    return [model.prepare(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(count)]


def features(model: RewardModel, count: int, seed: int = 0) -> tuple[FrameFeatures, ...]:
    return tuple(model.encode(pixels(model, count, seed)))


def longest(model: RewardModel) -> int:
    return min(model.spec.max_frames, 12)


def close(one, other) -> bool:
    if (one.success is None) != (other.success is None):
        return False
    same = np.allclose(one.progress, other.progress, atol=TOLERANCE)
    return same and (one.success is None or np.allclose(one.success, other.success, atol=TOLERANCE))


class RewardContract:
    """What every reward model promises."""

    def test_its_spec_is_sane_and_constant(self, model: RewardModel) -> None:
        spec = model.spec
        assert spec.id
        assert spec.revision
        assert spec.architecture
        assert re.fullmatch("[0-9a-f]{64}", spec.content_hash)
        assert spec.max_frames >= 1
        assert spec.instruction_chars >= 1
        assert FramePolicy.parse(spec.frame_policy).count <= spec.max_frames
        model.score([Query(instruction=TASK, frames=features(model, 2))])
        assert model.spec == spec

    def test_preparing_twice_changes_nothing_more(self, model: RewardModel) -> None:
        frame = np.random.default_rng(3).integers(0, 256, (70, 51, 3), dtype=np.uint8)
        once = model.prepare(frame)
        assert once.dtype == np.uint8
        np.testing.assert_array_equal(model.prepare(once), once)
        assert model.spec.image_size in (None, once.shape[:2])
        assert model.cost(once) >= 1

    @pytest.mark.parametrize("count", [1, 2, 7])
    def test_there_is_one_value_for_each_frame(self, model: RewardModel, count: int) -> None:
        [values] = model.score([Query(instruction=TASK, frames=features(model, count))])
        given = [values.progress] if values.success is None else [values.progress, values.success]
        assert (values.success is not None) == model.spec.supports_success
        for array in given:
            assert array.shape == (count,)
            assert array.dtype == np.float32
            assert np.isfinite(array).all()
            assert array.min() >= 0.0
            assert array.max() <= 1.0

    def test_a_frames_features_depend_on_its_own_pixels_alone(self, model: RewardModel) -> None:
        frames = pixels(model, 5)
        alone = [model.encode([frame])[0] for frame in frames]
        together = model.encode(frames)
        assert all(seen.nbytes > 0 for seen in together)
        one, other = model.score(
            [Query(instruction=TASK, frames=tuple(alone)), Query(instruction=TASK, frames=tuple(together))]
        )
        assert close(one, other)

    def test_a_batch_gives_what_singles_give_in_any_order(self, model: RewardModel) -> None:
        asked = [
            Query(instruction=(TASK, OTHER_TASK)[seed % 2], frames=features(model, count, seed))
            for seed, count in enumerate((3, 1, longest(model), 5))
        ]
        together = model.score(asked)
        backwards = model.score(asked[::-1])[::-1]
        for query, one, other in zip(asked, together, backwards, strict=True):
            assert close(one, model.score([query])[0])
            assert close(one, other)

    def test_a_value_depends_on_no_later_frame(self, model: RewardModel) -> None:
        frames, others = features(model, 6), features(model, 6, seed=9)
        [whole] = model.score([Query(instruction=TASK, frames=frames)])
        [changed] = model.score([Query(instruction=TASK, frames=frames[:4] + others[4:])])
        np.testing.assert_allclose(changed.progress[:4], whole.progress[:4], atol=TOLERANCE)
        assert not np.allclose(changed.progress[4:], whole.progress[4:], atol=TOLERANCE)

    def test_what_it_is_given_stays_as_it_was(self, model: RewardModel) -> None:
        frames = pixels(model, 3)
        kept = [frame.copy() for frame in frames]
        model.score([Query(instruction=TASK, frames=tuple(model.encode(frames)))])
        for frame, before in zip(frames, kept, strict=True):
            np.testing.assert_array_equal(frame, before)

    def test_pairs_are_compared_each_for_itself(self, model: RewardModel) -> None:
        pairs = [
            Pair(instruction=TASK, first=features(model, count, seed), second=features(model, count, seed + 50))
            for seed, count in enumerate((2, 4, 1))
        ]
        if not model.spec.supports_compare:
            with pytest.raises(NotImplementedError):
                model.compare(pairs)
            return
        together = model.compare(pairs)
        assert all(0.0 <= chance <= 1.0 for chance in together)
        alone = [model.compare([pair])[0] for pair in pairs]
        np.testing.assert_allclose(together, alone, atol=TOLERANCE)
