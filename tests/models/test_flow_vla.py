"""The embedded VLA: formulas against oracles, and the promises of the policy contract."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.policies.contract import ActItem, ActOptions, CameraSpec, Observation, VectorSpec
from models.policies.flow_vla import FlowVLAPolicy
from models.policies.flow_vla.checkpoint import CheckpointConfig, load_checkpoint, save_checkpoint
from models.policies.flow_vla.flow import Guidance, flow_loss, guided_velocity, integrate
from models.policies.flow_vla.network import FlowVLANetwork, NetworkConfig
from models.policies.flow_vla.rtc import guidance_weight, prefix_weights
from models.policies.flow_vla.tokenizer import HashTokenizer
from models.policies.normalizer import Normalizer

H, A = 16, 4


def vector(prefix: str, size: int) -> VectorSpec:
    return VectorSpec(
        names=tuple(f"{prefix}{index}" for index in range(size)),
        units=("1",) * size,
        kinds=("delta",) * size,
        low=(-100.0,) * size,
        high=(100.0,) * size,
    )


def tiny_config() -> CheckpointConfig:
    tokenizer = HashTokenizer(buckets=64, length=8)
    network = NetworkConfig(
        cameras=1,
        image_size=32,
        state_size=3,
        action_size=A,
        word_buckets=64,
        words=8,
        channels=(8, 8, 8),
        keypoints=4,
        width=32,
    )
    return CheckpointConfig(
        id="tiny",
        revision="test",
        network=network,
        tokenizer=tokenizer,
        cameras=(CameraSpec(name="front", height=32, width=32),),
        state=vector("s", 3),
        action=vector("a", A),
        state_normalizer=Normalizer(mean=(1.0, 2.0, 3.0), std=(0.5, 2.0, 4.0)),
        action_normalizer=Normalizer(mean=(0.0, 1.0, -1.0, 0.5), std=(0.1, 2.0, 3.0, 1.0)),
        control_hz=20.0,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("tiny")
    config = tiny_config()
    save_checkpoint(path, config, FlowVLANetwork(config.network), card="# tiny")
    return path


@pytest.fixture(scope="module")
def policy(folder: Path) -> FlowVLAPolicy:
    return FlowVLAPolicy(FlowVLAPolicy.Config(checkpoint=str(folder), device="cpu"))


def item(number: int, **options: object) -> ActItem:
    random = np.random.default_rng(number)
    observation = Observation(
        images={"front": random.integers(0, 256, (32, 32, 3), dtype=np.uint8)},
        state=random.normal(size=3).astype(np.float32),
        instruction=("open the drawer", "press the button", "reach")[number % 3],
    )
    return ActItem(observation=observation, options=ActOptions(seed=number, **options))


def test_a_batch_gives_what_singles_give_with_and_without_rtc_and_with_different_steps(policy: FlowVLAPolicy) -> None:
    leftover = np.random.default_rng(9).normal(size=(10, A)).astype(np.float32)
    items = [item(0), item(1, leftover=leftover, inference_delay=3), item(2, integration_steps=9), item(3)]
    together = policy.act(items)
    for single, chunk in zip(items, together, strict=True):
        (alone,) = policy.act([single])
        np.testing.assert_allclose(chunk.actions, alone.actions, atol=2e-4)
        np.testing.assert_allclose(chunk.model_actions, alone.model_actions, atol=2e-4)
        assert chunk.actions.dtype == np.float32
        assert chunk.actions.shape == (H, A)


def test_the_seed_decides_the_chunk(policy: FlowVLAPolicy) -> None:
    first, again = policy.act([item(5)])[0], policy.act([item(5)])[0]
    np.testing.assert_array_equal(first.actions, again.actions)
    other = policy.act([replace(item(5), options=ActOptions(seed=6))])[0]
    assert np.abs(first.actions - other.actions).max() > 1e-3
    fresh = [policy.act([replace(item(5), options=ActOptions())])[0].actions for _ in range(2)]
    assert np.abs(fresh[0] - fresh[1]).max() > 1e-3


@pytest.mark.parametrize("part", ["image", "state", "instruction"])
def test_every_part_of_the_observation_matters(policy: FlowVLAPolicy, part: str) -> None:
    base = item(1)
    changed = {
        "image": {"images": {"front": 255 - base.observation.images["front"]}},
        "state": {"state": base.observation.state + 3},
        "instruction": {"instruction": "turn the dial"},
    }[part]
    other = replace(base, observation=replace(base.observation, **changed))
    one, two = policy.act([base, other])
    assert np.abs(one.model_actions - two.model_actions).max() > 1e-4


def test_actions_are_model_actions_in_physical_units(policy: FlowVLAPolicy) -> None:
    (chunk,) = policy.act([item(2)])
    scale = tiny_config().action_normalizer
    np.testing.assert_allclose(chunk.actions, chunk.model_actions * scale.std + scale.mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scale.normalize(chunk.actions), chunk.model_actions, rtol=1e-4, atol=1e-4)


def test_rtc_holds_the_new_chunk_to_what_is_being_played(policy: FlowVLAPolicy) -> None:
    leftover = (2.0 * np.ones((12, A))).astype(np.float32)
    guided = policy.act([item(4, leftover=leftover, inference_delay=4, integration_steps=20)])[0].model_actions
    free = policy.act([item(4, integration_steps=20)])[0].model_actions
    assert np.abs(guided[:4] - 2.0).mean() < 0.25 * np.abs(free[:4] - 2.0).mean()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("zeros", [1, 1, 0, 0, 0, 0, 0, 0]),
        ("ones", [1, 1, 1, 1, 1, 0, 0, 0]),
        ("linear", [1, 1, 0.75, 0.5, 0.25, 0, 0, 0]),
        ("exp", [1, 1, *(w * np.expm1(w) / (np.e - 1) for w in (0.75, 0.5, 0.25)), 0, 0, 0]),
    ],
)
def test_prefix_weights(schedule: str, expected: list[float]) -> None:
    np.testing.assert_allclose(prefix_weights(delay=2, horizon=5, length=8, schedule=schedule), expected, rtol=1e-6)


def test_a_delay_beyond_the_horizon_is_cut_to_it() -> None:
    np.testing.assert_array_equal(prefix_weights(delay=9, horizon=3, length=4), [1, 1, 1, 0])
    np.testing.assert_array_equal(prefix_weights(delay=0, horizon=99, length=2, schedule="ones"), [1, 1])


@pytest.mark.parametrize("time", [0.9, 0.5, 0.2])
def test_guidance_weight_is_the_formula(time: float) -> None:
    tau = 1 - time
    expected = (1 - tau) / tau * (tau**2 + (1 - tau) ** 2) / (1 - tau) ** 2
    assert guidance_weight(time, 1e9) == pytest.approx(expected)
    assert guidance_weight(time, 0.1) == 0.1
    assert guidance_weight(1.0, 10.0) == 10.0


def test_the_guidance_is_a_true_vector_jacobian_product() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(H * A, H * A, dtype=torch.float64) * 0.1

    def velocity(x: torch.Tensor, _time: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x.flatten(1) @ matrix).reshape(x.shape)

    x, time = torch.randn(1, H, A, dtype=torch.float64), 0.6
    guidance = Guidance(
        leftover=torch.randn(1, H, A, dtype=torch.float64),
        weights=torch.rand(1, H, 1, dtype=torch.float64),
        maximum=5.0,
    )
    times = torch.full((1,), time, dtype=torch.float64)
    got = velocity(x, times) - guided_velocity(velocity, x, times, time, guidance)
    predicted = x - time * velocity(x, times)
    error = (guidance.leftover - predicted) * guidance.weights
    jacobian = torch.zeros(H * A, H * A, dtype=torch.float64)
    for column in range(H * A):
        step = torch.zeros(1, H * A, dtype=torch.float64)
        step[0, column] = 1e-6
        moved = x + step.reshape(x.shape)
        difference = (moved - time * velocity(moved, times)) - predicted
        jacobian[:, column] = difference.flatten() / 1e-6
    expected = guidance_weight(time, 5.0) * (error.flatten() @ jacobian).reshape(x.shape)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_integration_is_exact_for_a_straight_field() -> None:
    noise, action = torch.randn(2, H, A), torch.randn(2, H, A)
    for steps in (1, 3, 10):
        got = integrate(lambda _x, _t: noise - action, noise, steps=steps)
        torch.testing.assert_close(got, action, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_and_masked_rows_do_not_count() -> None:
    torch.manual_seed(0)
    config = tiny_config()
    network = FlowVLANetwork(config.network)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    images, state = torch.randn(8, 1, 3, 32, 32), torch.randn(8, 3)
    words, target = torch.randint(1, 60, (8, 8)), torch.randn(8, H, A)
    losses = []
    for _ in range(60):
        loss = flow_loss(network, network.encode(images, state, words), target, torch.ones(8, H), samples=4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    mask = torch.ones(8, H)
    mask[:, 8:] = 0
    wild = target.clone()
    wild[:, 8:] += 100
    prefix = network.encode(images, state, words)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    masked = flow_loss(network, prefix, wild, mask, samples=1, generator=generators[0])
    full = flow_loss(network, prefix, wild, torch.ones(8, H), samples=1, generator=generators[1])
    assert masked < full / 10


def test_a_checkpoint_comes_back_as_it_went(folder: Path, tmp_path: Path) -> None:
    config, network, digest = load_checkpoint(folder)
    assert config == tiny_config()
    save_checkpoint(tmp_path, config, network, card="# again")
    assert load_checkpoint(tmp_path)[2] == digest
    config_file = tmp_path / "config.json"
    config_file.write_text(config_file.read_text("utf-8").replace('"test"', '"other"'), "utf-8")
    assert load_checkpoint(tmp_path)[2] != digest


def test_damaged_checkpoints_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_checkpoint(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(ValueError, match=r"config\.json"):
        load_checkpoint(tmp_path)


def test_the_tokenizer_reads_words_whatever_their_case_and_punctuation() -> None:
    tokenizer = HashTokenizer(buckets=1024, length=6)
    ids = tokenizer(["Open the drawer!", "open  the, drawer", "", "one two three four five six seven"])
    np.testing.assert_array_equal(ids[0], ids[1])
    assert (ids[2] == 0).all()
    assert (ids[3] > 0).all()


def test_bad_options_are_named(policy: FlowVLAPolicy) -> None:
    with pytest.raises(ValueError, match="integration_steps: 0"):
        policy.act([item(0, integration_steps=0)])
    with pytest.raises(ValueError, match="leftover"):
        policy.act([item(0, leftover=np.zeros((3, A + 1), np.float32))])
    bare = replace(item(0), observation=replace(item(0).observation, images={}))
    with pytest.raises(ValueError, match="image 'front': is missing"):
        policy.act([bare])


def test_the_embedded_checkpoint_loads_and_its_card_says_how_good_it_is() -> None:
    policy = FlowVLAPolicy(FlowVLAPolicy.Config(checkpoint="zoo:metaworld-flow", device="cpu"))
    spec = policy.spec
    blank = Observation(
        images={camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in spec.cameras},
        state=np.zeros(spec.state.size, np.float32),
        instruction="open the drawer",
    )
    (chunk,) = policy.act([ActItem(observation=blank, options=ActOptions(seed=0))])
    assert np.isfinite(chunk.actions).all()
    card = (Path(__file__).parents[2] / "models" / "zoo" / "metaworld-flow" / "README.md").read_text("utf-8")
    assert "Mean success" in card
    assert "Known failures" in card
