"""Drawn examples: what a checkpoint answers beside what the expert does, for a person to judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from finetune.rewards.collect import TRAINING_TASKS
from finetune.vlm.answering import Answering
from finetune.vlm.collect import ALL, PLAIN
from finetune.vlm.material import load_frames
from finetune.vlm.words import instructions
from models.hamster.answer import parse_answer
from models.hamster.drawing import DEMO, overlay
from models.hamster.metrics import point_error

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from models.hamster.path import Path as GripperPath

_SIDE, _COLUMNS, _COLOURS = 160, 6, 96


def draw_examples(folder: Path, data: Path, out: Path, *, tasks: tuple[str, ...] = TRAINING_TASKS) -> Path:
    """Draw the first frame of one scene of each task, half in the scene's own looks and half in held-out ones.

    The scenes are the first ones of the validation split, chosen by nobody. The answer is drawn as HAMSTER's demo does,
    the expert's way is the thin white line; the number is their mean distance in hundredths of the image.
    """
    frames = load_frames(data, tasks, "validation")
    chosen = []
    for number, task in enumerate(tasks):
        looks = PLAIN if number % 2 == 0 else ALL
        chosen.append(
            next(
                index
                for index, info in enumerate(frames.infos)
                if info.task == task and info.looks == looks and info.kind == "expert" and info.way is not None
            )
        )
    quests = [instructions(task)[0] for task in tasks]
    images = [frames.image(index) for index in chosen]
    answers = Answering(folder).paths(images, quests, adapter="path", constrain=True)
    tiles = []
    for index, image, quest, answer in zip(chosen, images, quests, answers, strict=True):
        way = frames.infos[index].way
        if way is not None:
            tiles.append(_tile(image, way, parse_answer(answer).path, quest))
    while len(tiles) % _COLUMNS:
        tiles.append(np.full_like(tiles[0], 255))
    rows = [np.concatenate(tiles[first : first + _COLUMNS], axis=1) for first in range(0, len(tiles), _COLUMNS)]
    Image.fromarray(np.concatenate(rows)).quantize(_COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)
    return out


def _tile(image: NDArray[np.uint8], way: GripperPath, predicted: GripperPath, quest: str) -> NDArray[np.uint8]:
    large = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    ImageDraw.Draw(large).line([(x * _SIDE, y * _SIDE) for x, y in way.points.tolist()], fill=(255, 255, 255), width=1)
    drawn = Image.fromarray(overlay(np.asarray(large), predicted, style=DEMO))
    tile = Image.new("RGB", (_SIDE + 4, _SIDE + 30), "white")
    tile.paste(drawn, (2, 0))
    words = quest if len(quest) <= 26 else f"{quest[:25]}."
    ImageDraw.Draw(tile).text((3, _SIDE + 1), words, fill="black")
    off = 100 * point_error(predicted, way)
    ImageDraw.Draw(tile).text((3, _SIDE + 14), f"off by {off:.1f}", fill=(90, 90, 90))
    return np.asarray(tile)
