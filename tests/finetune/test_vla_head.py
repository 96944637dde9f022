"""The head of an embedded VLA as a policy on states: the same actions, trained in a job, and served again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from finetune.baselines.dppo import DppoConfig
from finetune.baselines.methods import Name, baseline_job
from finetune.common.chunk_policy import load_chunk_policy
from finetune.common.environments.registry import make_env
from finetune.common.environments.seeing import SeeingEnv, maker
from finetune.common.learning import JobConfig
from finetune.common.run import metrics
from finetune.ogpo.train import OgpoJob
from finetune.tmrl.base import LocalPolicy
from finetune.tmrl.config import AgentConfig, TmrlConfig
from finetune.tmrl.train import TmrlJob
from models.policies.context_noise import ContextSchedule
from models.policies.contract import ActItem, ActOptions, CameraSpec, Observation, VectorSpec
from models.policies.flow_vla import FlowVLAPolicy
from models.policies.flow_vla.checkpoint import CheckpointConfig, InferenceDefaults, load_checkpoint, save_checkpoint
from models.policies.flow_vla.head import ActionHead, is_vla
from models.policies.flow_vla.network import FlowVLANetwork, NetworkConfig
from models.policies.flow_vla.tokenizer import HashTokenizer
from models.policies.normalizer import Normalizer
from models.policies.steered import SteeredPolicy
from tests.finetune.test_ogpo_job import TINY
from tests.weights import parameters_hash

if TYPE_CHECKING:
    from pathlib import Path

H, A, SIDE = 8, 2, 32
TASK = "robot:name=pointmass,horizon=24"


def vector(size: int, bound: float) -> VectorSpec:
    return VectorSpec(
        names=tuple("xyzw"[:size]),
        units=("m",) * size,
        kinds=("absolute",) * size,
        low=(-bound,) * size,
        high=(bound,) * size,
    )


def checkpoint(folder: Path, *, context: ContextSchedule | None = None) -> Path:
    torch.manual_seed(3)
    network = NetworkConfig(
        cameras=1,
        image_size=SIDE,
        state_size=4,
        action_size=A,
        chunk_length=H,
        word_buckets=64,
        words=8,
        channels=(8, 8, 8),
        keypoints=4,
        text_width=16,
        summary=16,
        width=16,
        context=context,
    )
    config = CheckpointConfig(
        id="tiny",
        revision="1",
        network=network,
        tokenizer=HashTokenizer(buckets=64, length=8),
        cameras=(CameraSpec(name="top", height=SIDE, width=SIDE),),
        state=vector(4, 1.0),
        action=vector(A, 1.0),
        state_normalizer=Normalizer(mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 2.0, 4.0, 1.0)),
        action_normalizer=Normalizer(mean=(0.1, -0.2), std=(0.3, 0.5)),
        control_hz=50.0,
        inference=InferenceDefaults(execute=4, integration_steps=5),
    )
    save_checkpoint(folder, config, FlowVLANetwork(network), card="# tiny")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("vla") / "plain")


def seen(number: int) -> Observation:
    random = np.random.default_rng(number)
    return Observation(
        images={"top": random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)},
        state=random.normal(size=4).astype(np.float32),
        instruction=("go to the goal", "stay")[number % 2],
    )


@pytest.mark.parametrize("context", [None, ContextSchedule()])
def test_the_head_on_encoded_views_acts_as_the_policy_does(tmp_path: Path, context: ContextSchedule | None) -> None:
    folder = checkpoint(tmp_path, context=context)
    noise = np.random.default_rng(0).standard_normal((3, H, A)).astype(np.float32)
    items = [ActItem(observation=seen(n), options=ActOptions(noise=noise[n])) for n in range(3)]
    served = FlowVLAPolicy(FlowVLAPolicy.Config(checkpoint=str(folder), device="cpu")).act(items)
    policy, head = load_chunk_policy(folder)
    assert policy.encoder is not None
    known = [policy.encoder.encode(one.images, one.state, one.instruction) for one in map(seen, range(3))]
    chunks = policy.decode(head, policy.config.normalize(torch.from_numpy(np.stack(known))), torch.from_numpy(noise))
    np.testing.assert_allclose(chunks.detach(), np.stack([chunk.actions for chunk in served]), atol=1e-5)
    torch.testing.assert_close(policy.config.restore(policy.config.fit(chunks)), chunks)


def test_chunks_of_one_state_share_what_was_computed_of_it(folder: Path) -> None:
    policy, head = load_chunk_policy(folder)
    states = torch.randn(3, policy.sizes.state_size, generator=torch.Generator().manual_seed(1))
    noisy = torch.randn(3, 5, H, A, generator=torch.Generator().manual_seed(2))
    time = torch.tensor([0.2, 0.5, 0.9])
    grouped = head.velocity(head.encode(states), noisy, time)
    for index in range(5):
        torch.testing.assert_close(grouped[:, index], head.velocity(head.encode(states), noisy[:, index], time))


@pytest.mark.parametrize("rows", [None, H])
def test_a_job_trains_the_head_alone_and_what_comes_of_it_is_served(
    folder: Path, tmp_path: Path, rows: int | None
) -> None:
    config = JobConfig(out=tmp_path / "run", steps=96, evaluate_every=48, episodes=2, lanes=2)
    job = OgpoJob(config, TINY, folder, task=TASK, execute=rows)
    job.train(lambda *_: None)
    assert [row["env_steps"] for row in metrics(tmp_path / "run")] == [0, 48, 96]
    assert job.ogpo.experience.updates > 5
    assert job.ogpo.critics.weights[0].shape[1] == job.ogpo.policy.sizes.state_size + (rows or 4) * A
    job.export(tmp_path / "checkpoint")
    before, after = (load_checkpoint(one) for one in (folder, tmp_path / "checkpoint"))
    old, new = before[1].state_dict(), after[1].state_dict()
    changed = {name.partition(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"summary", "expert"}
    assert after[0] == replace(before[0], inference=replace(before[0].inference, execute=rows or 4))
    (chunk,) = FlowVLAPolicy(FlowVLAPolicy.Config(checkpoint=str(tmp_path / "checkpoint"))).act(
        [ActItem(observation=seen(0))]
    )
    assert chunk.actions.shape == (H, A)


@pytest.mark.parametrize(
    ("name", "rows"), [("dppo", H), ("bptt", None), ("residual", None), ("residual", H), ("distillation", None)]
)
def test_baselines_take_it_too(folder: Path, tmp_path: Path, name: Name, rows: int | None) -> None:
    episodes = -(-H * DppoConfig().chunks // 24) if name == "dppo" else 22  # before which no update is due
    steps = 24 * episodes
    config = JobConfig(out=tmp_path, steps=steps, evaluate_every=steps, episodes=2, lanes=2)
    job = baseline_job(config, name, folder, task=TASK, updates=0.1, execute=rows)
    job.train(lambda *_: None)
    first, last = metrics(tmp_path)
    assert (first["env_steps"], last["env_steps"]) == (0, steps)
    assert last["updates"] > 0


def test_a_baseline_refuses_a_task_without_an_expert(folder: Path, tmp_path: Path) -> None:
    config = JobConfig(out=tmp_path, steps=10, episodes=1)
    with pytest.raises(TypeError, match="RobotEnv has no expert"):
        baseline_job(config, "rlpd", folder, task=TASK)


def test_a_steered_vla_is_shown_its_summary_and_served_with_its_cameras(tmp_path: Path) -> None:
    base = LocalPolicy(checkpoint(tmp_path / "base", context=ContextSchedule()))
    before = parameters_hash(base.flow.network)
    agent = AgentConfig(hidden=16, layers=1, critics=2, context_bound=0.0, temperature=0.05)
    method = TmrlConfig(agent=agent, warmup=8, updates=1, batch=8)
    config = JobConfig(out=tmp_path / "run", steps=96, evaluate_every=48, episodes=2, lanes=2)
    job = TmrlJob(config, method, base, task=TASK)
    job.train(lambda *_: None)
    assert job.learner.updates == 24 - 8
    assert job.learner.replay.state()["states"].shape[1] == 16 + 4
    assert parameters_hash(base.flow.network) == before
    job.export(tmp_path / "steered", name="tiny-steered", revision="1")
    served = SteeredPolicy(SteeredPolicy.Config(checkpoint=str(tmp_path / "steered")))
    assert (served.spec.id, served.spec.cameras, served.spec.execute) == (
        "tiny-steered",
        base.encoder.config.cameras,
        4,
    )
    (chunk,) = served.act([ActItem(observation=seen(0), options=ActOptions(seed=5))])
    known = base.encoder.encode(seen(0).images, seen(0).state, seen(0).instruction)[None]
    choice = job.learner.agent.choose(base.look(known), None)
    steering = job.learner.space.spread(choice, np.random.default_rng(5))
    np.testing.assert_allclose(chunk.actions, base.act(known, steering)[0], atol=1e-5)
    assert chunk.context_level == pytest.approx(float(steering.level[0]))


def test_it_is_told_apart_from_other_policies_and_refuses_what_it_cannot_see(folder: Path, tmp_path: Path) -> None:
    assert is_vla(folder)
    assert not is_vla(tmp_path)
    policy, head = load_chunk_policy(folder)
    assert isinstance(head, ActionHead)
    assert policy.encoder is not None
    with pytest.raises(TypeError, match="SlotEnv has no cameras"):
        SeeingEnv(make_env("slot"), policy.encoder)
    with pytest.raises(ValueError, match="execute: 9, must be from 1 to 8"):
        load_chunk_policy(folder, execute=9)
    with pytest.raises(ValueError, match=r"the policy needs \{'top'"):
        policy.encoder.encode({"front": seen(0).images["top"]}, seen(0).state, "go")
    env = maker(TASK, policy.encoder)()
    first, _ = env.reset(seed=3)
    assert first.shape == env.observation_space.shape == (policy.encoder.size,)
    told = maker(f"{TASK},told=stay", policy.encoder)()
    assert not np.array_equal(told.reset(seed=3)[0], first)
