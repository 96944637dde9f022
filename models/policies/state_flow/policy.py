"""`StateFlowPolicy`: a state policy behind the policy contract; it sees no camera."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.folders import checkpoint_folder
from models.policies.adapters import Base
from models.policies.contract import ActionChunk, PolicySpec
from models.policies.flow_vla.flow import integrate
from models.policies.served_adapters import ServedAdapters
from models.policies.state_flow.checkpoint import StatePolicyConfig, load_state_policy, require_plain_actions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from models.policies.chunk_field import ChunkField
    from models.policies.contract import ActItem, ActOptions, Observation
    from models.policies.flow_vla.head import HeadPolicyConfig
    from models.policies.low_rank import FittedAdapter


class SteerableFlow:
    """A flow policy whose noise, context level and context noise come from outside.

    Args:
        steps: Euler steps of the flow; without noise between them.
    """

    def __init__(
        self, config: StatePolicyConfig | HeadPolicyConfig, network: ChunkField, content_hash: str, *, steps: int
    ) -> None:
        self.config, self.content_hash = config, content_hash
        self.network = network.requires_grad_(requires_grad=False)
        self._device = next(network.parameters()).device
        self.steps = steps
        self.chunk = (config.network.chunk_length, config.network.action_size)
        self.execute = config.execute
        self.context_size = config.network.context_size

    def know(self, observation: Observation) -> NDArray[np.float32]:
        """Return what the policy knows of an observation, float32 (S,): its state."""
        return observation.state

    def look(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what a high-level agent is shown of states (N, S): float32 (N, L), in the scale that the policy reads.

        Of MetaWorld's numbers centimetres decide: an agent that is shown metres hardly tells two scenes apart at first.
        """
        seen: NDArray[np.float32] = self.config.normalize(torch.from_numpy(states)).numpy()
        return seen

    def spec(self, *, control_hz: float) -> PolicySpec:
        """Return the contract of a policy that acts on this one's behalf."""
        return self.config.spec(self.content_hash, control_hz=control_hz, integration_steps=self.steps)

    def steer(
        self,
        states: NDArray[np.float32],
        *,
        noise: NDArray[np.float32],
        level: NDArray[np.float32],
        context_noise: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Return chunks float32 (N, H, A), not yet cut to [-1, 1].

        Args:
            states: (N, S), as the environment gives them. `noise`: (N, H, A).
            level: (N,), 0 to 1; `context_noise`: (N, C). Neither is looked at by a policy without context.
        """
        seen = self.config.normalize(self._there(states))
        return self.steer_seen(seen, noise=noise, level=level, context_noise=context_noise, steps=self.steps)

    @torch.no_grad()
    def steer_seen(
        self,
        seen: Tensor,
        *,
        noise: NDArray[np.float32],
        level: NDArray[np.float32],
        context_noise: NDArray[np.float32],
        steps: int,
    ) -> NDArray[np.float32]:
        """Return what `steer` does of states as the network reads them, (N, S)."""
        network = self.network
        if self.context_size:
            prefix = network.encode(seen, level=self._there(level), context_noise=self._there(context_noise))
        else:
            prefix = network.encode(seen)
        ends = integrate(lambda moving, time: network.velocity(prefix, moving, time), self._there(noise), steps=steps)
        chunks: NDArray[np.float32] = self.config.restore(ends).cpu().numpy()
        return chunks

    def _there(self, values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


class StateFlowPolicy:
    """A checkpoint folder of a state policy, served."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How to run a checkpoint.

        Attributes:
            checkpoint: folder with `config.json` and `model.safetensors`, or "zoo:NAME" for one that ships with us.
            integration_steps: Euler steps of a request that names none.
            control_hz: rate at which rows are meant to be played.
            threads: CPU threads of the whole process; None leaves PyTorch's setting.
            adapters: folder of adapters by name, as `python -m finetune.lora train` makes them; looked at again every
                `adapters_poll_s` seconds. `adapters_in_memory`: beyond it the one asked for longest ago is dropped.
        """

        checkpoint: str
        integration_steps: int = 10
        control_hz: float = 20.0
        threads: int | None = None
        adapters: str | None = None
        adapters_in_memory: int = 64
        adapters_poll_s: float = 1.0

    def __init__(self, config: Config) -> None:
        """Load the checkpoint.

        Raises:
            FileNotFoundError, ValueError: see `load_state_policy`; ValueError also for a diffusion policy, whose steps
                need noise between them.
        """
        loaded, network, content_hash = load_state_policy(checkpoint_folder(config.checkpoint))
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self._flow = SteerableFlow(loaded, network, content_hash, steps=config.integration_steps)
        self._adapters = ServedAdapters(
            config.adapters,
            network,
            Base(id=loaded.id, revision=loaded.revision, content_hash=content_hash),
            most=config.adapters_in_memory,
            poll_s=config.adapters_poll_s,
            check=require_plain_actions,
        )
        self._spec = replace(self._flow.spec(control_hz=config.control_hz), adapters=self._adapters.how)

    @property
    def spec(self) -> PolicySpec:
        """What it wants and gives."""
        return self._spec

    @property
    def adapters(self) -> Mapping[str, str]:
        """Names of the adapters that may be asked for now, to their content hashes."""
        return self._adapters.known

    @property
    def refused_adapters(self) -> Mapping[str, str]:
        """Names of the adapters that cannot be served, to the reason."""
        return self._adapters.refused

    def act(self, items: Sequence[ActItem]) -> Sequence[ActionChunk]:
        """Return one chunk for each item; those with the same number of integration steps run as one batch.

        Raises:
            ValueError: naming the option or field that cannot be used.
        """
        drawn = [self._draw(item) for item in items]
        adapters = self._adapters.get([item.adapter for item in items])
        chunks: list[ActionChunk | None] = [None] * len(items)
        seen = self._seen(items, adapters)
        wanted = [item.options.integration_steps or self._flow.steps for item in items]
        for steps in sorted(set(wanted)):
            rows = [index for index, own in enumerate(wanted) if own == steps]
            with self._adapters.mixing([adapters[row] for row in rows]):
                model = self._flow.steer_seen(
                    torch.from_numpy(seen[rows]),
                    noise=np.stack([drawn[index].noise for index in rows]),
                    level=np.array([drawn[index].level for index in rows], np.float32),
                    context_noise=np.stack([drawn[index].context_noise for index in rows]),
                    steps=steps,
                )
            for index, raw in zip(rows, model, strict=True):
                adapter = adapters[index]
                chunks[index] = ActionChunk(
                    actions=np.clip(raw, -1.0, 1.0),
                    model_actions=raw,
                    seed=drawn[index].seed,
                    context_level=drawn[index].level if self._flow.context_size else None,
                    adapter_hash=None if adapter is None else adapter.content_hash,
                    summary=seen[index] if items[index].options.return_summary else None,
                )
        return [chunk for chunk in chunks if chunk is not None]

    def reset(self, session: str) -> None:
        """Do nothing: no request depends on an earlier one."""

    def _seen(self, items: Sequence[ActItem], adapters: Sequence[FittedAdapter | None]) -> NDArray[np.float32]:
        """Return states (N, S) in the scale that the network, or an item's adapter, was trained with."""
        seen = self._flow.look(np.stack([item.observation.state for item in items]))
        for row, (item, adapter) in enumerate(zip(items, adapters, strict=True)):
            if adapter is not None:
                seen[row] = adapter.facts.state.normalize(item.observation.state)
        return seen

    def _draw(self, item: ActItem) -> _Drawn:
        options, spec = item.options, self._spec
        self._adapters.require(item.adapter)
        _check(options, spec)
        if item.observation.state.shape != (spec.state.size,):
            raise ValueError(f"state: shape {item.observation.state.shape}, needs ({spec.state.size},)")
        whole = options.noise is not None and (options.context_noise is not None or not options.context_level)
        seed = None if whole else secrets.randbits(63) if options.seed is None else options.seed
        random = np.random.default_rng(0 if seed is None else seed)
        noise = random.standard_normal(self._flow.chunk, np.float32)
        context = random.standard_normal(self._flow.context_size, np.float32)
        return _Drawn(
            noise=noise if options.noise is None else options.noise,
            level=options.context_level or 0.0,
            context_noise=context if options.context_noise is None else options.context_noise,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    noise: NDArray[np.float32]
    level: float
    context_noise: NDArray[np.float32]
    seed: int | None


def _check(options: ActOptions, spec: PolicySpec) -> None:
    if options.leftover is not None:
        raise ValueError("leftover: this policy has no real-time chunking")
    if options.integration_steps is not None and not 1 <= options.integration_steps <= 100:
        raise ValueError(f"integration_steps: {options.integration_steps}, must be 1 to 100")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise ValueError(f"seed: {options.seed}, must be 0 to 2^63 - 1")
    if not spec.context_size and (options.context_level is not None or options.context_noise is not None):
        raise ValueError("context_level: this policy was trained without context noise")
    if options.context_level is not None and not 0 <= options.context_level <= 1:
        raise ValueError(f"context_level: {options.context_level}, must be from 0 to 1")
    shapes = (("noise", options.noise, (spec.chunk_length, spec.action.size)),)
    for name, value, shape in (*shapes, ("context_noise", options.context_noise, (spec.context_size,))):
        if value is not None and value.shape != shape:
            raise ValueError(f"{name}: shape {value.shape}, needs {shape}")
