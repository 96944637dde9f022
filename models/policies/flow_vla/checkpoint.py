"""The checkpoint folder: `model.safetensors`, `config.json` and the model card; what it takes to ask the model rightly.

The configuration carries the network's sizes, the interface (cameras, state and action with names, units, kinds and
limits), the normalisation statistics, the tokenizer's settings and the defaults of inference, so that none of it is
code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.policies.contract import CameraSpec, PolicySpec, VectorSpec
from models.policies.flow_vla.network import FlowVLANetwork, NetworkConfig
from models.policies.flow_vla.tokenizer import HashTokenizer  # noqa: TC001  pydantic reads it at run time
from models.policies.normalizer import Normalizer  # noqa: TC001  pydantic reads it at run time

if TYPE_CHECKING:
    from pathlib import Path


WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT: Literal["roboserve-flow-vla-1"] = "roboserve-flow-vla-1"
NORMALIZATION = "mean_std"


@dataclass(frozen=True, kw_only=True)
class InferenceDefaults:
    """What a request that says nothing else gets.

    Attributes:
        execute: rows to play of a chunk; `integration_steps`: Euler steps.
        rtc_schedule, rtc_max_guidance: how real-time chunking weighs the leftover.
    """

    execute: int = 8
    integration_steps: int = 5
    rtc_schedule: Literal["zeros", "ones", "linear", "exp"] = "linear"
    rtc_max_guidance: float = 10.0


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Everything in `config.json`.

    Attributes:
        id, revision: name and version of the model.
        cameras: sizes are those that images must arrive in (square, `network.image_size`).
        frame_policy: how a frame of another size is fitted: "resize_with_pad" (bilinear, no distortion, black borders).
        path: whether it was trained to follow a path that is drawn on its first camera's image.
    """

    id: str
    revision: str
    network: NetworkConfig
    tokenizer: HashTokenizer
    cameras: tuple[CameraSpec, ...]
    state: VectorSpec
    action: VectorSpec
    state_normalizer: Normalizer
    action_normalizer: Normalizer
    control_hz: float
    inference: InferenceDefaults = InferenceDefaults()
    frame_policy: Literal["resize_with_pad"] = "resize_with_pad"
    path: bool = False
    format: Literal["roboserve-flow-vla-1"] = FORMAT

    def __post_init__(self) -> None:
        network = self.network
        wanted = {
            "cameras": (len(self.cameras), network.cameras),
            "state": (self.state.size, network.state_size),
            "action": (self.action.size, network.action_size),
            "state_normalizer": (len(self.state_normalizer.mean), network.state_size),
            "action_normalizer": (len(self.action_normalizer.mean), network.action_size),
            "tokenizer.length": (self.tokenizer.length, network.words),
            "tokenizer.buckets": (self.tokenizer.buckets, network.word_buckets),
        }
        for name, (given, needed) in wanted.items():
            if given != needed:
                raise ValueError(f"{name}: {given}, the network has {needed}")
        if any((camera.height, camera.width) != (network.image_size, network.image_size) for camera in self.cameras):
            raise ValueError(f"cameras: every image must be {network.image_size} x {network.image_size}")
        if not 1 <= self.inference.execute <= network.chunk_length:
            raise ValueError(f"inference.execute: {self.inference.execute}, must be 1 to {network.chunk_length}")

    def spec(self, content_hash: str, *, context_size: int = 0) -> PolicySpec:
        """Return the policy's contract."""
        return PolicySpec(
            id=self.id,
            revision=self.revision,
            content_hash=content_hash,
            cameras=self.cameras,
            state=self.state,
            action=self.action,
            control_hz=self.control_hz,
            chunk_length=self.network.chunk_length,
            execute=self.inference.execute,
            integration_steps=self.inference.integration_steps,
            supports_rtc=True,
            supports_seed=True,
            supports_noise=True,
            supports_summary=True,
            context_size=context_size,
            follows_path=self.path,
            normalization=NORMALIZATION,
        )


def save_checkpoint(folder: Path, config: CheckpointConfig, network: FlowVLANetwork, *, card: str) -> None:
    """Write a checkpoint folder.

    Args:
        card: the model card, Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": FORMAT})
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def load_checkpoint(folder: Path) -> tuple[CheckpointConfig, FlowVLANetwork, str]:
    """Read a checkpoint folder.

    Returns:
        the configuration, the network (CPU, float32, evaluation mode) and the content hash: SHA-256, hex, over the
        weights and the configuration.

    Raises:
        FileNotFoundError: naming the file that the folder lacks.
        ValueError: where the configuration or the weights are damaged or do not fit each other.
    """
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"checkpoint: the folder {folder.name!r} has no {name}")
    config = _read_config(folder / CONFIG)
    network = FlowVLANetwork(config.network)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"checkpoint: {WEIGHTS} is damaged") from error
    except RuntimeError as error:
        raise ValueError(f"checkpoint: {WEIGHTS} does not fit the sizes in {CONFIG}: {error}") from error
    return config, network.eval(), content_hash(folder)


def content_hash(folder: Path) -> str:
    """Return the SHA-256, hex, of the names and bytes of the weights and the configuration (not of the card)."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        data = (folder / name).read_bytes()
        digest.update(f"{name}:{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def _read_config(path: Path) -> CheckpointConfig:
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"checkpoint: {CONFIG} is not valid JSON") from error
    try:
        return TypeAdapter(CheckpointConfig).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"checkpoint: {CONFIG}: {where}: {first['msg']}") from error
