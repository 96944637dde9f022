"""A prompt template read off prompts that somebody else rendered, by what differs between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.robometer.conversion.upstream import Ask, Rendering
from models.robometer.images import snapped
from models.robometer.prompt import IMAGE_TOKEN, PROGRESS_TOKEN, PromptTemplate
from models.robometer.sequence import Sequencer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from models.robometer.sequence import Grid

_TASK, _OTHER = "move the blue cup to the shelf", 'Turn 2 knobs: {left} & "right", 50% each'
_PLAIN, _ODD = (64, 96), (50, 112)
COUNTS = (1, 4, 8)
"""Frames of the clips whose renderings must come out the same."""


def asks() -> tuple[Ask, ...]:
    """Return the prompts that a template is read off and checked against: two tasks, two sizes, several lengths."""
    found = []
    for count in (2, 3, *COUNTS):
        for task, size in ((_TASK, _PLAIN), (_OTHER, _ODD)):
            clip = (count, *size)
            found.append(Ask(kind="progress", task=task, first=clip))
            found.append(Ask(kind="preference", task=task, first=clip, second=clip))
    return tuple(found)


def derive(renderings: Sequence[Rendering]) -> PromptTemplate:
    """Return the template that the renderings of `asks` come from; without preferences among them it has none.

    The number of a picture is what differs between the second and the third frame, the task's place is where its words
    stand. Whether the template gives the very same prompts back is `check`'s to say.

    Raises:
        ValueError: the prompts are not put together as a template can say.
    """
    known = {(one.ask.kind, one.ask.task, one.ask.first[0]): one.text for one in renderings}
    if ("progress", _TASK, 3) not in known:
        raise ValueError("upstream prompt: the package rendered no progress prompt")
    parts = _split(known["progress", _TASK, 3], 3)
    second, third = (_cut(part)[1] for part in parts[1:3])
    opening = _numbered(second, third)
    closing = _cut(parts[1])[0]
    if any(_cut(part)[0] != closing for part in parts[2:]):
        raise ValueError("upstream prompt: frames do not all end alike")
    pieces = {
        "frame": f"{opening}{{image}}{closing}",
        "progress_before": _before(parts[0], opening),
        "progress_after": _cut(parts[-1])[1],
        "preference_before": "",
        "preference_between": "",
        "preference_after": "",
    }
    if ("preference", _TASK, 2) in known:
        parts = _split(known["preference", _TASK, 2], 4)
        pieces |= {
            "preference_before": _before(parts[0], opening),
            "preference_between": _without(_cut(parts[2])[1], opening.replace("{number}", "3")),
            "preference_after": _cut(parts[-1])[1],
        }
    return PromptTemplate(**pieces)


def check(template: PromptTemplate, renderings: Sequence[Rendering], tokenizer: Any, *, unit: int) -> int:
    """Check that the template gives the same text and the same tokens as every rendering; returns how many.

    Args:
        tokenizer: the checkpoint's, as it is loaded here.
        unit: side of a language-model token, pixels.

    Raises:
        ValueError: naming the first difference.
    """
    sequencer = Sequencer(tokenizer, template)
    for one in renderings:
        clips = [clip for clip in (one.ask.first, one.ask.second) if clip is not None]
        sizes = [snapped((height, width), unit) for frames, height, width in clips for _ in range(frames)]
        if tuple(sizes) != one.images:
            differing = next((a, b) for a, b in zip(sizes, one.images, strict=False) if a != b)
            raise ValueError(f"upstream images: resized to {differing[1]}, here to {differing[0]}")
        where = f"{one.ask.kind} prompt of {one.ask.first[0]} frames"
        _same_text(_text(template, one.ask), one.text, where)
        grids = [[(height // unit, width // unit)] * frames for frames, height, width in _snapped(clips, unit)]
        _same_ids(_ids(sequencer, one.ask, grids), one.ids, tokenizer, where)
    return len(renderings)


def _text(template: PromptTemplate, ask: Ask) -> str:
    if ask.second is None:
        return template.progress(ask.task, [1] * ask.first[0])
    return template.preference(ask.task, [1] * ask.first[0], [1] * ask.second[0])


def _ids(sequencer: Sequencer, ask: Ask, grids: Sequence[Sequence[Grid]]) -> list[int]:
    asked = sequencer.progress(ask.task, grids[0]) if ask.second is None else sequencer.preference(ask.task, *grids)
    found: list[int] = asked.tolist()
    return found


def _snapped(clips: Iterable[tuple[int, int, int]], unit: int) -> list[tuple[int, int, int]]:
    return [(frames, *snapped((height, width), unit)) for frames, height, width in clips]


def _same_text(ours: str, theirs: str, where: str) -> None:
    if ours != theirs:
        at = _first_difference(ours, theirs)
        raise ValueError(
            f"upstream prompt: the {where} differs from what the template gives at character {at}: "
            f"{theirs[at : at + 20]!r} upstream, {ours[at : at + 20]!r} here"
        )


def _same_ids(ours: Sequence[int], theirs: Sequence[int], tokenizer: Any, where: str) -> None:
    if list(ours) == list(theirs):
        return
    at = _first_difference(ours, theirs)
    shown = [tokenizer.convert_ids_to_tokens(list(ids[at : at + 1])) for ids in (theirs, ours)]
    raise ValueError(
        f"token ids: the {where} differs at token {at} of {len(theirs)} upstream and {len(ours)} here: {shown[0]} "
        f"upstream, {shown[1]} here; is it another tokenizer?"
    )


def _first_difference(ours: Sequence[object], theirs: Sequence[object]) -> int:
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(ours), len(theirs)))


def _split(text: str, images: int) -> list[str]:
    parts = text.split(IMAGE_TOKEN)
    if len(parts) != images + 1:
        raise ValueError(f"upstream prompt: {len(parts) - 1} images in a prompt that shows {images}")
    return parts


def _cut(part: str) -> tuple[str, str]:
    """Return what a frame ends with, up to its progress token, and what follows."""
    ending, token, after = part.partition(PROGRESS_TOKEN)
    if not token:
        raise ValueError(f"upstream prompt: no {PROGRESS_TOKEN} after an image")
    return ending + token, after


def _numbered(second: str, third: str) -> str:
    """Return how a frame begins, its number written as {number}."""
    if second == third:
        return second
    opening = second.replace("2", "{number}")
    if opening.count("{number}") != 1 or opening.replace("{number}", "3") != third:
        raise ValueError(f"upstream prompt: frames begin as {second[:40]!r} and {third[:40]!r}, not by their number")
    return opening


def _before(part: str, opening: str) -> str:
    text = _without(part, opening.replace("{number}", "1"))
    if text.count(_TASK) != 1:
        raise ValueError(f"upstream prompt: the task stands in it {text.count(_TASK)} times, must be once")
    return text.replace(_TASK, "{task}")


def _without(text: str, ending: str) -> str:
    if not text.endswith(ending):
        raise ValueError(f"upstream prompt: a clip begins with {text[-40:]!r}, its frames with {ending[:40]!r}")
    return text.removesuffix(ending)
