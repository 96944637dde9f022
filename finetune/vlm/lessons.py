"""What the embedded model is taught: to draw the gripper's way, and to tell which of two frames is nearer the goal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from finetune.vlm.augment import Jitter, drawn_map, mapped, relit
from finetune.vlm.conversations import Conversation
from finetune.vlm.embedded import PATH_PROMPT, PREFERENCE_PROMPT, answer_style
from finetune.vlm.material import TIE, moved
from finetune.vlm.words import goals, instructions, said
from models.hamster.answer import format_answer
from models.preference.contract import FIRST, SECOND, Pair
from models.preference.contract import TIE as NEITHER
from models.vlm.messages import user

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from finetune.vlm.material import Frames
    from models.hamster.path import Path
    from models.vlm.messages import Message

_IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
_SAME_LOOK, _TIES = 0.7, 0.2
_TRIES = 30
HINT_POINTS = 6
"""Points of a way, at equal shares of its length, that a network is hinted at."""


def path_answer(path: Path) -> str:
    """Return the answer that draws a path; the state of its first point is always told, whatever a reader assumes."""
    return format_answer(path, style=answer_style(), initial_open=not path.gripper_open[0])


def path_question(image: NDArray[np.uint8], quest: str) -> tuple[Message, ...]:
    """Return how the embedded model is asked for a path."""
    return (user(image, PATH_PROMPT.text(quest)),)


def preference_question(first: NDArray[np.uint8], second: NDArray[np.uint8], goal: str) -> tuple[Message, ...]:
    """Return how the embedded model is asked which of two frames is nearer to a goal."""
    return PREFERENCE_PROMPT.ask_one_token(Pair(goal=goal, first=(first,), second=(second,)))


def label_of(first: float, second: float) -> int:
    """Return the label of two frames of that progress: 0, 1, or -1 where they differ by less than `TIE`."""
    if abs(first - second) < TIE:
        return NEITHER
    return FIRST if first > second else SECOND


class PathLesson:
    """Draws frames and asks for the gripper's way from there; tasks are drawn alike, a scene's first frames oftener.

    Args:
        frames: those without a way are passed over.
        jitter: how frames are changed; None shows them as they are.
    """

    def __init__(self, frames: Frames, jitter: Jitter | None) -> None:
        self._frames, self._jitter = frames, jitter
        self._of: dict[str, tuple[list[int], NDArray[np.float64]]] = {}
        for task in frames.tasks:
            rows = [index for index, info in enumerate(frames.infos) if info.task == task and info.path is not None]
            weights = np.array([2.0 if frames.infos[index].progress < 0.1 else 1.0 for index in rows])
            self._of[task] = (rows, weights / weights.sum())

    def draw(self, random: np.random.Generator, count: int) -> list[Conversation]:
        """Return conversations whose answers are paths."""
        tasks = list(self._of)
        return [self._one(tasks[int(random.integers(len(tasks)))], random) for _ in range(count)]

    def _one(self, task: str, random: np.random.Generator) -> Conversation:
        rows, weights = self._of[task]
        index = rows[int(random.choice(len(rows), p=weights))]
        image, path = self._frames.image(index), self._frames.infos[index].path
        if path is None:
            raise RuntimeError("frames: one without a path was drawn")
        if self._jitter is not None:
            image, path = changed(image, path, random, self._jitter)
        quest = said(instructions(task), random)
        ahead = path.resampled(HINT_POINTS).points.ravel().tolist()
        return Conversation(messages=path_question(image, quest), answer=path_answer(path), of_answer=tuple(ahead))


def changed(
    image: NDArray[np.uint8], path: Path, random: np.random.Generator, jitter: Jitter
) -> tuple[NDArray[np.uint8], Path]:
    """Return a frame and its path under one random change; a path that would leave the image is not moved."""
    matrix = drawn_map(random, jitter)
    other = moved(path, matrix)
    if other is None:
        matrix, other = _IDENTITY, path
    return relit(mapped(image, matrix), random, jitter), other


class PreferenceLesson:
    """Draws pairs of frames of one task: mostly of one scene in one look, else of any two; some that do not differ."""

    def __init__(self, frames: Frames, jitter: Jitter | None) -> None:
        self._frames, self._jitter = frames, jitter
        self._of: dict[str, tuple[list[int], list[list[int]]]] = {}
        for task in frames.tasks:
            groups: dict[tuple[int, int], list[int]] = {}
            for index, info in enumerate(frames.infos):
                if info.task == task:
                    groups.setdefault((info.scene, info.group), []).append(index)
            listed = [group for group in groups.values() if len(group) > 1]
            self._of[task] = ([index for group in groups.values() for index in group], listed)

    def draw(self, random: np.random.Generator, count: int) -> list[Conversation]:
        """Return conversations whose answers are labels."""
        tasks = list(self._of)
        return [self._one(tasks[int(random.integers(len(tasks)))], random) for _ in range(count)]

    def _one(self, task: str, random: np.random.Generator) -> Conversation:
        first, second = self._pair(task, random)
        infos = self._frames.infos
        label = label_of(infos[first].progress, infos[second].progress)
        images = [self._frames.image(index) for index in (first, second)]
        if self._jitter is not None:
            matrix = drawn_map(random, self._jitter)
            light = int(random.integers(2**32))
            together = infos[first].scene == infos[second].scene and infos[first].group == infos[second].group
            images = [
                relit(mapped(image, matrix), np.random.default_rng([light, 0 if together else side]), self._jitter)
                for side, image in enumerate(images)
            ]
        goal = said(goals(task), random).removesuffix(".")
        near = (infos[first].progress, infos[second].progress)
        return Conversation(messages=preference_question(images[0], images[1], goal), answer=str(label), of_images=near)

    def _pair(self, task: str, random: np.random.Generator) -> tuple[int, int]:
        everything, groups = self._of[task]
        tie = random.random() < _TIES
        pool: Sequence[int] = everything
        if groups and random.random() < _SAME_LOOK:
            pool = groups[int(random.integers(len(groups)))]
        first = second = 0
        for _ in range(_TRIES):
            first, second = (pool[int(place)] for place in random.integers(len(pool), size=2))
            label = label_of(self._frames.infos[first].progress, self._frames.infos[second].progress)
            if (label == NEITHER) == tie:
                break
        return first, second
