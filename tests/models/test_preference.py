from __future__ import annotations

import asyncio
import json
import math

import numpy as np
import pytest

from models.preference.alike import alike, distance
from models.preference.combine import combined, label_of, with_threshold
from models.preference.contract import LabelOptions, Pair, Reading
from models.preference.metrics import Labelled, calibration, expected_calibration_error
from models.preference.oracle import OracleLabeller
from models.preference.prompt import (
    FILE,
    GENERAL_PROMPT,
    LabelWords,
    OneTokenPrompt,
    PreferencePrompt,
    chances_of,
    parse_label,
)
from models.preference.reward import RewardLabeller
from models.rewards.scripted import BrightnessReward
from tests.models.preference_contract import LabellerContract, noise, pair


class TestOracle(LabellerContract):
    @pytest.fixture
    def labeller(self) -> OracleLabeller:
        return OracleLabeller(OracleLabeller.Config())


class TestErringOracle(LabellerContract):
    @pytest.fixture
    def labeller(self) -> OracleLabeller:
        return OracleLabeller(OracleLabeller.Config(flip_rate=0.5, seed=3))


class TestReward(LabellerContract):
    @pytest.fixture
    async def labeller(self):
        labeller = RewardLabeller(RewardLabeller.Config(), BrightnessReward(BrightnessReward.Config(max_frames=4)))
        yield labeller
        await labeller.close()


@pytest.fixture(scope="module")
def robometer():
    return RewardLabeller(RewardLabeller.Config(checkpoint="zoo:metaworld-robometer"))


class TestRobometer(LabellerContract):
    @pytest.fixture
    def labeller(self, robometer):
        return robometer


DIRECT = LabelOptions(protocol="direct")


async def test_the_oracle_tells_the_truth_by_the_values() -> None:
    oracle = OracleLabeller(OracleLabeller.Config(tie_margin=0.1))
    pairs = [
        Pair(goal="x", first=noise(1), second=noise(2), values=values)
        for values in ((0.0, 1.0), (1.0, 0.0), (0.5, 0.55), (0.2, 0.2))
    ]
    assert [found.label for found in await oracle.label(pairs, DIRECT)] == [1, 0, -1, -1]


async def test_the_oracle_errs_as_often_as_it_is_told_and_the_same_way_in_both_orders() -> None:
    oracle = OracleLabeller(OracleLabeller.Config(flip_rate=0.2))
    pairs = [Pair(goal="x", first=noise(i), second=noise(i + 900), values=(0.0, 1.0)) for i in range(400)]
    labels = [found.label for found in await oracle.label(pairs, DIRECT)]
    swapped = [found.label for found in await oracle.label([each.swapped for each in pairs], DIRECT)]
    assert 0.12 < labels.count(0) / 400 < 0.28
    assert [1 - label for label in labels] == swapped


async def test_what_is_asked_of_a_reward_model_meanwhile_rides_together() -> None:
    model = BrightnessReward(BrightnessReward.Config(seconds_per_frame=0.01))
    labeller = RewardLabeller(RewardLabeller.Config(max_batch=8), model)
    await asyncio.gather(*(labeller.label([pair(labeller.spec, seed)], DIRECT) for seed in range(8)))
    assert model.forwards <= 2
    await labeller.close()
    with pytest.raises(RuntimeError):
        labeller.check_health()


async def test_a_pair_that_a_reward_model_cannot_take_fails_alone() -> None:
    model = BrightnessReward(BrightnessReward.Config(poison=255))
    labeller = RewardLabeller(RewardLabeller.Config(), model)
    grey = tuple(np.full((32, 32, 3), 90, np.uint8) for _ in range(1))
    white = tuple(np.full((32, 32, 3), 255, np.uint8) for _ in range(1))
    good, bad = Pair(goal="x", first=grey, second=grey), Pair(goal="x", first=grey, second=white)
    found = await asyncio.gather(labeller.label([good], DIRECT), labeller.label([bad], DIRECT), return_exceptions=True)
    assert found[0][0].label == -1
    assert isinstance(found[1], RuntimeError)
    await labeller.close()


@pytest.mark.parametrize(
    ("chances", "threshold", "label"),
    [
        ((0.6, 0.4, 0.0), 0.0, 0),
        ((0.4, 0.6, 0.0), 0.0, 1),
        ((0.5, 0.5, 0.0), 0.0, -1),
        ((0.6, 0.4, 0.0), 0.3, -1),
        ((0.3, 0.3, 0.4), 0.0, -1),
        ((0.35, 0.2, 0.45), 0.0, -1),
        ((0.5, 0.2, 0.3), 0.0, 0),
    ],
)
def test_when_a_label_is_a_tie(chances, threshold, label) -> None:
    assert label_of(chances, threshold) == label


def test_orders_count_alike_however_many_of_their_votes_told_nothing() -> None:
    given = [Reading(chances=(1.0, 0.0, 0.0)), Reading(chances=None), Reading(chances=None)]
    swapped = [Reading(chances=(1.0, 0.0, 0.0))] * 3  # the first shown is preferred whichever it is
    found = combined(given, swapped, LabelOptions(protocol="two_stage", order_swap=True, votes=3))
    assert found.chances == (0.5, 0.5, 0.0)
    assert found.label == -1
    assert found.order_gap == 1.0
    assert found.towards_first_shown == 1.0


def test_if_nobody_tells_anything_the_labeller_abstains_which_is_no_zero() -> None:
    found = combined([Reading(chances=None)], [], LabelOptions(protocol="one_token"))
    assert found.abstained
    assert found.label == -1
    assert found.chances == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert with_threshold(found, 0.5) == found


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("0", 0),
        ("1", 1),
        ("-1", -1),
        (" 1 \nbecause the second is further", 1),
        ("\n1", 1),
        ("1.", None),
        ("+1", None),
        ("2", None),
        ("", None),
        ("The answer is 1", None),
        ("0\n1", 0),
        ("\uff11", None),
        ("0_1", None),
    ],
)
def test_a_label_is_the_first_line_and_nothing_else(reply, label) -> None:
    assert parse_label(reply) == label


def test_label_words_share_what_they_have_and_a_missing_one_makes_all_unknown() -> None:
    logs = [math.log(0.2), math.log(0.1), math.log(0.1)]
    chances, mass = chances_of(logs)
    assert chances == pytest.approx((0.5, 0.25, 0.25))
    assert mass == pytest.approx(0.4)
    assert chances_of([math.log(0.9), None, math.log(0.1)]) is None
    assert chances_of([math.log(0.3), math.log(0.1)])[0] == pytest.approx((0.75, 0.25, 0.0))
    assert chances_of([-math.inf, -math.inf]) is None
    assert chances_of([-1000.0, -1001.0])[0][0] == pytest.approx(1 / (1 + math.exp(-1)))


def test_a_prompt_survives_its_file_and_its_id_is_its_words(tmp_path) -> None:
    path = GENERAL_PROMPT.write(tmp_path)
    assert path.name == FILE
    assert PreferencePrompt.read(path) == GENERAL_PROMPT
    changed = GENERAL_PROMPT.model_copy(update={"version": "general-2"})
    assert changed.id != GENERAL_PROMPT.id


def test_pictures_stand_in_their_order_and_texts_are_never_slots() -> None:
    first, second = noise(1, 2), noise(2, 2)
    asked = Pair(goal="put {first} into {second} {goal}", first=first, second=second)
    [message] = GENERAL_PROMPT.ask_one_token(asked)
    assert [id(image) for image in message.images] == [id(image) for image in (*first, *second)]
    assert "put {first} into {second} {goal}" in message.text
    [message] = GENERAL_PROMPT.ask_label("open it", "it says {goal} and {analysis}")
    assert not message.images
    assert "it says {goal} and {analysis}" in message.text


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"one_token": {"template": "{goal} {second} {first}", "labels": {"first": "a", "second": "b"}}}, "before"),
        ({"one_token": {"template": "{goal} {first}", "labels": {"first": "a", "second": "b"}}}, "slots"),
        ({"one_token": {"template": "{goal}{first}{second}", "labels": {"first": "a", "second": "a"}}}, "differ"),
        ({"one_token": None, "two_stage": None}, "needs"),
        ({"vesion": "1"}, "vesion"),
        ({"version": 1}, "version"),
        ({"image_size": [0, 3]}, "image_size"),
    ],
)
def test_a_wrong_prompt_file_is_refused_by_its_entry(tmp_path, change, match) -> None:
    raw = {**GENERAL_PROMPT.model_dump(mode="json"), **change}
    path = tmp_path / FILE
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=match):
        PreferencePrompt.read(path)


def test_a_prompt_without_a_protocol_says_so() -> None:
    labels = LabelWords(first="a", second="b")
    prompt = PreferencePrompt(version="1", one_token=OneTokenPrompt(template="{goal}{first}{second}", labels=labels))
    with pytest.raises(ValueError, match="two_stage"):
        prompt.ask_analysis(Pair(goal="x", first=noise(1), second=noise(2)))


def test_pictures_are_alike_when_hardly_a_pixel_differs() -> None:
    [image] = noise(4)
    nudged = image.copy()
    nudged[0, 0, 0] ^= 1
    assert alike(Pair(goal="x", first=(image,), second=(nudged,)))
    assert not alike(Pair(goal="x", first=(image,), second=noise(5)))
    assert not alike(Pair(goal="x", first=(image, image), second=(image,)))
    assert distance(image, image[:32]) == 1.0
    assert distance(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)) == pytest.approx(1.0)


def labelled(first: float, second: float, label: int, *, sure: float = 1.0) -> Labelled:
    rest = 1.0 - sure
    chances = {0: (sure, rest, 0.0), 1: (rest, sure, 0.0), -1: (0.0, 0.0, 1.0)}[label]
    return Labelled(first_value=first, second_value=second, label=label, chances=chances)


def test_accuracy_is_told_by_thirds_of_the_gap() -> None:
    found = calibration(
        [labelled(0, gap, 1 if gap > 3 else 0) for gap in (1, 2, 3, 4, 5, 6, 7, 8, 9)] + [labelled(2, 2, -1)]
    )
    assert [third.accuracy for third in found.thirds] == [0.0, 1.0, 1.0]
    assert [(third.low, third.high) for third in found.thirds] == [(1, 3), (4, 6), (7, 9)]
    assert found.accuracy == pytest.approx(2 / 3)
    assert (found.pairs, found.equal, found.equal_tie_rate) == (9, 1, 1.0)
    assert math.isnan(found.order_bias)


def test_ties_are_no_errors_but_are_counted() -> None:
    found = calibration([labelled(0, 1, -1), labelled(0, 2, 1), labelled(3, 0, 0)])
    assert found.accuracy == 1.0
    assert found.tie_rate == pytest.approx(1 / 3)
    assert found.forced == pytest.approx((0.5 + 1 + 1) / 3)


def test_calibration_is_the_distance_from_what_is_claimed() -> None:
    confidence = np.array([0.95] * 10 + [0.55] * 10)
    right = np.array([1.0] * 5 + [0.0] * 5 + [1.0] * 6 + [0.0] * 4)
    error, bins = expected_calibration_error(confidence, right)
    assert error == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)
    assert [count for _, _, count in bins] == [10, 10]
    with pytest.raises(ValueError, match="at least 3"):
        calibration([labelled(0, 1, 1)])
