"""Published weights made askable: their prompt, which is not ours to carry, is taken from an upstream package."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import yaml

from finetune.robometer.conversion.derive import asks, check, derive
from finetune.robometer.conversion.published import Published, inspect
from finetune.robometer.conversion.upstream import PACKAGES, Answer, Request, ask_upstream
from models.robometer.checkpoint import CONFIG, SETTINGS, RobometerSettings

if TYPE_CHECKING:
    from pathlib import Path

_ARCHITECTURES = ("RBM", "RFM")
_RECIPE = "config.yaml"
_RELEASED: dict[str, Any] = {
    "model.base_model_id": "Qwen/Qwen3-VL-4B-Instruct",
    "model.use_per_frame_progress_token": True,
    "data.use_multi_image": True,
    "loss.progress_loss_type": "discrete",
    "training.predict_pref_progress": True,
}
"""Settings of the released model's training that decide how it is asked and read."""
_READ_SO = ("model.use_per_frame_progress_token", "data.use_multi_image", "loss.progress_loss_type")
_HUB_METADATA = ".cache/huggingface/download/config.json.metadata"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What to convert, and by what.

    Attributes:
        folder: in the published layout.
        python: interpreter of an environment that has the upstream package.
        packages: those to look for there, in this order.
        out: folder to be made, its files linked to those of `folder` where the file system allows it; None writes into
            `folder` itself.
        id: name of the model; None takes it from a Hub cache's path, else the folder's name.
        revision: of the weights; None takes it from what the Hub's client left.
        timeout: seconds that the package gets.
    """

    folder: Path
    python: Path
    packages: tuple[str, ...] = PACKAGES
    out: Path | None = None
    id: str | None = None
    revision: str | None = None
    timeout: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What came of it: the folder, its settings, what its weights are, who rendered, and prompts found the same."""

    folder: Path
    settings: RobometerSettings
    published: Published
    answer: Answer
    checked: int


def convert(config: ConvertConfig) -> Converted:
    """Check a folder of published weights and write its `robometer.json`.

    Raises:
        FileNotFoundError, ValueError: the folder is not in the published layout or its weights are not those of its
            configuration; the package is not there or not as expected; its prompts, text and tokens, are not what the
            template read off them gives; or the revision is not known.
    """
    from transformers import AutoTokenizer

    folder = config.folder
    raw = _read_config(folder)
    model_id, revision = identity(config)
    published = inspect(folder)
    vision = raw["vision_config"]
    base, progress_in_preference = _recipe(folder)
    request = Request(
        folder=str(folder.resolve()),
        packages=config.packages,
        base_model_id=base,
        progress_in_preference=progress_in_preference,
        patch=vision["patch_size"],
        merge=vision["spatial_merge_size"],
        asks=asks(),
    )
    answer = ask_upstream(config.python, request, timeout=config.timeout)
    template = derive(answer.renderings)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    checked = check(template, answer.renderings, tokenizer, unit=request.patch * request.merge)
    settings = RobometerSettings(id=model_id, revision=revision, prompt=template, image_size=None, bins=published.bins)
    target = folder if config.out is None else _linked(folder, config.out)
    part = target / f"{SETTINGS}.new"
    part.write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
    part.replace(target / SETTINGS)
    return Converted(folder=target, settings=settings, published=published, answer=answer, checked=checked)


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"checkpoint: the folder {folder.name!r} has no {CONFIG}")
    try:
        raw = json.loads((folder / CONFIG).read_text("utf-8"))
        named = tuple(raw.get("architectures") or ())
        sizes = (raw["vision_config"]["patch_size"], raw["vision_config"]["spatial_merge_size"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint: {CONFIG} is not a Qwen3-VL's") from error
    if not set(named) & set(_ARCHITECTURES) or not all(isinstance(size, int) for size in sizes):
        raise ValueError(
            f"checkpoint: {CONFIG}: architectures {list(named)}, must be one of {', '.join(_ARCHITECTURES)}"
        )
    found: dict[str, Any] = raw
    return found


def identity(config: ConvertConfig) -> tuple[str, str]:
    """Return id and revision: as given, else as a Hub cache's path or a Hub download's notes say.

    Raises:
        ValueError: the revision is not known.
    """
    name, revision = config.id, config.revision
    whole = config.folder.absolute()
    if whole.parent.name == "snapshots" and whole.parents[1].name.startswith("models--"):
        name = name or whole.parents[1].name.removeprefix("models--").replace("--", "/")
        revision = revision or whole.name
    noted = config.folder / _HUB_METADATA
    if revision is None and noted.is_file():
        first = noted.read_text("utf-8").split("\n", 1)[0].strip()
        revision = first if _COMMIT.fullmatch(first) else None
    if revision is None:
        raise ValueError("revision: not known; say which commit or version these weights are (--revision)")
    return name or whole.name, revision


def _recipe(folder: Path) -> tuple[str, bool]:
    """Return the base model and whether preference prompts ask for progress, from the published training recipe.

    Raises:
        ValueError: the weights read frames in another way than by a token after each, or give no bins.
    """
    path = folder / _RECIPE
    if not path.is_file():
        return _RELEASED["model.base_model_id"], _RELEASED["training.predict_pref_progress"]
    try:
        raw = yaml.load(path.read_text("utf-8"), Loader=_Plain)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"checkpoint: {_RECIPE} is not valid YAML") from error

    def setting(name: str) -> Any:
        section, _, own = name.partition(".")
        part = raw.get(section) if isinstance(raw, dict) else None
        return part.get(own, _RELEASED[name]) if isinstance(part, dict) else _RELEASED[name]

    for name in _READ_SO:
        if setting(name) != _RELEASED[name]:
            raise ValueError(f"checkpoint: {_RECIPE}: {name} is {setting(name)!r}, must be {_RELEASED[name]!r}")
    return str(setting("model.base_model_id")), bool(setting("training.predict_pref_progress"))


class _Plain(yaml.SafeLoader):
    """Reads plain values; what is tagged as an object of some program is passed over."""


_Plain.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def _linked(folder: Path, out: Path) -> Path:
    """Make `out` hold the files of `folder`: hard links, or copies where the file system has none."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        target = out / path.name
        if path.is_file() and path.name != SETTINGS and not target.exists():
            try:
                os.link(path.resolve(), target)
            except OSError:
                shutil.copyfile(path, target)
    return out
