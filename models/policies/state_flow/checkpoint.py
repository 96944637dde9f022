"""The checkpoint folder of a state policy: `model.safetensors`, `config.json`, `README.md`.

The configuration carries sizes, what of the state is context, the schedule of its noise, how the state is normalised
and the chain of denoising steps, so that none of it is code. Actions are in [-1, 1] as they are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.folders import files_hash
from models.policies.contract import PolicySpec, VectorSpec
from models.policies.denoising import DiffusionSteps, FlowSteps
from models.policies.normalizer import Normalizer
from models.policies.state_flow.network import StateFlowConfig, StateFlowNetwork

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from models.policies.adapters import AdapterFacts

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT: Literal["roboserve-state-flow-1"] = "roboserve-state-flow-1"
_BEYOND = 1e6


@dataclass(frozen=True, kw_only=True)
class StatePolicyConfig:
    """Everything in `config.json`.

    Attributes:
        id, revision: name and version of the policy.
        network: sizes, context and schedule.
        state_normalizer: of the state, before noise is put on its context.
        execute: rows of a chunk that are played before the next.
        denoising: the chain, a flow's or a diffusion's.
    """

    id: str
    revision: str = "1"
    network: StateFlowConfig
    state_normalizer: Normalizer
    execute: int
    denoising: FlowSteps | DiffusionSteps = field(default_factory=FlowSteps)
    format: Literal["roboserve-state-flow-1"] = FORMAT

    @property
    def action_normalizer(self) -> Normalizer:
        """That of actions, which changes nothing."""
        size = self.network.action_size
        return Normalizer(mean=(0.0,) * size, std=(1.0,) * size)

    def normalize(self, state: Tensor) -> Tensor:
        """Return states (B, S) in the scale that the network reads."""
        mean = state.new_tensor(self.state_normalizer.mean)
        return (state - mean) / state.new_tensor(self.state_normalizer.std)

    def restore(self, chunks: Tensor) -> Tensor:
        """Return chunks as they are: the network writes actions."""
        return chunks

    def fit(self, chunks: Tensor) -> Tensor:
        """Return chunks as they are."""
        return chunks

    def spec(self, content_hash: str, *, control_hz: float, integration_steps: int) -> PolicySpec:
        """Return the policy's contract: a state of any finite numbers, actions from -1 to 1, no camera."""
        network = self.network
        return PolicySpec(
            id=self.id,
            revision=self.revision,
            content_hash=content_hash,
            cameras=(),
            state=_vector("s", network.state_size, _BEYOND),
            action=_vector("a", network.action_size, 1.0),
            control_hz=control_hz,
            chunk_length=network.chunk_length,
            execute=self.execute,
            integration_steps=integration_steps,
            supports_seed=True,
            supports_noise=True,
            supports_summary=True,
            context_size=network.context_size,
            normalization="mean_std",
        )


def _vector(letter: str, size: int, bound: float) -> VectorSpec:
    return VectorSpec(
        names=tuple(f"{letter}{index}" for index in range(size)),
        units=("1",) * size,
        kinds=("absolute" if letter == "s" else "delta",) * size,
        low=(-bound,) * size,
        high=(bound,) * size,
    )


_CONFIG = TypeAdapter(StatePolicyConfig)


def save_state_policy(folder: Path, config: StatePolicyConfig, network: StateFlowNetwork, *, card: str) -> None:
    """Write a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n", "utf-8")
    (folder / CARD).write_text(card, "utf-8")


def load_state_policy(folder: Path) -> tuple[StatePolicyConfig, StateFlowNetwork, str]:
    """Return configuration, network and the content's hash.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the configuration is not valid, or the weights do not fit it.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"checkpoint: {name} is missing in {folder.name}")
    try:
        config = _CONFIG.validate_json((folder / CONFIG).read_bytes())
    except ValidationError as error:
        raise ValueError(f"checkpoint: {CONFIG} of {folder.name} is not valid: {error}") from error
    network = StateFlowNetwork(config.network)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"checkpoint: {WEIGHTS} of {folder.name} does not fit its configuration: {error}") from error
    return config, network.eval(), files_hash([folder / CONFIG, folder / WEIGHTS])


def normalizer(states: Tensor) -> Normalizer:
    """Return mean and standard deviation of states (N, S); what hardly varies is not blown up."""
    mean, std = states.mean(dim=0), states.std(dim=0).clamp(min=1e-2)
    return Normalizer(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def require_plain_actions(facts: AdapterFacts) -> None:
    """Check that an adapter leaves actions in the scale that state policies write them in.

    Raises:
        ValueError: it has statistics of actions of its own.
    """
    if any(facts.action.mean) or any(value != 1 for value in facts.action.std):
        raise ValueError(f"adapter: {facts.id} scales actions, and those of a state policy are as they are")
