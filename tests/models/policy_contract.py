"""The shared test suite of the policy contract: every policy runs through all of it.

A test module subclasses `PolicyContract` and gives a fixture `policy`, a fresh instance for each test.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.policies.contract import ActItem, ActOptions, Observation

if TYPE_CHECKING:
    from models.policies.contract import ActionChunk, Policy, PolicySpec

TOLERANCE = 1e-4
INSTRUCTIONS = ("open the drawer", "", "reach the goal", "press the button from the top")


def observation(spec: PolicySpec, seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    low = np.maximum(np.array(spec.state.low), -1.0)
    high = np.minimum(np.array(spec.state.high), 1.0)
    return Observation(
        images={
            camera.name: rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
            for camera in spec.cameras
        },
        state=rng.uniform(low, high).astype(np.float32),
        instruction=INSTRUCTIONS[seed % len(INSTRUCTIONS)],
    )


def item(spec: PolicySpec, seed: int, session: str | None = None, **options: object) -> ActItem:
    """An observation of its own; seeded where the policy supports it, so that two calls can be compared."""
    chosen = {"seed": seed, **options} if spec.supports_seed else options
    session = f"s{seed}" if session is None else session
    return ActItem(observation=observation(spec, seed), session=session, options=ActOptions(**chosen))


def same(one: ActionChunk, other: ActionChunk) -> bool:
    return np.allclose(one.actions, other.actions, atol=TOLERANCE) and np.allclose(
        one.model_actions, other.model_actions, atol=TOLERANCE
    )


class PolicyContract:
    """What every policy promises."""

    def test_its_spec_is_sane_and_constant(self, policy: Policy) -> None:
        spec = policy.spec
        assert spec.id
        assert spec.revision
        assert re.fullmatch("[0-9a-f]{64}", spec.content_hash)
        assert 0 < spec.execute <= spec.chunk_length
        assert spec.control_hz > 0
        assert spec.instruction_chars > 0
        assert spec.integration_steps >= 0
        assert spec.action.size > 0
        assert len({camera.name for camera in spec.cameras}) == len(spec.cameras)
        for vector in (spec.state, spec.action):
            assert len(set(vector.names)) == vector.size
            assert all(low < high for low, high in zip(vector.low, vector.high, strict=True))
            assert set(vector.kinds) <= {"absolute", "delta", "velocity"}
        policy.act([item(spec, 0)])
        assert policy.spec == spec

    def test_chunks_have_the_promised_shape_type_and_range(self, policy: Policy) -> None:
        spec = policy.spec
        chunks = policy.act([item(spec, seed) for seed in range(4)])
        assert len(chunks) == 4
        low, high = np.array(spec.action.low), np.array(spec.action.high)
        slack = 1e-3 * (high - low)
        for chunk in chunks:
            assert chunk.actions.shape == (spec.chunk_length, spec.action.size)
            assert chunk.actions.dtype == chunk.model_actions.dtype == np.float32
            assert chunk.model_actions.ndim == 2
            assert len(chunk.model_actions) == spec.chunk_length
            assert np.isfinite(chunk.model_actions).all()
            assert ((chunk.actions >= low - slack) & (chunk.actions <= high + slack)).all()

    @pytest.mark.parametrize("size", [1, 2, 5])
    def test_a_batch_gives_what_singles_give(self, policy: Policy, size: int) -> None:
        spec = policy.spec
        items = [item(spec, seed) for seed in range(size)]
        together = policy.act(items)
        for one in items:
            policy.reset(one.session)
        alone = [policy.act([one])[0] for one in items]
        if not spec.supports_seed and not spec.stateful:
            pytest.skip("draws fresh noise at every call")
        assert all(same(one, other) for one, other in zip(together, alone, strict=True))

    def test_the_order_of_a_batch_does_not_matter(self, policy: Policy) -> None:
        spec = policy.spec
        if not spec.supports_seed and not spec.stateful:
            pytest.skip("draws fresh noise at every call")
        items = [item(spec, seed) for seed in range(4)]
        forwards = policy.act(items)
        for one in items:
            policy.reset(one.session)
        backwards = policy.act(items[::-1])[::-1]
        assert all(same(one, other) for one, other in zip(forwards, backwards, strict=True))

    def test_the_same_request_with_the_same_seed_gives_the_same_chunk(self, policy: Policy) -> None:
        spec = policy.spec
        if not spec.supports_seed:
            pytest.skip("supports no seed")
        first, again = (policy.act([item(spec, 3)])[0] for _ in range(2))
        np.testing.assert_array_equal(first.actions, again.actions)
        np.testing.assert_array_equal(first.model_actions, again.model_actions)

    def test_what_it_is_given_stays_as_it_was(self, policy: Policy) -> None:
        spec = policy.spec
        given = item(spec, 1)
        images = {name: picture.copy() for name, picture in given.observation.images.items()}
        state = given.observation.state.copy()
        policy.act([given])
        np.testing.assert_array_equal(given.observation.state, state)
        for name, picture in images.items():
            np.testing.assert_array_equal(given.observation.images[name], picture)

    def test_an_answer_given_stays_as_it_was(self, policy: Policy) -> None:
        """The platform keeps chunks for RTC while the policy goes on."""
        spec = policy.spec
        [chunk] = policy.act([item(spec, 1)])
        actions, model_actions = chunk.actions.copy(), chunk.model_actions.copy()
        policy.act([item(spec, 2), item(spec, 3)])
        np.testing.assert_array_equal(chunk.actions, actions)
        np.testing.assert_array_equal(chunk.model_actions, model_actions)

    def test_reset_starts_a_session_over_and_leaves_others_alone(self, policy: Policy) -> None:
        spec = policy.spec
        policy.reset("never seen")
        if not spec.supports_seed and not spec.stateful:
            pytest.skip("draws fresh noise at every call")
        one = item(spec, 1, session="one")
        other = replace(one, session="other")
        first = policy.act([one])[0]
        policy.act([other])
        following = policy.act([other])[0]
        policy.reset("other")
        policy.act([other])
        policy.reset("one")
        assert same(policy.act([one])[0], first)
        assert same(policy.act([other])[0], following)

    def test_it_takes_the_rest_of_its_last_chunk_where_it_says_so(self, policy: Policy) -> None:
        spec = policy.spec
        if not spec.supports_rtc:
            pytest.skip("does not support real-time chunking")
        [before] = policy.act([item(spec, 1)])
        for played in (1, spec.execute, spec.chunk_length - 1):
            leftover = before.model_actions[played:].copy()
            kept = leftover.copy()
            delay = min(2, len(leftover))
            with_rest = item(spec, 2, leftover=leftover, inference_delay=delay)
            mixed = policy.act([with_rest, item(spec, 3)])
            np.testing.assert_array_equal(leftover, kept)
            assert same(mixed[0], policy.act([with_rest])[0])
            assert same(mixed[1], policy.act([item(spec, 3)])[0])
            assert np.isfinite(mixed[0].actions).all()
