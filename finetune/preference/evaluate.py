"""Ask a labeller about pairs whose truth is known, and judge its labels."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from finetune.preference.plots import calibration_figure
from models.preference.metrics import Calibration, Labelled, calibration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from clients.preference_messages import PreferenceLabel
    from clients.reward_messages import ModelIdentity
    from finetune.preference.judges import AskOptions, PairJudge
    from finetune.preference.material import TruePair


@dataclass(frozen=True, kw_only=True)
class PreferenceEvaluation:
    """What was found.

    Attributes:
        whole: over all pairs; `groups`: by task, of those with enough pairs.
        least_mass: least probability, over all answers, that the next token was a label; None where there is none.
    """

    model: ModelIdentity
    options: AskOptions
    pairs: tuple[TruePair, ...]
    labels: tuple[PreferenceLabel, ...]
    whole: Calibration
    groups: dict[str, Calibration]
    abstained: int
    unparsed: int
    least_mass: float | None


def evaluate(
    judge: PairJudge,
    pairs: Sequence[TruePair],
    options: AskOptions,
    *,
    report: Callable[[int, int], None] | None = None,
) -> PreferenceEvaluation:
    """Ask and judge.

    Args:
        report: told pairs labelled, of how many.

    Raises:
        RoboserveError: the labeller's refusal.
        ValueError: fewer than three pairs differ in their true values.
    """
    labels: list[PreferenceLabel] = []
    for start in range(0, len(pairs), judge.batch):
        labels += judge.label([item.pair for item in pairs[start : start + judge.batch]], options)
        if report is not None:
            report(len(labels), len(pairs))
    found = [_labelled(pair, label) for pair, label in zip(pairs, labels, strict=True)]
    groups: dict[str, list[Labelled]] = {}
    for pair, item in zip(pairs, found, strict=True):
        groups.setdefault(pair.group, []).append(item)
    masses = [label.mass for label in labels if label.mass is not None]
    return PreferenceEvaluation(
        model=judge.model,
        options=options,
        pairs=tuple(pairs),
        labels=tuple(labels),
        whole=calibration(found),
        groups={name: calibration(items) for name, items in groups.items() if len(groups) > 1 and _enough(items)},
        abstained=sum(label.abstained for label in labels),
        unparsed=sum(label.unparsed for label in labels),
        least_mass=min(masses, default=None),
    )


def write(found: PreferenceEvaluation, folder: Path) -> list[Path]:
    """Write `preferences.json`, with every pair's label, and `preferences.png`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "goal": item.pair.goal,
            "group": item.group,
            "values": list(item.values),
            "keys": list(label.keys),
            "label": label.label,
            "chances": list(label.chances),
            "order_gap": label.order_gap,
            "source": label.source,
            "replies": [asdict(reply) for reply in label.replies],
        }
        for item, label in zip(found.pairs, found.labels, strict=True)
    ]
    document = {
        "model": asdict(found.model),
        "options": asdict(found.options),
        "whole": asdict(found.whole),
        "groups": {name: asdict(group) for name, group in found.groups.items()},
        "abstained": found.abstained,
        "unparsed": found.unparsed,
        "least_label_mass": found.least_mass,
        "pairs": rows,
    }
    data, plot = folder / "preferences.json", folder / "preferences.png"
    data.write_text(json.dumps(_plain(document), indent=1, allow_nan=False) + "\n", "utf-8")
    calibration_figure(found.whole, found.model.id).savefig(plot, dpi=150)
    return [data, plot]


def _labelled(pair: TruePair, label: PreferenceLabel) -> Labelled:
    first, second = pair.values
    return Labelled(
        first_value=first,
        second_value=second,
        label=label.label,
        chances=label.chances,
        towards_first_shown=label.towards_first_shown,
        order_gap=label.order_gap,
    )


def _enough(items: Sequence[Labelled]) -> bool:
    return sum(item.first_value != item.second_value for item in items) >= 3


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: what could not be counted is null."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
