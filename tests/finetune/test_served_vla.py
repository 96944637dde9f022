"""A VLA behind the policy service, steered by a job that never has its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from clients.policy import ActOptions, PolicyClient
from finetune.common.learning import JobConfig
from finetune.common.run import metrics
from finetune.tmrl.base import LocalPolicy, ServedPolicy
from finetune.tmrl.config import AgentConfig, TmrlConfig
from finetune.tmrl.sent_views import SentViews
from finetune.tmrl.train import TmrlJob
from models.folders import checkpoint_folder
from models.policies.context_noise import ContextSchedule
from models.policies.state_flow.checkpoint import load_state_policy
from tests.finetune.test_vla_head import TASK, checkpoint, seen
from tests.serving.policy_running import RunningPolicy

if TYPE_CHECKING:
    from pathlib import Path


def test_a_vla_behind_the_service_is_steered_as_one_that_is_here(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "base", context=ContextSchedule())
    agent = AgentConfig(hidden=16, layers=1, critics=2, temperature=0.05)
    method = TmrlConfig(agent=agent, warmup=4, updates=1, batch=4)

    def run(name: str, base: LocalPolicy | ServedPolicy) -> TmrlJob:
        config = JobConfig(out=tmp_path / name, steps=48, evaluate_every=24, episodes=2, lanes=2)
        job = TmrlJob(config, method, base, task=f"{TASK},told=réach")
        job.train(lambda *_: None)
        assert job.learner.updates > 0
        return job

    with RunningPolicy.serving("models.policies.flow_vla:FlowVLAPolicy", {"checkpoint": str(folder)}) as served:
        base = ServedPolicy(served.url)
        far = run("far", base)
        with pytest.raises(TypeError, match="needs a frozen policy that is here"):
            far.export(tmp_path / "steered", name="steered", revision="1")
        base.close()
    near = run("near", LocalPolicy(folder, steps=5))
    for name, value in near.learner.replay.state().items():
        np.testing.assert_allclose(value, far.learner.replay.state()[name], atol=1e-5, err_msg=name)
    told = [{key: value for key, value in row.items() if key != "seconds"} for row in metrics(tmp_path / "far")]
    for row, other in zip(metrics(tmp_path / "near"), told, strict=True):
        assert {name: row[name] for name in other} == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_a_summary_is_told_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, context=ContextSchedule())
    policy = LocalPolicy(folder)
    encoder = policy.encoder
    assert encoder is not None
    known = encoder.encode(seen(1).images, seen(1).state, seen(1).instruction)[None]
    with (
        RunningPolicy.serving("models.policies.flow_vla:FlowVLAPolicy", {"checkpoint": str(folder)}) as served,
        PolicyClient(served.url) as client,
    ):
        assert "summary" in client.contract.supports
        sent = SentViews(client.contract)
        images, state, words = sent.request(sent.encode(seen(1).images, seen(1).state, seen(1).instruction))
        assert np.array_equal(images["top"], seen(1).images["top"])
        assert (state.tolist(), words) == (seen(1).state.tolist(), seen(1).instruction)
        with pytest.raises(ValueError, match="instruction: 4000 bytes, limit 2048"):
            sent.encode(seen(1).images, seen(1).state, "x" * 4000)
        view = {"images": dict(seen(1).images), "state": seen(1).state, "instruction": seen(1).instruction}
        noisy = ActOptions(seed=3, context_level=0.9, return_summary=True)
        asked, plain = (
            client.act(**view, options=noisy),
            client.act(**view, options=replace(noisy, return_summary=None)),
        )
    assert plain.summary is None
    np.testing.assert_array_equal(asked.actions, plain.actions)
    np.testing.assert_allclose(asked.summary, policy.look(known)[0], atol=1e-6)
    settings = {"checkpoint": "zoo:eight-goals"}
    with (
        RunningPolicy.serving("models.policies.state_flow:StateFlowPolicy", settings) as served,
        PolicyClient(served.url) as client,
    ):
        assert "summary" in client.contract.supports
        state = np.linspace(-1.0, 1.0, client.contract.state.size, dtype=np.float32)
        told = client.act(images={}, state=state, instruction="", options=ActOptions(return_summary=True)).summary
    normal = load_state_policy(checkpoint_folder("zoo:eight-goals"))[0].state_normalizer
    np.testing.assert_allclose(told, (state - np.array(normal.mean)) / np.array(normal.std), atol=1e-5)
