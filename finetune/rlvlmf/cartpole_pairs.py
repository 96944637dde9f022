"""Pictures of the cart and the pole in pairs, as a vision-language model learns and is asked to compare them.

A model that never saw this drawing can tell nothing of it. The pairs to learn from are of states drawn widely; those to
be judged by are of episodes, as a run of the method sees them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from finetune.rlvlmf.environment import CartPoleEnv, cartpole_picture, uprightness
from finetune.vlm.lessons import label_of, preference_question

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LEARNED, HELD_OUT, IMAGES = "conversations.jsonl", "held-out.jsonl", "images"
_PLACES, _ANGLES, _NEAR = 2.5, 1.35, 0.35
_TIES, _TRIES = 0.2, 30
_SKILLS = (-1.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """What is drawn.

    Attributes:
        out: folder; gets `conversations.jsonl` (see `finetune.vlm.conversations.JsonlConversations`), `held-out.jsonl`
            (see `finetune.preference.material.listed_pairs`) and `images`.
        pictures, pairs: to learn from. `held_out`: pairs to be judged by.
        image_size: side of a picture, pixels, as the method's own.
    """

    out: Path
    pictures: int = 6000
    pairs: int = 20_000
    held_out: int = 600
    image_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.pictures, self.pairs, self.held_out) < 2:
            raise ValueError(
                f"pictures {self.pictures}, pairs {self.pairs} and held_out {self.held_out} must be 2 or more"
            )


def make_pairs(config: PairsConfig) -> Path:
    """Write pictures and both lists, and return the folder; the same settings give the same bytes."""
    (config.out / IMAGES).mkdir(parents=True, exist_ok=True)
    learned = list(_conversations(config))
    held_out = list(_held_out(config))
    for name, rows in ((LEARNED, learned), (HELD_OUT, held_out)):
        (config.out / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return config.out


def _conversations(config: PairsConfig) -> Any:
    random = np.random.default_rng([config.seed, 0])
    places = random.uniform(-_PLACES, _PLACES, config.pictures)
    angles = random.uniform(-_ANGLES, _ANGLES, config.pictures)
    angles[1::2] = random.normal(0.0, _NEAR, len(angles[1::2]))  # most of what a learner sees once it can balance
    pictures = [cartpole_picture(*state, config.image_size) for state in zip(places, angles, strict=True)]
    names = [_keep(config, f"learn-{number:05d}.png", picture) for number, picture in enumerate(pictures)]
    values = [uprightness(angle) for angle in angles]
    for _ in range(config.pairs):
        tie = random.random() < _TIES
        first = second = 0
        for _ in range(_TRIES):
            first, second = (int(row) for row in random.integers(len(values), size=2))
            if (label_of(values[first], values[second]) == -1) == tie:
                break
        (message,) = preference_question(pictures[first], pictures[second], CartPoleEnv.instruction)
        shown = iter((names[first], names[second]))
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": next(shown)}
            for part in message.content
        ]
        answer = str(label_of(values[first], values[second]))
        yield {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def _held_out(config: PairsConfig) -> Any:
    """Give pairs of frames of two episodes each, as the method draws them, pushed with more or less skill."""
    random = np.random.default_rng([config.seed, 1])
    env = CartPoleEnv(image_size=config.image_size)
    for number in range(config.held_out):
        row: dict[str, Any] = {"goal": CartPoleEnv.instruction}
        for side in ("first", "second"):
            picture, value = _moment(env, random)
            row |= {side: _keep(config, f"held-out-{number:04d}-{side}.png", picture), f"{side}_value": value}
        yield row


def _moment(env: CartPoleEnv, random: np.random.Generator) -> tuple[NDArray[np.uint8], float]:
    state, _ = env.reset(seed=int(random.integers(2**31)))
    skill, value = random.uniform(*_SKILLS), 0.0
    for _ in range(1 + int(random.integers(100))):
        push = skill * (state[2] + 0.3 * state[3]) + random.normal(0.0, 0.5)
        state, value, *_ = env.step(np.array([push], np.float32))
    return env.render(), value


def _keep(config: PairsConfig, name: str, picture: NDArray[np.uint8]) -> str:
    Image.fromarray(picture).save(config.out / IMAGES / name)
    return f"{IMAGES}/{name}"
