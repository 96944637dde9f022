"""A ReWiND checkpoint: one folder.

- `config.json`: the architecture's name and the network's sizes; `model.safetensors`: the network.
- `rewind.json`: id, revision, the encoders, frame policy.
- `tower/`: the image encoder, where it is one that the checkpoint carries.
- `README.md`: the card.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.folders import files_hash
from models.rewards.frames import FramePolicy
from models.rewind.encoders import (
    ImageSettings,
    TextSettings,
    deciding_files,
    encoder_folder,
    load_image_encoder,
    load_text_encoder,
)
from models.rewind.network import RewindNetwork, RewindSizes

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from models.rewind.encoders import ImageEncoder, TextEncoder

SETTINGS, CONFIG, WEIGHTS, CARD = "rewind.json", "config.json", "model.safetensors", "README.md"
ARCHITECTURE: Literal["rewind"] = "rewind"
FRAME_POLICY = "linspace-16-pad"
"""Short clips repeat their last frame, so the last value is that of slot 16 whatever the clip's length, as in the
reference's offline labels; longer ones are rounded where the reference rounds down (`floor-16` does too)."""

Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class RewindSettings:
    """Everything in `rewind.json`.

    Attributes:
        id, revision: name and version of the model.
        image, text: the frozen encoders.
        frame_policy: the one it was trained for.
        instruction_chars: longest instruction.
    """

    id: str
    revision: str
    image: ImageSettings
    text: TextSettings = field(default_factory=TextSettings)
    frame_policy: str = FRAME_POLICY
    instruction_chars: int = 512
    format: Literal["roboserve-rewind-1"] = "roboserve-rewind-1"

    def __post_init__(self) -> None:
        FramePolicy.parse(self.frame_policy)


@dataclass(frozen=True, kw_only=True)
class RewindConfig:
    """Everything in `config.json`."""

    architecture: Literal["rewind"] = ARCHITECTURE
    sizes: RewindSizes


@dataclass(frozen=True, kw_only=True)
class RewindCheckpoint:
    """A checkpoint in memory: on the CPU, in evaluation mode, in float32."""

    settings: RewindSettings
    network: RewindNetwork
    image: ImageEncoder
    text: TextEncoder
    content_hash: str


def save_checkpoint(
    folder: Path, settings: RewindSettings, network: RewindNetwork, *, card: str, dtype: torch.dtype
) -> None:
    """Write a checkpoint folder, but for the image encoder that it may carry.

    Args:
        card: the model card, Markdown.
        dtype: of the stored weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().to(dtype).contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    for name, part in ((CONFIG, RewindConfig(sizes=network.sizes)), (SETTINGS, settings)):
        (folder / name).write_text(json.dumps(asdict(part), indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def require_files(folder: Path) -> None:
    """Check that the files without which nothing can be loaded are there, the encoders' among them.

    Raises:
        FileNotFoundError: naming what is missing, and the extra that brings it where one does.
        ValueError: the settings are damaged.
    """
    for name in (CONFIG, SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"checkpoint: the folder {folder.name!r} has no {name}")
    settings = _read(folder / SETTINGS, RewindSettings)
    for encoder in (settings.image.folder, settings.text.folder):
        encoder_folder(encoder, folder)


def load_checkpoint(folder: Path) -> RewindCheckpoint:
    """Read a checkpoint folder and the encoders that it names; nothing is fetched.

    Raises:
        FileNotFoundError: see `require_files`.
        ValueError: where configuration, weights and encoders are damaged or do not fit each other.
    """
    require_files(folder)
    settings, sizes = _read(folder / SETTINGS, RewindSettings), _read(folder / CONFIG, RewindConfig).sizes
    network = RewindNetwork(sizes)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"checkpoint: {WEIGHTS} is damaged") from error
    except RuntimeError as error:
        raise ValueError(f"checkpoint: the weights do not fit {CONFIG}: {error}") from error
    image, text = load_image_encoder(settings.image, folder), load_text_encoder(settings.text, folder)
    if (image.width, text.width) != (sizes.image_width, sizes.text_width):
        raise ValueError(
            f"checkpoint: encoders of {image.width} and {text.width} numbers for a network of {sizes.image_width} and "
            f"{sizes.text_width}"
        )
    return RewindCheckpoint(
        settings=settings,
        network=network.eval(),
        image=image,
        text=text,
        content_hash=content_hash(folder, settings),
    )


def content_hash(folder: Path, settings: RewindSettings) -> str:
    """Return the SHA-256, hex, of all that decides an answer: network, settings, and the encoders wherever they lie."""
    decides = [folder / name for name in (CONFIG, SETTINGS, WEIGHTS)]
    for encoder in (settings.image.folder, settings.text.folder):
        decides += deciding_files(encoder_folder(encoder, folder))
    return files_hash(decides)


def _read(path: Path, kind: type[Read]) -> Read:
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"checkpoint: {path.name} is not valid JSON") from error
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"checkpoint: {path.name}: {where}: {first['msg']}") from error
