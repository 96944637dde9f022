"""What can be finetuned on demonstrations: a checkpoint, the data that are its kind, and the lessons that they make."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from models.folders import checkpoint_folder
from models.policies.flow_vla.checkpoint import load_checkpoint
from models.policies.flow_vla.head import is_vla
from models.policies.state_flow.checkpoint import load_state_policy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from finetune.bc.frames import Frames
    from finetune.lora.train import FinetuneConfig
    from models.policies.adapters import AdapterFacts
    from models.policies.flow_vla.checkpoint import CheckpointConfig
    from models.policies.state_flow.checkpoint import StatePolicyConfig

    PolicyConfig = CheckpointConfig | StatePolicyConfig


class Lessons(Protocol):
    """Frames as a network is taught them."""

    @property
    def module(self) -> nn.Module:
        """The network with its loss: called with what `batch` gives and the step's generator, it returns a scalar."""
        ...

    def batch(
        self, chosen: NDArray[np.int64], weights: Tensor, random: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Return what the module is called with for these frames, each of which counts `weights` (B,)."""
        ...


class PolicyBase(Protocol):
    """A checkpoint's kind of policy; `config`, `network` and `content_hash` are the checkpoint's."""

    @property
    def config(self) -> PolicyConfig:
        """What its configuration says."""
        ...

    @property
    def network(self) -> nn.Module:
        """Its network, which is trained in place."""
        ...

    @property
    def content_hash(self) -> str:
        """SHA-256, hex."""
        ...

    def frames(self, data: Sequence[Path], cache: Path) -> Frames:
        """Return the frames of datasets of this policy's kind.

        Raises:
            ValueError: naming what the datasets have and the policy needs.
            RoboserveError: a dataset is damaged.
        """
        ...

    def spread_as(self, frames: Frames) -> PolicyConfig:
        """Return the configuration with the statistics of these frames in the place of its own."""
        ...

    def lessons(self, config: FinetuneConfig, target: PolicyConfig, frames: Frames) -> Lessons:
        """Return the frames as lessons, in `target`'s scale."""
        ...

    def renamed(self, facts: AdapterFacts) -> PolicyConfig:
        """Return the configuration of what an adapter makes of it.

        Raises:
            ValueError: the adapter brings statistics that this kind has no place for.
        """
        ...

    def save(self, folder: Path, config: PolicyConfig, *, card: str) -> None:
        """Write a checkpoint folder of its network."""
        ...


def load_base(source: str) -> PolicyBase:
    """Return what is in a checkpoint folder, or "zoo:NAME".

    Raises:
        FileNotFoundError, ValueError: see `load_checkpoint` and `load_state_policy`.
    """
    from finetune.lora.state_base import StateBase
    from finetune.lora.vla_base import VlaBase

    folder = checkpoint_folder(source)
    if is_vla(folder):
        vla, whole, vla_hash = load_checkpoint(folder)
        return VlaBase(config=vla, network=whole, content_hash=vla_hash)
    config, network, content_hash = load_state_policy(folder)
    return StateBase(config=config, network=network, content_hash=content_hash)


def named(config: PolicyConfig, *, name: str, revision: str) -> PolicyConfig:
    """Return a configuration of another name and version."""
    renamed: PolicyConfig = replace(config, id=name, revision=revision)
    return renamed
