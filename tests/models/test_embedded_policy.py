"""The embedded VLA, as it ships, through the contract that every policy keeps."""

from __future__ import annotations

import pytest

from models.policies.flow_vla import FlowVLAPolicy
from tests.models.policy_contract import PolicyContract


@pytest.fixture(scope="module")
def policy():
    return FlowVLAPolicy(FlowVLAPolicy.Config(checkpoint="zoo:metaworld-flow", device="cpu", threads=1))


class TestEmbedded(PolicyContract):
    pass
