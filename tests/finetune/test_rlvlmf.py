"""RL-VLM-F: what its ensemble learns from labels, what it asks for, and a whole run whose labels come by the wire."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from stable_baselines3 import SAC

from clients.errors import RoboserveError
from clients.preference_messages import LabelPair, PreferenceLabel
from clients.reward_messages import ModelIdentity
from finetune.common.run import metrics
from finetune.preference.judges import AskOptions, ServedLabeller
from finetune.rlvlmf.buffer import PictureBuffer, StateEntropy
from finetune.rlvlmf.config import SCHEDULES, RlVlmfConfig, Schedule
from finetune.rlvlmf.ensemble import RewardCnn, RewardEnsemble
from finetune.rlvlmf.environment import CartPoleEnv, PictureEnv
from finetune.rlvlmf.labels import LabelBook
from finetune.rlvlmf.queries import Queries
from finetune.rlvlmf.train import reset_critic, train
from models.rewards.metrics import spearman
from serving.preference_server import PreferenceServer
from tests.serving.preference_running import RunningPreference
from tests.serving.preferences import preference_arguments

SIDE = 48


def scenes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures with a block whose height is the known scalar, anywhere across and in any colour of its own."""
    random = np.random.default_rng(seed)
    values = random.uniform(0.0, 1.0, count).astype(np.float32)
    images = random.integers(120, 140, (count, SIDE, SIDE, 3), dtype=np.uint8)
    for image, value in zip(images, values, strict=True):
        top, left = int((1.0 - value) * (SIDE - 12)), int(random.integers(SIDE - 12))
        image[top : top + 12, left : left + 12] = (220, *random.integers(0, 60, 2))
    return images, values


def learned(flips: float, *, pairs: int = 600) -> float:
    images, values = scenes(300, 1)
    random = np.random.default_rng(2)
    drawn = random.integers(0, len(images), (pairs, 2))
    labels = (values[drawn[:, 1]] > values[drawn[:, 0]]).astype(np.int64)
    wrong = random.random(pairs) < flips
    labels[wrong] = 1 - labels[wrong]
    ensemble = RewardEnsemble(SIDE, seed=3, rate=1e-3)
    ensemble.fit(images, drawn, labels, epochs=12)
    fresh, truth = scenes(200, 9)
    return spearman(ensemble.reward(fresh), truth)


def test_a_known_scalar_is_learned_from_perfect_labels_and_gracefully_from_flipped_ones() -> None:
    perfect, flipped = learned(0.0), learned(0.2)
    assert perfect > 0.9
    assert 0.6 < flipped < perfect + 0.02


def test_training_stops_when_the_members_are_right_and_never_before_a_pass() -> None:
    images, values = scenes(60, 4)
    drawn = np.random.default_rng(0).integers(0, 60, (200, 2))
    drawn = drawn[np.abs(values[drawn[:, 0]] - values[drawn[:, 1]]) > 0.3]  # closer ones tanh can hardly tell apart
    labels = (values[drawn[:, 1]] > values[drawn[:, 0]]).astype(np.int64)
    ensemble = RewardEnsemble(SIDE, rate=1e-3)
    fit = ensemble.fit(images, drawn, labels, epochs=200)
    assert fit.accuracy > 0.97
    assert 1 <= fit.epochs < 200
    assert ensemble.fit(images, drawn, labels, epochs=3, stop=1.1).epochs == 3
    with pytest.raises(ValueError, match="labels"):
        ensemble.fit(images, drawn, labels - 1, epochs=1)


def test_the_reward_is_the_mean_of_three_that_differ() -> None:
    images, _ = scenes(7, 5)
    ensemble = RewardEnsemble(SIDE)
    each = ensemble.rewards(images)
    assert each.shape == (3, 7)
    assert np.abs(each).max() <= 1.0
    assert not np.allclose(each[0], each[1])
    np.testing.assert_allclose(ensemble.reward(images), each.mean(axis=0), atol=1e-6)
    with pytest.raises(ValueError, match="too small"):
        RewardCnn(32)


def test_the_table_of_the_method_is_kept() -> None:
    rows = {
        name: (row.query_batch, row.interval, row.max_labels, row.reward_epochs, row.unsup, row.env_steps)
        for name, row in SCHEDULES.items()
    }
    assert rows == {
        "drawer": (40, 4000, 20_000, 10, 9000, 1_000_000),
        "sweep": (40, 4000, 20_000, 10, 9000, 1_000_000),
        "soccer": (40, 4000, 20_000, 5, 9000, 1_000_000),
        "rope": (100, 5000, 20_000, 30, 9000, 600_000),
        "water": (100, 5000, 20_000, 30, 9000, 600_000),
        "cartpole": (50, 5000, 10_000, 50, 1000, 500_000),
        "cloth": (50, 1000, 500, 25, 250, 15_000),
    }
    plain = RlVlmfConfig(out="x", task="cartpole", schedule=SCHEDULES["cartpole"])
    assert (plain.ensemble, plain.stop_accuracy, plain.catch_up) == (3, 0.97, 100)
    assert (plain.order_swap, plain.votes, plain.tie_threshold) == (False, 1, 0.0), "extensions are off"


class Truthful:
    """A judge that looks at the values and notes what it was asked."""

    protocols, batch = ("direct",), 16
    model = ModelIdentity("truth", "1", "a" * 64, "oracle", "none", "none")

    def __init__(self) -> None:
        self.asked: list[LabelPair] = []

    def label(self, pairs, options):
        self.asked += pairs
        assert len(pairs) <= self.batch
        return [
            PreferenceLabel(
                label=-1 if pair.values[0] == pair.values[1] else int(pair.values[1] > pair.values[0]),
                chances=(0.0, 1.0, 0.0),
                source="asked",
            )
            for pair in pairs
        ]

    def close(self) -> None:
        pass


def test_pairs_are_drawn_uniformly_over_trajectories_and_times(tmp_path) -> None:
    judge = Truthful()
    images = np.random.default_rng(0).integers(0, 256, (110, SIDE, SIDE, 3), dtype=np.uint8)
    values = np.arange(110, dtype=np.float32)
    queries = Queries(LabelBook(tmp_path / "l", judge, AskOptions()), "x", batch=2000, most=2000, seed=0)
    session = queries.ask([(0, 10), (10, 100)], images, values)
    drawn = np.array([value for pair in judge.asked for value in pair.values])
    assert 0.45 < np.mean(drawn < 10) < 0.55, "a short trajectory is drawn as often as a long one"
    assert len(np.unique(drawn)) > 100
    assert session.requested == 2000
    assert session.kept == len(queries.labels) == 2000 - session.alike
    for pair, label in zip(queries.pairs[:20], queries.labels[:20], strict=True):
        assert queries.images[pair[0]].shape == (SIDE, SIDE, 3)
        assert label in (0, 1)


def test_what_comes_to_nothing_counts_and_the_last_batch_is_trimmed(tmp_path) -> None:
    judge = Truthful()
    images = np.zeros((4, SIDE, SIDE, 3), np.uint8)
    images[2:] = 200
    queries = Queries(LabelBook(tmp_path / "l", judge, AskOptions()), "x", batch=40, most=100, seed=0)
    kept = [queries.ask([(0, 4)], images, np.array([0.0, 0.0, 0.0, 1.0])) for _ in range(3)]
    assert [session.requested for session in kept] == [40, 40, 20]
    assert queries.over
    assert queries.requested == 100
    assert all(session.alike > 0 and session.ties > 0 for session in kept)
    for session in kept:
        assert session.alike + session.ties + session.kept == session.requested
    assert not any(np.array_equal(pair.first, pair.second) for pair in judge.asked)


def test_known_labels_are_replayed_without_a_call(tmp_path) -> None:
    images, values = scenes(20, 6)
    path = tmp_path / "labels.jsonl"

    def ask(judge):
        queries = Queries(LabelBook(path, judge, AskOptions()), "x", batch=30, most=60, seed=5)
        for _ in range(2):
            queries.ask([(0, 20)], images, values)
        return queries.labels

    first, judge = ask(Truthful()), Truthful()
    with path.open("a") as sink:
        sink.write('{"key": "torn')
    np.testing.assert_array_equal(ask(judge), first)
    assert not judge.asked
    np.testing.assert_array_equal(ask(None), first)
    book = LabelBook(path, None, AskOptions())
    with pytest.raises(RoboserveError, match="are not in"):
        book.label([LabelPair("another goal", images[0], images[1], values=(0.0, 1.0))])
    with pytest.raises(ValueError, match="asked otherwise"):
        LabelBook(path, None, AskOptions(order_swap=True))
    other = Truthful()
    other.model = ModelIdentity("truth", "2", "b" * 64, "oracle", "none", "p")
    with pytest.raises(ValueError, match="revision, content_hash, prompt_version"):
        LabelBook(path, other, AskOptions())
    with pytest.raises(ValueError, match="nobody is to be asked"):
        LabelBook(tmp_path / "none", None, AskOptions())


def small_model(steps: int = 60, **options) -> SAC:
    env = PictureEnv(CartPoleEnv(horizon=20, image_size=SIDE))
    return SAC(
        "MlpPolicy",
        env,
        buffer_size=steps,
        learning_starts=20,
        batch_size=16,
        policy_kwargs={"net_arch": [16, 16]},
        replay_buffer_class=PictureBuffer,
        replay_buffer_kwargs={"image_size": SIDE},
        seed=0,
        **options,
    )


def test_the_buffer_remembers_pictures_and_tells_every_reward_anew() -> None:
    model = small_model()
    model.learn(50)
    buffer = model.replay_buffer
    assert buffer.all_trajectories() == [(0, 20), (20, 20), (40, 10)]
    np.testing.assert_allclose(buffer.rewards[:50, 0], buffer.true_rewards[:50], atol=1e-6)
    buffer.judge = lambda pictures: pictures.reshape(len(pictures), -1).mean(axis=1).astype(np.float32)
    buffer.relabel()
    expected = buffer.pictures[:50].reshape(50, -1).mean(axis=1)
    np.testing.assert_allclose(buffer.rewards[:50, 0], expected, atol=1e-4)
    model.learn(5, reset_num_timesteps=False)
    np.testing.assert_allclose(buffer.rewards[50, 0], buffer.pictures[50].mean(), atol=1e-3)
    with pytest.raises(ValueError, match="full"):
        model.learn(10, reset_num_timesteps=False)


def test_a_new_critic_forgets_and_the_actor_stays() -> None:
    model = small_model()
    model.learn(40)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    reset_critic(model)
    after = model.policy.state_dict()
    for name, value in after.items():
        if name.startswith("actor") or "bias" in name:
            continue
        assert not torch.equal(value, before[name]), name
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("actor"))
    for one, other in zip(model.critic.parameters(), model.critic_target.parameters(), strict=True):
        assert torch.equal(one, other)
    assert model.critic is model.policy.critic
    trained = [parameter for group in model.critic.optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in model.critic.parameters()}
    model.train(gradient_steps=3, batch_size=16)


def test_states_far_from_others_are_paid_more() -> None:
    states = torch.cat([torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) * 0.1, torch.full((1, 3), 5.0)])
    entropy = StateEntropy(neighbours=5, among=1000, seed=0)
    paid = entropy.reward(states, states)
    assert int(paid.argmax()) == 300
    assert 0.5 < float(entropy.reward(states, states).std()) < 2.0


def test_a_fallen_pole_stays_and_every_episode_is_as_long() -> None:
    env = CartPoleEnv(horizon=80, image_size=SIDE)
    env.reset(seed=1)
    paid, lengths = [], 0
    over = False
    while not over:
        _, reward, terminated, over, _ = env.step(np.array([1.0], np.float32))
        assert not terminated
        paid.append(reward)
        lengths += 1
    assert lengths == 80
    assert paid[-1] == 0.0
    assert env.render().shape == (SIDE, SIDE, 3)
    assert env.render().std() > 10


def settings(out, **changes) -> RlVlmfConfig:
    schedule = Schedule(
        query_batch=20,
        interval=40,
        max_labels=50,
        reward_epochs=3,
        unsup=40,
        env_steps=220,
        seed_steps=40,
        sac_batch=16,
        hidden=(16, 16),
    )
    known = {"task": "cartpole", "schedule": schedule, "image_size": SIDE, "horizon": 20, "catch_up": 5}
    return RlVlmfConfig(out=out, **{**known, "evaluate_every": 110, "episodes": 2, **changes})


@pytest.fixture(scope="module")
def oracle():
    with RunningPreference(lambda: PreferenceServer.start(preference_arguments())) as running:
        yield running


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_asks_the_service_and_its_replay_is_the_same_without_a_call(oracle, tmp_path) -> None:
    judge = ServedLabeller(oracle.url, job="test")
    notes: list[tuple[int, str]] = []
    train(settings(tmp_path / "one"), judge, lambda step, note: notes.append((step, note)))
    judge.close()
    sessions = lines(tmp_path / "one" / "sessions.jsonl")
    assert [(row["step"], row["requested"]) for row in sessions] == [(80, 20), (120, 20), (160, 10)]
    assert all(row["accuracy"] is not None for row in sessions)
    found = metrics(tmp_path / "one")
    assert [row["step"] for row in found] == [110, 220, 220][: len(found)]
    assert found[-1]["labels"] == 50
    assert (tmp_path / "one" / "policy.zip").is_file()
    assert (tmp_path / "one" / "reward.safetensors").is_file()
    train(settings(tmp_path / "two"), None, lambda *_: None, labels=tmp_path / "one" / "labels.jsonl")
    again = lines(tmp_path / "two" / "sessions.jsonl")
    assert again == sessions
    timeless = [[{**row, "seconds": 0} for row in rows] for rows in (found, metrics(tmp_path / "two"))]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("learn", ["true", "none"])
def test_baselines_ask_nobody(tmp_path, learn) -> None:
    train(settings(tmp_path / learn, learn=learn), None, lambda *_: None)
    assert metrics(tmp_path / learn)[-1]["labels"] == 0
    assert not (tmp_path / learn / "sessions.jsonl").exists()


def test_a_run_without_labels_to_replay_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="nobody is to be asked"):
        train(settings(tmp_path / "x"), None, lambda *_: None)
    with pytest.raises(ValueError, match="image_size"):
        settings(tmp_path, image_size=32)
