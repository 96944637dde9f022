"""The shared test suite of the labeller contract: every labeller runs through all of it.

A test module subclasses `LabellerContract` and gives a fixture `labeller`.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.preference.contract import PROTOCOLS, LabelOptions, Pair

if TYPE_CHECKING:
    from models.preference.contract import Judgement, Labeller, LabellerSpec

TOLERANCE = 1e-4
GOAL = "the drawer is open"


def noise(seed: int, count: int = 1, size: tuple[int, int] = (64, 64)) -> tuple[np.ndarray, ...]:
    """Frames that resemble no other."""
    random = np.random.default_rng(seed)
    return tuple(random.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count))


def pair(spec: LabellerSpec, seed: int, *, frames: int = 1, goal: str = GOAL) -> Pair:
    size = spec.image_size or (64, 64)
    values = (float(seed % 3), float(seed % 5)) if spec.wants_values else None
    return Pair(goal=goal, first=noise(seed, frames, size), second=noise(seed + 500, frames, size), values=values)


def close(one: Judgement, other: Judgement) -> bool:
    return one.label == other.label and np.allclose(one.chances, other.chances, atol=TOLERANCE)


class LabellerContract:
    """What every labeller promises."""

    async def test_its_spec_is_sane(self, labeller: Labeller) -> None:
        spec = labeller.spec
        assert spec.id
        assert spec.revision
        assert spec.architecture
        assert re.fullmatch("[0-9a-f]{64}", spec.content_hash)
        assert spec.protocols
        assert set(spec.protocols) <= set(PROTOCOLS)
        assert spec.max_frames >= 1
        assert spec.goal_chars >= 1
        labeller.check_health()
        assert labeller.spec == spec

    async def test_there_is_one_judgement_for_each_pair(self, labeller: Labeller) -> None:
        for protocol in labeller.spec.protocols:
            pairs = [pair(labeller.spec, seed) for seed in range(3)]
            found = await labeller.label(pairs, LabelOptions(protocol=protocol))
            assert len(found) == 3
            for judgement in found:
                assert judgement.label in (-1, 0, 1)
                assert sum(judgement.chances) == pytest.approx(1.0, abs=TOLERANCE)
                assert min(judgement.chances) >= 0.0
                assert judgement.usage.calls >= 1
                assert judgement.swapped is None
                assert judgement.order_gap is None
                if not judgement.abstained:
                    assert judgement.given == pytest.approx(judgement.chances)

    async def test_a_batch_gives_what_singles_give_and_gives_it_again(self, labeller: Labeller) -> None:
        for protocol in labeller.spec.protocols:
            options = LabelOptions(protocol=protocol)
            pairs = [pair(labeller.spec, seed) for seed in range(4)]
            together = await labeller.label(pairs, options)
            alone = [judgement for one in pairs for judgement in await labeller.label([one], options)]
            at_once = await asyncio.gather(*(labeller.label([one], options) for one in pairs))
            for left, middle, [right] in zip(together, alone, at_once, strict=True):
                assert close(left, middle)
                assert close(left, right)

    async def test_a_swapped_pair_is_asked_in_both_orders_and_mapped_back(self, labeller: Labeller) -> None:
        for protocol in labeller.spec.protocols:
            plain, swapping = LabelOptions(protocol=protocol), LabelOptions(protocol=protocol, order_swap=True)
            asked = pair(labeller.spec, 7)
            [one], [other] = await labeller.label([asked], plain), await labeller.label([asked.swapped], plain)
            [both] = await labeller.label([asked], swapping)
            first, second, tie = other.chances
            back = (second, first, tie)
            np.testing.assert_allclose(both.given, one.chances, atol=TOLERANCE)
            np.testing.assert_allclose(both.swapped, back, atol=TOLERANCE)
            np.testing.assert_allclose(both.chances, np.mean([one.chances, back], axis=0), atol=TOLERANCE)
            gap = 0.5 * np.abs(np.subtract(one.chances, back)).sum()
            assert both.order_gap == pytest.approx(gap, abs=TOLERANCE)
            assert both.usage.calls == one.usage.calls + other.usage.calls

    async def test_asking_in_both_orders_forgets_the_order(self, labeller: Labeller) -> None:
        for protocol in labeller.spec.protocols:
            options = LabelOptions(protocol=protocol, order_swap=True)
            [one] = await labeller.label([pair(labeller.spec, 11)], options)
            [other] = await labeller.label([pair(labeller.spec, 11).swapped], options)
            first, second, tie = other.chances
            np.testing.assert_allclose(one.chances, (second, first, tie), atol=TOLERANCE)

    async def test_a_threshold_of_one_leaves_ties_only(self, labeller: Labeller) -> None:
        options = LabelOptions(protocol=labeller.spec.protocols[0], tie_threshold=1.0)
        found = await labeller.label([pair(labeller.spec, seed) for seed in range(3)], options)
        certain = [max(judgement.chances[:2]) == 1.0 for judgement in found]
        assert all(judgement.label == -1 or sure for judgement, sure in zip(found, certain, strict=True))

    async def test_clips_are_taken_up_to_its_number_of_frames(self, labeller: Labeller) -> None:
        spec = labeller.spec
        options = LabelOptions(protocol=spec.protocols[0])
        frames = min(spec.max_frames, 3)
        assert len(await labeller.label([pair(spec, 3, frames=frames)], options)) == 1
        with pytest.raises(ValueError, match="frames"):
            await labeller.label([pair(spec, 3, frames=spec.max_frames + 1)], options)
        with pytest.raises(ValueError, match="frames"):
            await labeller.label([replace(pair(spec, 3), first=())], options)

    async def test_what_it_cannot_be_asked_is_refused(self, labeller: Labeller) -> None:
        spec = labeller.spec
        one = [pair(spec, 1)]
        for unknown in set(PROTOCOLS) - set(spec.protocols):
            with pytest.raises(ValueError, match="protocol"):
                await labeller.label(one, LabelOptions(protocol=unknown))
        with pytest.raises(ValueError, match="votes"):
            await labeller.label(one, LabelOptions(protocol=spec.protocols[0], votes=0))
        with pytest.raises(ValueError, match="tie_threshold"):
            await labeller.label(one, LabelOptions(protocol=spec.protocols[0], tie_threshold=1.5))

    async def test_what_it_is_given_stays_as_it_was(self, labeller: Labeller) -> None:
        asked = pair(labeller.spec, 21)
        before = [frame.copy() for frame in (*asked.first, *asked.second)]
        await labeller.label([asked], LabelOptions(protocol=labeller.spec.protocols[0], order_swap=True))
        for frame, kept in zip((*asked.first, *asked.second), before, strict=True):
            np.testing.assert_array_equal(frame, kept)

    async def test_no_pairs_have_no_labels(self, labeller: Labeller) -> None:
        assert list(await labeller.label([], LabelOptions(protocol=labeller.spec.protocols[0]))) == []
