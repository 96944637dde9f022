"""A Robometer checkpoint: a folder in the published layout, and in it what the model needs to be asked rightly.

- `config.json`: the Qwen3-VL configuration; `*.safetensors`: weights, one file or shards with an index;
  `tokenizer.json` and its kin: the tokenizer, whose last five tokens are the asking ones.
- `robometer.json`: id, revision, image size, frame policy and prompt. Our recipes write it; for published weights,
  whose wording is not ours to carry, `roboserve convert robometer` does.
- `README.md`: the card.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.folders import files_hash
from models.rewards.frames import FramePolicy
from models.robometer.prompt import PromptTemplate  # noqa: TC001  pydantic reads it
from models.robometer.readout import BINS
from models.robometer.sequence import Sequencer

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from models.robometer.network import RobometerNetwork

SETTINGS, CONFIG, WEIGHTS, INDEX, CARD = (
    "robometer.json",
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "README.md",
)
FORMAT: Literal["roboserve-robometer-1"] = "roboserve-robometer-1"
Described = TypeVar("Described")


@dataclass(frozen=True, kw_only=True)
class RobometerSettings:
    """Everything in `robometer.json`.

    Attributes:
        id, revision: name and version of the model.
        prompt: the wording that the weights were trained on.
        image_size: (height, width) that frames are brought to without distortion; None keeps each frame's own size, in
            multiples of the language model's patch.
        max_frames: most frames that one query may show; `frame_policy`: the one it was trained for.
        bins: progress bins.
    """

    id: str
    revision: str
    prompt: PromptTemplate
    image_size: tuple[int, int] | None
    max_frames: int = 64
    frame_policy: str = "linspace-8"
    bins: int = BINS
    instruction_chars: int = 512
    format: Literal["roboserve-robometer-1"] = FORMAT

    def __post_init__(self) -> None:
        FramePolicy.parse(self.frame_policy)
        if self.max_frames < 1 or self.bins < 2:
            raise ValueError(f"max_frames {self.max_frames} must be 1 or more, bins {self.bins} 2 or more")


@dataclass(frozen=True, kw_only=True)
class RobometerCheckpoint:
    """A checkpoint in memory: the network on the CPU, in evaluation mode, in the dtype of its file."""

    settings: RobometerSettings
    network: RobometerNetwork
    sequencer: Sequencer
    tokenizer: Any
    content_hash: str


def save_checkpoint(
    folder: Path, settings: RobometerSettings, network: RobometerNetwork, tokenizer: Any, *, card: str, dtype: Any
) -> None:
    """Write a checkpoint folder.

    Args:
        card: the model card, Markdown.
        dtype: torch dtype of the stored weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().to(dtype).contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = network.model.config.to_dict()
    config["architectures"] = ["RBM"]
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    (folder / SETTINGS).write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def require_files(folder: Path) -> None:
    """Check that the files without which nothing can be loaded are there.

    Raises:
        FileNotFoundError: naming the file that the folder lacks, and what writes it.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"checkpoint: the folder {folder.name!r} has no {CONFIG}")
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(
            f"checkpoint: the folder {folder.name!r} has no {SETTINGS}, so its prompt is not known; for published "
            "weights `roboserve convert robometer` writes it"
        )
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"checkpoint: the folder {folder.name!r} has no weights (*.safetensors)")


def load_checkpoint(folder: Path) -> RobometerCheckpoint:
    """Read a checkpoint folder; nothing is fetched.

    Raises:
        FileNotFoundError: naming the file that the folder lacks, and what writes it.
        ValueError: where the configuration, the weights, the tokenizer and the prompt are damaged or do not fit.
    """
    from transformers import AutoTokenizer

    require_files(folder)
    settings = read_settings(folder / SETTINGS, RobometerSettings)
    network = empty_network(folder, bins=settings.bins)
    try:
        network.load_state_dict(read_weights(folder), assign=True)
    except RuntimeError as error:
        raise ValueError(f"checkpoint: the weights do not fit {CONFIG}: {error}") from error
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rows = network.model.get_input_embeddings().num_embeddings
    if rows != len(tokenizer):
        raise ValueError(f"checkpoint: {rows} embeddings for a tokenizer of {len(tokenizer)} tokens")
    return RobometerCheckpoint(
        settings=settings,
        network=network.eval(),
        sequencer=Sequencer(tokenizer, settings.prompt),
        tokenizer=tokenizer,
        content_hash=content_hash(folder),
    )


def empty_network(folder: Path, *, bins: int) -> RobometerNetwork:
    """Return the network of a folder's configuration, its parameters without memory until weights are assigned."""
    from accelerate import init_empty_weights
    from transformers import Qwen3VLConfig

    from models.robometer.network import RobometerNetwork

    config = Qwen3VLConfig.from_pretrained(folder, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        return RobometerNetwork(config, bins=bins)


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that hold a folder's weights: one, or the shards that an index names.

    Raises:
        FileNotFoundError, ValueError: one of them is not there, or the index is damaged.
    """
    names = [WEIGHTS]
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"checkpoint: {INDEX} is damaged") from error
    for name in names:
        if "/" in name or not (folder / name).is_file():
            raise FileNotFoundError(f"checkpoint: the folder {folder.name!r} has no {name}")
    return names


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file or of the shards that an index names.

    They are copies: a file that is written anew pulls the ground from under what is mapped from it.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged.
    """
    weights: dict[str, Tensor] = {}
    for name in weight_files(folder):
        try:
            weights.update({key: tensor.clone() for key, tensor in load_file(folder / name).items()})
        except SafetensorError as error:
            raise ValueError(f"checkpoint: {name} is damaged") from error
    return weights


def content_hash(folder: Path) -> str:
    """Return the SHA-256, hex, of all that decides an answer: weights, configuration, tokenizer and prompt."""
    weights = sorted(folder.glob("*.safetensors"))
    return files_hash((*weights, *(folder / name for name in (CONFIG, SETTINGS, "tokenizer.json"))))


def read_settings(path: Path, kind: type[Described]) -> Described:
    """Read a dataclass from a JSON file.

    Raises:
        ValueError: naming the file and the field that is wrong.
    """
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
