"""Whether a folder holds a published Robometer, checked by names and shapes, without loading its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from models.robometer.checkpoint import CONFIG, empty_network, weight_files
from models.robometer.prompt import ASKING_TOKENS

if TYPE_CHECKING:
    from pathlib import Path

Shapes = dict[str, tuple[int, ...]]

_EMBEDDINGS = "model.language_model.embed_tokens.weight"
_BINS = "progress_head.4.weight"
_FEW = 4


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the headers of a folder's weights say.

    Attributes:
        tensors, parameters: how many; `dtypes`: of the tensors; `bytes`: size of the files.
        vocabulary: rows of the embedding table; `bins`: of the progress head.
    """

    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    bytes: int
    vocabulary: int
    bins: int


def inspect(folder: Path) -> Published:
    """Check that a folder's weights are exactly those that its configuration asks for, and its tokenizer theirs.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: tensors are missing, unexpected or of other shapes; or the tokenizer and the embeddings differ in
            size; or the tokens that ask are not the last of the tokenizer, in their order.
    """
    from transformers import AutoTokenizer

    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"checkpoint: the folder {folder.name!r} has no {CONFIG}")
    files = weight_files(folder)
    shapes, dtypes = _headers(folder, files)
    for name in (_EMBEDDINGS, _BINS):
        if name not in shapes:
            raise ValueError(f"checkpoint: the weights lack {name}, so this is no Robometer over Qwen3-VL")
    bins = shapes[_BINS][0]
    _compare(
        {name: tuple(value.shape) for name, value in empty_network(folder, bins=bins).state_dict().items()}, shapes
    )
    vocabulary = shapes[_EMBEDDINGS][0]
    _check_tokens(AutoTokenizer.from_pretrained(folder, local_files_only=True), vocabulary)
    return Published(
        tensors=len(shapes),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        dtypes=tuple(sorted(dtypes)),
        bytes=sum((folder / name).stat().st_size for name in files),
        vocabulary=vocabulary,
        bins=bins,
    )


def _headers(folder: Path, files: list[str]) -> tuple[Shapes, set[str]]:
    shapes: Shapes = {}
    dtypes: set[str] = set()
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  it is no mapping
                    part = opened.get_slice(name)
                    shapes[name] = tuple(part.get_shape())
                    dtypes.add(part.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"checkpoint: {file} is damaged") from error
    return shapes, dtypes


def _compare(wanted: Shapes, found: Shapes) -> None:
    complaints = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of another shape": sorted(
            f"{name} ({_sizes(found[name])}, must be {_sizes(wanted[name])})"
            for name in wanted.keys() & found.keys()
            if wanted[name] != found[name]
        ),
    }
    told = [f"{len(names)} {what}: {_few(names)}" for what, names in complaints.items() if names]
    if told:
        raise ValueError(f"checkpoint: the weights are not those that {CONFIG} asks for; {'; '.join(told)}")


def _check_tokens(tokenizer: Any, vocabulary: int) -> None:
    if len(tokenizer) != vocabulary:
        raise ValueError(f"checkpoint: {vocabulary} embeddings for a tokenizer of {len(tokenizer)} tokens")
    last = tuple(tokenizer.convert_ids_to_tokens(list(range(vocabulary - len(ASKING_TOKENS), vocabulary))))
    if last != ASKING_TOKENS:
        raise ValueError(
            f"tokenizer: its last tokens are {', '.join(map(str, last))}, must be {', '.join(ASKING_TOKENS)}"
        )


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _few(names: list[str]) -> str:
    return ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")
