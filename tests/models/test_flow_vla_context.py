"""The embedded VLA's context noise: what it is put on, and what it leaves alone (checklist C6 and C7)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from models.folders import checkpoint_folder
from models.policies.context_noise import ContextSchedule
from models.policies.flow_vla import FlowVLAPolicy
from models.policies.flow_vla.checkpoint import load_checkpoint, save_checkpoint
from models.policies.flow_vla.network import FlowVLANetwork, NetworkConfig
from tests.models.policy_contract import PolicyContract, item

if TYPE_CHECKING:
    from pathlib import Path

SMALL = NetworkConfig(
    cameras=2, image_size=32, state_size=4, action_size=3, chunk_length=4, channels=(8, 8, 8), keypoints=4,
    text_width=16, summary=32, width=32, blocks=1, context=ContextSchedule(),
)  # fmt: skip


@pytest.fixture(scope="module")
def smoothed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded policy's folder, with a network of fresh weights that takes context noise."""
    config, _, _ = load_checkpoint(checkpoint_folder("zoo:metaworld-flow"))
    config = replace(config, network=replace(config.network, context=ContextSchedule()))
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("smoothed")
    save_checkpoint(folder, config, FlowVLANetwork(config.network), card="")
    return folder


class TestSmoothed(PolicyContract):
    @pytest.fixture
    def policy(self, smoothed: Path) -> FlowVLAPolicy:
        return FlowVLAPolicy(FlowVLAPolicy.Config(checkpoint=str(smoothed), device="cpu"))


def inputs(number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(number, 2, 3, 32, 32, generator=generator) * 2 - 1
    return images, torch.randn(number, 4, generator=generator), torch.randint(1, 50, (number, 16), generator=generator)


def test_at_the_top_neither_pictures_nor_words_matter_and_the_state_does() -> None:
    torch.manual_seed(0)
    network = FlowVLANetwork(SMALL).eval()
    images, state, words = inputs(2)
    eps = torch.randn(1, network.context_size).expand(2, -1)

    def summary(level: float, state: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network.encode(images, state, words, level=torch.full((2,), level), context_noise=eps).summary

    same = state[:1].expand(2, -1)
    known, erased = summary(0.0, same), summary(1.0, same)
    assert (known[0] - known[1]).abs().max() > 20 * (erased[0] - erased[1]).abs().max()
    assert (summary(1.0, state)[0] - summary(1.0, state)[1]).abs().max() > 0.01


def test_the_expert_is_told_the_level() -> None:
    network = FlowVLANetwork(SMALL).eval()
    images, state, words = inputs(2)
    noise = torch.randn(2, network.context_size)
    prefix = network.encode(images, state, words, level=torch.full((2,), 0.5), context_noise=noise)
    noisy, time = torch.randn(2, 4, 3), torch.full((2,), 0.3)
    assert not torch.allclose(
        network.velocity(prefix, noisy, time), network.velocity(prefix._replace(level=torch.zeros(2)), noisy, time)
    )
    assert torch.equal(prefix.repeat(3).level, torch.full((6,), 0.5))


def test_a_network_without_refuses_it_and_one_with_demands_it() -> None:
    images, state, words = inputs(2)
    with pytest.raises(ValueError, match="both must be given"):
        FlowVLANetwork(SMALL).encode(images, state, words)
    plain = FlowVLANetwork(replace(SMALL, context=None))
    assert plain.context_size == 0
    with pytest.raises(ValueError, match="trained without context noise"):
        plain.encode(images, state, words, level=torch.zeros(2), context_noise=torch.zeros(2, 0))


def test_the_same_noise_and_level_give_the_same_chunk(smoothed: Path) -> None:
    policy = FlowVLAPolicy(FlowVLAPolicy.Config(checkpoint=str(smoothed), device="cpu"))
    spec = policy.spec
    random = np.random.default_rng(0)
    noise = random.standard_normal((spec.chunk_length, spec.action.size), np.float32)
    context = random.standard_normal(spec.context_size, np.float32)
    first, again, trusting = policy.act(
        [
            item(spec, 1, noise=noise, context_level=0.6, context_noise=context),
            item(spec, 1, noise=noise, context_level=0.6, context_noise=context),
            item(spec, 1, noise=noise),
        ]
    )
    assert np.allclose(first.actions, again.actions, atol=1e-6)
    assert not np.allclose(first.actions, trusting.actions)
    assert (first.context_level, trusting.context_level) == (0.6, 0.0)
    assert first.seed is None
    with pytest.raises(ValueError, match=r"context_level: -0\.1"):
        policy.act([item(spec, 1, context_level=-0.1)])
