from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from models.policies.contract import ActItem, VectorSpec
from models.policies.scripted import CrashingPolicy, Interface, ReplayPolicy, SlowPolicy, ZeroPolicy
from tests.models.policy_contract import PolicyContract, item, observation

SMALL = Interface(image_size=16)
TWO = Interface(cameras=("left", "right"), image_size=24, state_size=3, action_size=7, chunk_length=10, execute=5)


def recording(tmp_path, rows: int = 20, size: int = 4):
    path = tmp_path / "recording.npy"
    np.save(path, np.linspace(-1, 1, rows * size).reshape(rows, size))
    return str(path)


class TestZero(PolicyContract):
    @pytest.fixture(params=[SMALL, TWO])
    def policy(self, request):
        return ZeroPolicy(ZeroPolicy.Config(interface=request.param))

    def test_it_answers_zeros(self, policy):
        [chunk] = policy.act([item(policy.spec, 0)])
        assert not chunk.actions.any()


class TestReplay(PolicyContract):
    @pytest.fixture
    def policy(self, tmp_path):
        return ReplayPolicy(ReplayPolicy.Config(actions=recording(tmp_path), interface=SMALL))

    def test_it_plays_the_recording_and_holds_its_last_row(self, policy, tmp_path):
        rows = np.linspace(-1, 1, 80, dtype=np.float32).reshape(20, 4)
        played = [policy.act([item(policy.spec, 0)])[0].actions for _ in range(5)]
        for index, chunk in enumerate(played):
            np.testing.assert_array_equal(chunk, rows[np.minimum(np.arange(16) + 8 * index, 19)])
        np.testing.assert_array_equal(played[4], np.tile(rows[-1], (16, 1)))

    def test_its_revision_is_the_recordings(self, policy, tmp_path):
        assert policy.spec.stateful
        other = ReplayPolicy(ReplayPolicy.Config(actions=recording(tmp_path, rows=21), interface=SMALL))
        assert other.spec.revision != policy.spec.revision
        assert other.spec.content_hash != policy.spec.content_hash

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (np.zeros((5, 3)), r"\(5, 3\), needs \(n, 4\)"),
            (np.zeros(5), r"\(5,\)"),
            (np.zeros((0, 4)), "one row or more"),
            (np.full((5, 4), np.nan), "finite"),
            (np.full((5, 4), 1e300), "finite"),
            (np.array([{"a": 1}], dtype=object), "allow_pickle"),
        ],
    )
    def test_a_recording_that_cannot_be_played_is_refused(self, tmp_path, array, words):
        path = tmp_path / "bad.npy"
        np.save(path, array, allow_pickle=True)
        with pytest.raises(ValueError, match=words):
            ReplayPolicy(ReplayPolicy.Config(actions=str(path), interface=SMALL))


class TestSlow(PolicyContract):
    @pytest.fixture
    def policy(self):
        return SlowPolicy(SlowPolicy.Config(base_ms=1.0, per_item_ms=0.1, interface=SMALL))

    def test_it_takes_its_time(self):
        policy = SlowPolicy(SlowPolicy.Config(base_ms=20.0, per_item_ms=10.0, interface=SMALL))
        started = time.perf_counter()
        policy.act([item(policy.spec, seed) for seed in range(3)])
        assert time.perf_counter() - started >= 0.05


class TestCrashing(PolicyContract):
    @pytest.fixture
    def policy(self):
        return CrashingPolicy(CrashingPolicy.Config(interface=SMALL))

    def told(self, policy, *instructions) -> list[ActItem]:
        return [
            ActItem(observation=replace(observation(policy.spec, 0), instruction=instruction))
            for instruction in instructions
        ]

    def test_it_raises_for_the_whole_batch(self, policy):
        with pytest.raises(RuntimeError, match="asked to raise"):
            policy.act(self.told(policy, "go", "raise", "go"))

    def test_it_answers_nonsense_for_one_item(self, policy):
        good, nan, short = policy.act(self.told(policy, "go", "nan", "short"))
        assert not good.actions.any()
        assert np.isnan(nan.actions).all()
        assert short.actions.shape == (15, 4)

    def test_it_takes_the_process_along(self, repository):
        script = (
            "from tests.models.test_scripted import *\n"
            "policy = CrashingPolicy(CrashingPolicy.Config(interface=SMALL))\n"
            "try: policy.act(TestCrashing().told(policy, 'die'))\n"
            "finally: print('survived')"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (13, "")


def test_the_interface_is_what_the_spec_says():
    spec = TWO.spec("x", revision="7")
    assert [camera.name for camera in spec.cameras] == ["left", "right"]
    assert (spec.cameras[0].height, spec.cameras[0].width) == (24, 24)
    assert (spec.state.size, spec.action.size, spec.chunk_length, spec.execute) == (3, 7, 10, 5)
    assert spec.content_hash != TWO.spec("x", revision="8").content_hash
    assert spec.content_hash != SMALL.spec("x", revision="7").content_hash


def test_a_vector_whose_parts_differ_in_length_is_refused():
    with pytest.raises(ValueError, match="differ in length"):
        VectorSpec(names=("a", "b"), units=("1",), kinds=("delta",), low=(0.0,), high=(1.0,))
