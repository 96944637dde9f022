"""`FlowVLAPolicy`: the embedded VLA behind the policy contract."""

from __future__ import annotations

import secrets
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from models.folders import checkpoint_folder
from models.policies.adapters import Base
from models.policies.contract import ActionChunk, PolicySpec
from models.policies.flow_vla.checkpoint import load_checkpoint
from models.policies.flow_vla.flow import Guidance, integrate
from models.policies.flow_vla.head import ActionHead
from models.policies.flow_vla.rtc import prefix_weights
from models.policies.served_adapters import ServedAdapters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from models.policies.contract import ActItem
    from models.policies.flow_vla.network import Prefix
    from models.policies.low_rank import FittedAdapter

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Drawn(NamedTuple):
    """Noise (B, H, A) and context noise (B, C) that were drawn or given, and the seeds of what was drawn."""

    noise: Tensor
    context: Tensor
    seeds: list[int | None]


class FlowVLAPolicy:
    """Flow-matching vision-language-action policy, from a checkpoint folder on disk."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How to run a checkpoint.

        Attributes:
            checkpoint: folder with `config.json` and `model.safetensors`, or "zoo:NAME" for one that ships with us.
            device: "auto" takes CUDA where there is one.
            dtype: of weights and activations.
            integration_steps: Euler steps of a request that names none; None takes the checkpoint's.
            threads: CPU threads of the whole process; None leaves PyTorch's setting.
            adapters: folder of adapters by name, as `python -m finetune.lora train` makes them; looked at again every
                `adapters_poll_s` seconds. `adapters_in_memory`: beyond it the one asked for longest ago is dropped.
        """

        checkpoint: str
        device: Literal["auto", "cpu", "cuda"] = "auto"
        dtype: Literal["float32", "bfloat16"] = "float32"
        integration_steps: int | None = None
        threads: int | None = None
        adapters: str | None = None
        adapters_in_memory: int = 64
        adapters_poll_s: float = 1.0

    def __init__(self, config: Config) -> None:
        """Load the checkpoint.

        Raises:
            FileNotFoundError, ValueError: see `load_checkpoint`; ValueError also for CUDA that is not there or numbers
                below 1.
        """
        for name, value in (("integration_steps", config.integration_steps), ("threads", config.threads)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value}, must be 1 or more")
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: 'cuda' was asked for and this machine has none")
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self._device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
        self._dtype = _DTYPES[config.dtype]
        self._config, network, content_hash = load_checkpoint(checkpoint_folder(config.checkpoint))
        self._network = network.to(device=self._device, dtype=self._dtype).requires_grad_(requires_grad=False)
        self._head = ActionHead(self._network)
        self._steps = config.integration_steps or self._config.inference.integration_steps
        self._adapters = ServedAdapters(
            config.adapters,
            self._network,
            Base(id=self._config.id, revision=self._config.revision, content_hash=content_hash),
            most=config.adapters_in_memory,
            poll_s=config.adapters_poll_s,
        )
        spec = self._config.spec(content_hash, context_size=network.context_size)
        self._spec = replace(spec, adapters=self._adapters.how)

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
        """Return one chunk for each item; images arrive in the size of the spec.

        Items may differ in every option; those with the same number of integration steps run as one batch.

        Raises:
            ValueError: naming the option or field that cannot be used.
        """
        groups: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            self._check(item)
            groups[item.options.integration_steps or self._steps].append(index)
        chunks: dict[int, ActionChunk] = {}
        for steps, members in groups.items():
            chunks.update(zip(members, self._run([items[index] for index in members], steps), strict=True))
        return [chunks[index] for index in range(len(items))]

    def reset(self, session: str) -> None:
        """Do nothing: no request depends on an earlier one."""

    def _run(self, items: Sequence[ActItem], steps: int) -> list[ActionChunk]:
        guidance, adapters = self._guidance(items), self._adapters.get([item.adapter for item in items])
        # the guided field needs gradients, which tensors made in inference mode refuse to give
        with torch.no_grad() if guidance is not None else torch.inference_mode(), self._adapters.mixing(adapters):
            drawn = self._draw(items)
            features = self._features(items, adapters)
            prefix = self._encode(features, items, drawn)
            model = integrate(
                lambda noisy, time: self._network.velocity(prefix, noisy.to(self._dtype), time.to(self._dtype)).float(),
                drawn.noise.to(self._device),
                steps=steps,
                guidance=guidance,
            )
            summaries = self._summaries(features, items)
        normalized = model.cpu().numpy().astype(np.float32)
        scales = [self._config.action_normalizer if one is None else one.facts.action for one in adapters]
        actions = np.stack([scale.restore(row) for scale, row in zip(scales, normalized, strict=True)])
        actions = np.clip(
            actions, np.asarray(self._spec.action.low, np.float32), np.asarray(self._spec.action.high, np.float32)
        )
        levels = [item.options.context_level or 0.0 if self._network.context_size else None for item in items]
        rows = zip(actions, normalized, drawn.seeds, levels, adapters, summaries, strict=True)
        return [
            ActionChunk(
                actions=row,
                model_actions=raw,
                seed=seed,
                context_level=level,
                adapter_hash=None if adapter is None else adapter.content_hash,
                summary=summary,
            )
            for row, raw, seed, level, adapter, summary in rows
        ]

    def _features(self, items: Sequence[ActItem], adapters: Sequence[FittedAdapter | None]) -> Tensor:
        pixels = np.stack(
            [np.stack([item.observation.images[camera.name] for camera in self._spec.cameras]) for item in items]
        )
        images = torch.from_numpy(pixels).to(self._device).permute(0, 1, 4, 2, 3).to(self._dtype) / 127.5 - 1.0
        scales = [self._config.state_normalizer if one is None else one.facts.state for one in adapters]
        states = np.stack([scale.normalize(item.observation.state) for scale, item in zip(scales, items, strict=True)])
        words = self._config.tokenizer([item.observation.instruction for item in items])
        return self._network.features(
            images, torch.from_numpy(states).to(self._device, self._dtype), torch.from_numpy(words).to(self._device)
        )

    def _encode(self, features: Tensor, items: Sequence[ActItem], drawn: _Drawn) -> Prefix:
        if not self._network.context_size:
            return self._head.encode(features)
        levels = torch.tensor([item.options.context_level or 0.0 for item in items], device=self._device)
        return self._head.encode(features, level=levels, context_noise=drawn.context.to(self._device, self._dtype))

    def _summaries(self, features: Tensor, items: Sequence[ActItem]) -> list[NDArray[np.float32] | None]:
        wanted = [item.options.return_summary for item in items]
        if not any(wanted):
            return [None] * len(items)
        told = self._head.told(features).float().cpu().numpy()
        return [row if asked else None for row, asked in zip(told, wanted, strict=True)]

    def _draw(self, items: Sequence[ActItem]) -> _Drawn:
        shape = (self._spec.chunk_length, self._spec.action.size)
        noise: list[Tensor] = []
        context: list[Tensor] = []
        seeds: list[int | None] = []
        for item in items:
            options = item.options
            whole = options.noise is not None and (options.context_noise is not None or not options.context_level)
            # one generator an item, on the CPU: the noise depends neither on the batch nor on the device
            seed = secrets.randbits(63) if options.seed is None else options.seed
            generator = torch.Generator().manual_seed(seed)
            own = torch.randn(shape, generator=generator)
            smoothing = torch.randn(self._network.context_size, generator=generator)
            noise.append(own if options.noise is None else torch.from_numpy(options.noise))
            context.append(smoothing if options.context_noise is None else torch.from_numpy(options.context_noise))
            seeds.append(None if whole else seed)
        return _Drawn(torch.stack(noise), torch.stack(context), seeds)

    def _guidance(self, items: Sequence[ActItem]) -> Guidance | None:
        if all(item.options.leftover is None for item in items):
            return None
        length, defaults = self._spec.chunk_length, self._config.inference
        leftover = np.zeros((len(items), length, self._spec.action.size), dtype=np.float32)
        weights = np.zeros((len(items), length, 1), dtype=np.float32)
        for index, item in enumerate(items):
            options = item.options
            if options.leftover is None:
                continue
            rows = len(options.leftover)
            leftover[index, :rows] = options.leftover
            horizon = min(rows, length if options.execution_horizon is None else options.execution_horizon)
            weights[index, :, 0] = prefix_weights(
                delay=options.inference_delay, horizon=horizon, length=length, schedule=defaults.rtc_schedule
            )
        return Guidance(
            leftover=torch.from_numpy(leftover).to(self._device),
            weights=torch.from_numpy(weights).to(self._device),
            maximum=defaults.rtc_max_guidance,
        )

    def _check(self, item: ActItem) -> None:
        options, spec = item.options, self._spec
        self._adapters.require(item.adapter)
        if options.integration_steps is not None and not 1 <= options.integration_steps <= 100:
            raise ValueError(f"integration_steps: {options.integration_steps}, must be 1 to 100")
        if options.seed is not None and not 0 <= options.seed < 2**63:
            raise ValueError(f"seed: {options.seed}, must be 0 to 2^63 - 1")
        if options.noise is not None:
            _check_shape("noise", options.noise, (spec.chunk_length, spec.action.size))
        size = self._network.context_size
        if not size and (options.context_level is not None or options.context_noise is not None):
            raise ValueError("context_level: this policy was trained without context noise")
        if options.context_level is not None and not 0 <= options.context_level <= 1:
            raise ValueError(f"context_level: {options.context_level}, must be from 0 to 1")
        if options.context_noise is not None:
            _check_shape("context_noise", options.context_noise, (size,))
        if options.inference_delay < 0 or (options.execution_horizon or 0) < 0:
            raise ValueError("inference_delay and execution_horizon must be 0 or more")
        for camera in spec.cameras:
            _check_shape(
                f"image {camera.name!r}", item.observation.images.get(camera.name), (camera.height, camera.width, 3)
            )
        _check_shape("state", item.observation.state, (spec.state.size,))
        if options.leftover is not None:
            rows = min(len(options.leftover), spec.chunk_length)
            _check_shape("leftover", options.leftover, (rows, spec.action.size))
            if not np.isfinite(options.leftover).all():
                raise ValueError("leftover: has values that are not finite")


def _check_shape(name: str, value: NDArray[np.generic] | None, shape: tuple[int, ...]) -> None:
    if value is None:
        raise ValueError(f"{name}: is missing")
    if value.shape != shape:
        raise ValueError(f"{name}: shape {value.shape}, needs {shape}")
