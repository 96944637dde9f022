"""Context-smoothed pre-training on the eight goals (checklist C2 to C5 and C7), with the policies that ship."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from finetune.common.demonstrations import Demonstrations, demonstrate
from finetune.common.environments.registry import make_env
from finetune.csp.__main__ import app as csp_app
from finetune.csp.levels import by_level
from finetune.csp.train import PretrainConfig, pretrain, smoothed_loss
from finetune.tmrl.base import LocalPolicy
from models.folders import checkpoint_folder
from models.policies.context_noise import ContextSchedule
from models.policies.denoising import FlowSteps
from models.policies.flow_vla.flow import integrate
from models.policies.state_flow.checkpoint import load_state_policy
from models.policies.state_flow.network import StateFlowConfig, StateFlowNetwork
from models.policies.steered.choice import Steering
from tests.weights import parameters_hash

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = (2, 10)
SMALL = {"batch": 16, "width": 32, "blocks": 2}


@pytest.fixture(scope="module")
def shown() -> Demonstrations:
    return demonstrate(make_env("eight-goals"), episodes=40, chunk_length=8, seed=2)


@pytest.fixture(scope="module")
def smoothed() -> LocalPolicy:
    return LocalPolicy(checkpoint_folder("zoo:eight-goals"))


@pytest.fixture(scope="module")
def cloned() -> LocalPolicy:
    return LocalPolicy(checkpoint_folder("zoo:eight-goals-clone"))


def chunks(policy: LocalPolicy, states: np.ndarray, level: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return policy.act(
        states,
        Steering(
            noise=random.standard_normal((len(states), *policy.chunk), np.float32),
            level=np.full(len(states), level, np.float32),
            context_noise=random.standard_normal((len(states), policy.context_size), np.float32),
        ),
    )


def start_states(named: int, number: int) -> np.ndarray:
    env = make_env(f"eight-goals:named={named}")
    return np.stack([env.reset(seed=seed)[0] for seed in range(number)]).astype(np.float32)


def test_levels_are_uniform_and_independent_of_the_noise_time(monkeypatch: pytest.MonkeyPatch) -> None:
    network = StateFlowNetwork(StateFlowConfig(state_size=10, action_size=2, chunk_length=4, context=CONTEXT))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    true = network.velocity
    monkeypatch.setattr(network, "velocity", lambda p, x, t: (seen.append((p.level, t)), true(p, x, t))[1])
    smoothed_loss(network, FlowSteps(), torch.randn(4000, 10), torch.randn(4000, 4, 2), torch.Generator())
    level, time = seen[0]
    for drawn in (level, time):
        assert drawn.mean().item() == pytest.approx(0.5, abs=0.02)
        assert drawn.var().item() == pytest.approx(1 / 12, abs=0.005)
    assert abs(np.corrcoef(level, time)[0, 1]) < 0.05


def test_the_policy_reads_the_level_itself(smoothed: LocalPolicy) -> None:
    prefix = smoothed.flow.network.encode(torch.randn(5, 10), level=torch.zeros(5), context_noise=torch.randn(5, 8))
    noisy, time = torch.randn(5, 8, 2), torch.full((5,), 0.5)
    told = smoothed.flow.network.velocity(prefix, noisy, time)
    assert not torch.allclose(told, smoothed.flow.network.velocity(prefix._replace(level=torch.ones(5)), noisy, time))


def test_the_loss_is_the_velocitys_error_in_noise_time_convention() -> None:
    class Exact(StateFlowNetwork):
        def velocity(self, prefix: object, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return (noisy - 0.25) / time[:, None, None]  # of actions that are all 0.25

    network = Exact(StateFlowConfig(state_size=3, action_size=2, chunk_length=4))
    loss = smoothed_loss(network, FlowSteps(), torch.randn(64, 3), torch.full((64, 4, 2), 0.25), torch.Generator())
    assert loss.item() == pytest.approx(0.0, abs=1e-4)


def test_the_exact_velocity_of_a_gaussian_gives_its_mean_and_deviation() -> None:
    mean, std = 0.3, 0.5

    def field(moving: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        t = time[:, None, None]
        variance = t**2 + (1 - t) ** 2 * std**2
        return (t - (1 - t) * std**2) / variance * (moving - (1 - t) * mean) - mean

    drawn = integrate(field, torch.randn(20_000, 1, 1, generator=torch.Generator().manual_seed(0)), steps=100)
    assert drawn.mean().item() == pytest.approx(mean, abs=0.02)
    assert drawn.std().item() == pytest.approx(std, abs=0.02)


def test_without_noise_the_smoothed_policy_is_as_good_a_clone(
    smoothed: LocalPolicy, cloned: LocalPolicy, shown: Demonstrations
) -> None:
    errors = [np.square(chunks(policy, shown.states, 0.0) - shown.chunks).mean() for policy in (smoothed, cloned)]
    assert errors[0] <= 1.15 * errors[1]


def discrepancy(first: np.ndarray, second: np.ndarray) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel of the median distance (Gretton et al. 2012)."""
    both = np.concatenate([first, second])
    squared = np.square(both[:, None] - both[None]).sum(axis=-1)
    kernel = np.exp(-squared / np.median(squared))
    half = len(first)
    return float(kernel[:half, :half].mean() + kernel[half:, half:].mean() - 2 * kernel[:half, half:].mean())


def chance_of_discrepancy(first: np.ndarray, second: np.ndarray) -> float:
    random = np.random.default_rng(0)
    both, found = np.concatenate([first, second]), discrepancy(first, second)
    orders = [random.permutation(len(both)) for _ in range(100)]
    shuffled = [discrepancy(both[order[: len(first)]], both[order[len(first) :]]) for order in orders]
    return float(np.mean([value >= found for value in shuffled]))


def test_at_the_top_the_context_says_nothing_and_at_zero_it_does(smoothed: LocalPolicy) -> None:
    def drawn(named: int, level: float) -> np.ndarray:
        return chunks(smoothed, start_states(named, 150), level, seed=named).reshape(150, -1)

    assert chance_of_discrepancy(drawn(0, 0.0), drawn(1, 0.0)) < 0.01
    assert chance_of_discrepancy(drawn(0, 1.0), drawn(1, 1.0)) > 0.05


def test_more_ways_are_known_the_higher_the_level(smoothed: LocalPolicy) -> None:
    make = partial(make_env, "eight-goals:named=0")
    found = by_level(smoothed, make, (0.0, 0.2, 0.25, 0.35, 0.6), episodes=60, seed=0)
    entropies = [row.entropy or 0.0 for row in found]
    assert entropies == sorted(entropies)
    assert entropies[-1] > entropies[0] + 2.5
    assert found[-1].modes is not None
    assert found[-1].modes >= 7
    assert found[0].success > 0.8


def test_a_checkpoint_keeps_what_its_noise_needs(shown: Demonstrations, tmp_path: Path) -> None:
    schedule = ContextSchedule(levels=100, index="floor_last")
    config = PretrainConfig(out=tmp_path, context=CONTEXT, schedule=schedule, conditioning="quarters", steps=2, **SMALL)
    loaded, network, content_hash = load_state_policy(pretrain(config, shown))
    assert loaded.network.context == CONTEXT
    assert loaded.network.schedule == schedule
    assert loaded.network.conditioning == "quarters"
    assert np.allclose(loaded.state_normalizer.mean, shown.states.mean(axis=0), atol=1e-4)
    assert len(content_hash) == 64
    with pytest.raises(ValueError, match="context_level, context_noise: both must be given"):
        network.encode(torch.zeros(1, 10))
    with pytest.raises(ValueError, match=r"holds a run with other settings \(steps\)"):
        pretrain(replace(config, steps=3), shown)


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(shown: Demonstrations, tmp_path: Path) -> None:
    def config(name: str) -> PretrainConfig:
        return PretrainConfig(out=tmp_path / name, context=CONTEXT, checkpoint_every=50, steps=120, **SMALL)

    whole = load_state_policy(pretrain(config("whole"), shown))[1]

    def kill(step: int, _: float) -> None:
        if step == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(config("killed"), shown, kill)
    resumed = load_state_policy(pretrain(config("killed"), shown))[1]
    assert parameters_hash(resumed) == parameters_hash(whole)


def test_kinds_side_by_side_are_told_apart_and_drawn(tmp_path: Path) -> None:
    policies = ["smoothed=zoo:eight-goals", "smoothed=zoo:eight-goals", "plain=zoo:eight-goals-clone"]
    asked = ["--task", "eight-goals:named=0", "--at", "0,1", "--episodes", "24"]
    done = CliRunner().invoke(csp_app, ["compare", str(tmp_path), *policies, *asked])
    assert done.exit_code == 0, done.output
    smoothed, plain = json.loads((tmp_path / "levels.json").read_text("utf-8"))
    assert (smoothed["name"], len(smoothed["seeds"])) == ("smoothed", 2)
    assert [row["level"] for row in plain["seeds"][0]] == [0]
    clean, blind = smoothed["seeds"][0]
    assert clean["success"] > 0.9
    assert blind["success"] < 0.5
    assert clean["entropy"] < 0.5
    assert blind["entropy"] > 2.0
    assert "| plain | 1 | 1.00 (" in (tmp_path / "table.md").read_text("utf-8")
    assert (tmp_path / "levels.png").read_bytes().startswith(b"\x89PNG")
    wrong = CliRunner().invoke(csp_app, ["compare", str(tmp_path), "zoo:eight-goals", "--task", "eight-goals"])
    assert wrong.exit_code == 2
