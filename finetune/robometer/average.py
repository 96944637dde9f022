"""One model from several runs that started from each other: the mean of their weights.

Runs along one chain lie in one basin, where a mean of weights does what a mean of their answers would, at the price of
one (stochastic weight averaging, arXiv 1803.05407; model soups, arXiv 2203.05482).
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from models.robometer.checkpoint import CARD, SETTINGS, WEIGHTS, read_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CHECKPOINT = "checkpoint"


def average(runs: Sequence[Path], out: Path, *, revision: str) -> Path:
    """Write a run folder whose checkpoint is the mean of others', and return the checkpoint's folder.

    Args:
        runs: run folders, the one that the others come before first; its prompt and tokenizer are taken.
        revision: of the model that comes out.

    Raises:
        FileNotFoundError: one of them has no checkpoint.
        ValueError: fewer than two, or their weights have other names or shapes.
        FileExistsError: `out` is there already.
    """
    if len(runs) < 2:
        raise ValueError(f"runs: {len(runs)}, needs 2 or more")
    found = [read_weights(run / CHECKPOINT) for run in runs]
    shapes = [{name: value.shape for name, value in weights.items()} for weights in found]
    for run, shape in zip(runs, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(f"runs: the weights of {run.name} have other names or shapes than those of {runs[0].name}")
    folder = out / CHECKPOINT
    shutil.copytree(runs[0] / CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.png", "evaluation.json", CARD))
    settings = json.loads((folder / SETTINGS).read_text("utf-8"))
    (folder / SETTINGS).write_text(json.dumps({**settings, "revision": revision}, indent=2) + "\n", "utf-8")
    mean = {
        name: torch.stack([weights[name].double() for weights in found]).mean(dim=0).to(value.dtype).contiguous()
        for name, value in found[0].items()
    }
    save_file(mean, folder / WEIGHTS, metadata={"format": "pt"})
    (out / "config.json").write_text(
        json.dumps({"average": [str(run) for run in runs], "revision": revision}, indent=2), "utf-8"
    )
    return folder
