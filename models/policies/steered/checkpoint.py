"""The checkpoint folder of a steered policy: the frozen policy in `base`, the high-level actor, and how they fit.

`config.json` names the base by id, revision and content hash, and a folder whose base is another is refused.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.folders import files_hash
from models.policies.steered.actor import ChoiceActor
from models.policies.steered.base import open_flow
from models.policies.steered.choice import ChoiceSpace, Playing  # noqa: TC001  pydantic reads them at run time

if TYPE_CHECKING:
    from pathlib import Path

    from models.policies.state_flow.policy import SteerableFlow

CONFIG, WEIGHTS, BASE, CARD = "config.json", "model.safetensors", "base", "README.md"
FORMAT: Literal["roboserve-steered-1"] = "roboserve-steered-1"


@dataclass(frozen=True, kw_only=True)
class SteeredConfig:
    """Everything in `config.json`.

    Attributes:
        id, revision: name and version of the steered policy.
        base_hash: content hash of the frozen policy's folder.
        space: what the actor chooses.
        states, hidden: numbers of what the actor is shown (`SteerableFlow.look`), and its width.
        integration_steps: Euler steps that the actor was trained with.
        playing: of the actor's choices, the likeliest, or one drawn by the request's seed.
    """

    id: str
    revision: str
    base_hash: str
    space: ChoiceSpace
    states: int
    hidden: int
    integration_steps: int
    playing: Playing = "likeliest"
    format: Literal["roboserve-steered-1"] = FORMAT


_CONFIG = TypeAdapter(SteeredConfig)


def save_steered(folder: Path, config: SteeredConfig, actor: ChoiceActor, *, base: Path, card: str) -> None:
    """Write a checkpoint folder, with a copy of the frozen policy's folder in it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(base, folder / BASE, dirs_exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in actor.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n", "utf-8")
    (folder / CARD).write_text(card, "utf-8")


def load_steered(folder: Path) -> tuple[SteeredConfig, ChoiceActor, SteerableFlow, str]:
    """Return configuration, actor, frozen policy and the content's hash, which covers both.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the configuration is not valid, the weights do not fit it, or the base is another.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"checkpoint: the folder {folder.name!r} has no {name}")
    try:
        config = _CONFIG.validate_json((folder / CONFIG).read_bytes())
    except ValidationError as error:
        raise ValueError(f"checkpoint: {CONFIG} of {folder.name} is not valid: {error}") from error
    flow = open_flow(folder / BASE, steps=config.integration_steps)
    if flow.content_hash != config.base_hash:
        given, wanted = flow.content_hash[:12], config.base_hash[:12]
        raise ValueError(f"checkpoint: the base of {folder.name} has content {given}, its actor steers {wanted}")
    actor = ChoiceActor(config.states, config.space.parts, config.hidden)
    try:
        actor.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"checkpoint: {WEIGHTS} of {folder.name} does not fit {CONFIG}: {error}") from error
    own = files_hash([folder / CONFIG, folder / WEIGHTS, *sorted((folder / BASE).glob("*.*"))])
    return config, actor.eval().requires_grad_(requires_grad=False), flow, own
