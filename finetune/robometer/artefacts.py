"""What a finetuning run leaves: the adapter or checkpoint with its card, curves for TensorBoard, and a plot."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from models.folders import checkpoint_folder
from models.peft_files import PREFIX, WEIGHTS
from models.robometer.adapter import (
    ADAPTER_SETTINGS,
    AdapterBase,
    AdapterSettings,
)
from models.robometer.checkpoint import CARD, content_hash, empty_network, read_weights, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from finetune.robometer.finetune import FinetuneConfig
    from finetune.robometer.sources import Clips
    from models.robometer.checkpoint import RobometerCheckpoint

_NETWORK = "network."
_CURVES = ("loss", "preference", "progress", "success")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run was and is; `dtype`: torch dtype of the base's file, in which full weights are stored."""

    config: FinetuneConfig
    base: RobometerCheckpoint
    clips: Clips
    processes: int
    dtype: Any

    @property
    def model_id(self) -> str:
        """Name of the model that came out."""
        return self.config.model_id or f"{self.base.settings.id}-{self.config.out.name}"


def write_adapter(folder: Path, outcome: Outcome, lora: Any, weights: Mapping[str, Tensor]) -> None:
    """Write an adapter's folder.

    Args:
        lora: PEFT's configuration of it.
        weights: trained ones by their names in a `PairReader`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = outcome.base.settings
    name = outcome.config.base
    where = name if name.startswith("zoo:") else str(Path(name).resolve())
    base = AdapterBase(name=where, id=settings.id, revision=settings.revision, content_hash=outcome.base.content_hash)
    lora.base_model_name_or_path, lora.revision, lora.inference_mode = where, settings.revision, True
    lora.save_pretrained(folder)
    tensors = {_peft_name(name): value.detach().cpu().float().contiguous() for name, value in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    described = asdict(AdapterSettings(id=outcome.model_id, revision=outcome.config.revision, base=base))
    (folder / ADAPTER_SETTINGS).write_text(json.dumps(described, indent=2) + "\n", "utf-8")


def write_full(folder: Path, outcome: Outcome, weights: Mapping[str, Tensor]) -> None:
    """Write a checkpoint's folder: the base's weights with the trained ones in their places."""
    settings = replace(outcome.base.settings, id=outcome.model_id, revision=outcome.config.revision)
    base = checkpoint_folder(outcome.config.base)
    network = empty_network(base, bins=settings.bins)
    trained = {name.removeprefix(_NETWORK): value for name, value in weights.items()}
    network.load_state_dict(read_weights(base) | trained, assign=True)
    save_checkpoint(folder, settings, network, outcome.base.tokenizer, card="", dtype=outcome.dtype)


def write_report(folder: Path, outcome: Outcome) -> None:
    """Write the card and draw the losses, from the metrics of the run folder."""
    out = outcome.config.out
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    _plot(out / "loss.png", rows)
    shutil.copyfile(out / "loss.png", folder / "loss.png")
    (folder / CARD).write_text(_card(folder, outcome, rows[-1]), "utf-8")


def _peft_name(name: str) -> str:
    """Return what PEFT calls a weight on disk, where the adapter's name in memory does not stand."""
    own = name.removeprefix(_NETWORK).replace(".modules_to_save.default.", ".")
    return PREFIX + own.replace(".default.", ".")


def _plot(path: Path, rows: list[dict[str, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in _CURVES:
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=name, lw=2 if name == "loss" else 1)
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None), title=path.parent.name)
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=120)


def _card(folder: Path, outcome: Outcome, last: Mapping[str, float]) -> str:
    config, settings = outcome.config, outcome.base.settings
    kind = "A LoRA adapter of" if config.mode == "lora" else "Finetuned from"
    head = (
        f"# {outcome.model_id}, revision {config.revision}\n\n"
        f"{kind} {settings.id}, revision {settings.revision} (content hash `{outcome.base.content_hash}`), on "
        f"{len(outcome.clips.episodes)} episodes. Not evaluated yet: `roboserve evaluate reward` says how well it "
        "judges, on episodes that it was not trained on.\n"
    )
    losses = (
        f"Last losses (step {last['step']:.0f}, {last['seconds'] / 60:.1f} minutes, processes: {outcome.processes}): "
        f"{', '.join(f'{name} {last[name]:.4f}' for name in _CURVES)}. Code: {_commit()}.\n\n![losses](loss.png)\n"
    )
    return "\n".join((head, _data_table(outcome), _recipe_table(outcome), losses, _use(folder, outcome)))


def _data_table(outcome: Outcome) -> str:
    lines = ["## Data\n", "| dataset | cutoff | cameras | episodes | frames | too short | digest |", "|" + "---|" * 7]
    for part in outcome.clips.summaries:
        episodes = ", ".join(f"{count} {quality}" for quality, count in part.qualities.items())
        name = part.source.name + (" (preference only)" if part.source.preference_only else "")
        lines.append(
            f"| {name} | {part.source.cutoff:g} | {', '.join(part.cameras)} | {episodes} | {part.frames} | "
            f"{part.skipped} | `{part.digest[:12]}` |"
        )
    lines += [
        f"\nAll episodes of {part.source.name} say {part.generic!r}, which names no task."
        for part in outcome.clips.summaries
        if part.generic is not None
    ]
    return "\n".join(lines) + "\n"


def _recipe_table(outcome: Outcome) -> str:
    config = outcome.config
    rows = {name: value for name, value in config.identity.items() if name not in ("lora", "sampler")}
    rows |= {f"sampler.{name}": value for name, value in asdict(config.sampler).items()}
    if config.mode == "lora":
        rows |= {f"lora.{name}": value for name, value in asdict(config.lora).items()}
    shown = ((name, ", ".join(value) if isinstance(value, tuple) else value) for name, value in rows.items())
    table = "\n".join(f"| {name} | {value} |" for name, value in shown)
    return f"## Recipe\n\n| setting | value |\n|---|---|\n{table}\n"


def _use(folder: Path, outcome: Outcome) -> str:
    text = f"## Use\n\n`checkpoint: {folder}` of `models.robometer.reward:RobometerReward`"
    if outcome.config.mode == "full":
        return f"{text}; content hash `{content_hash(folder)}`.\n"
    return f"{text} merges it into its base at load; `base:` says where that lies, if not where it was trained from.\n"


def _commit() -> str:
    """Return the commit of the code, or the package's version where it is no checkout."""
    git, root = shutil.which("git"), Path(__file__).resolve().parents[2]
    if git is not None and (root / ".git").exists():
        asked = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603  git itself
        if found.returncode == 0:
            return f"commit {found.stdout.strip()}"
    try:
        return f"roboserve {version('roboserve')}"
    except PackageNotFoundError:
        return "no checkout and no installed package"
