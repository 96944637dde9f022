"""Prompts as an upstream package renders them, asked in the Python environment where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.robometer.conversion import upstream_probe

Kind = Literal["progress", "preference"]
PACKAGES = ("robometer", "lerobot")
"""Those that carry the prompts: the authors' own, and LeRobot's port, which asks for progress only."""
_TAIL = 600


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A prompt to be rendered.

    Attributes:
        first, second: (frames, height, width) of the clips; `second` for a preference only.
    """

    kind: Kind
    task: str
    first: tuple[int, int, int]
    second: tuple[int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What the package made of an ask.

    Attributes:
        text: the whole prompt, one image token for each image.
        ids: its tokens, an image expanded to as many as it takes.
        images: (height, width) of the images as the package resized them.
    """

    ask: Ask
    text: str
    ids: tuple[int, ...]
    images: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the package is asked.

    Attributes:
        folder: the checkpoint's.
        packages: those to look for, in this order.
        base_model_id: as the package names the language model.
        progress_in_preference: whether the preference prompt also asks for progress.
        patch, merge: side of a patch in pixels, and patches to a side of a language-model token.
    """

    folder: str
    packages: tuple[str, ...]
    base_model_id: str
    progress_in_preference: bool
    patch: int
    merge: int
    asks: tuple[Ask, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The renderings, and who made them: package, version, and what tokenised."""

    package: str
    version: str
    processor: str
    renderings: tuple[Rendering, ...]


def ask_upstream(python: Path, request: Request, *, timeout: float = 600.0) -> Answer:
    """Render prompts with the package that is installed for `python`; nothing is fetched.

    Raises:
        FileNotFoundError: there is no such interpreter.
        ValueError: the package is not installed there, cannot be imported or is not as expected; or no answer came in
            `timeout` seconds.
    """
    if not python.is_file() or not os.access(python, os.X_OK):
        raise FileNotFoundError(f"python: {python} is no interpreter that can be run")
    with tempfile.TemporaryDirectory() as made:
        asked, told = Path(made) / "request.json", Path(made) / "answer.json"
        asked.write_text(json.dumps(asdict(request)), "utf-8")
        command = [str(python.absolute()), upstream_probe.__file__, str(asked), str(told)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        try:
            ended = subprocess.run(  # noqa: S603  the interpreter is the user's choice, the script is ours
                command, env=environment, cwd=made, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"python: {python} gave no answer in {timeout:g} s") from error
        if not told.is_file():
            tail = ended.stderr.decode(errors="replace")[-_TAIL:].strip()
            raise ValueError(f"python: {python} ended with status {ended.returncode} and no answer: {tail}")
        answer: dict[str, Any] = json.loads(told.read_text("utf-8"))
    if "error" in answer:
        raise ValueError(f"upstream package: {answer['message']} (asked {python})")
    return read_answer(answer)


def read_answer(raw: dict[str, Any]) -> Answer:
    """Return what a probe told."""
    return Answer(
        package=raw["package"],
        version=raw["version"],
        processor=raw["processor"],
        renderings=tuple(_rendering(one) for one in raw["renderings"]),
    )


def _rendering(raw: dict[str, Any]) -> Rendering:
    second = raw["second"]
    return Rendering(
        ask=Ask(
            kind=raw["kind"],
            task=raw["task"],
            first=tuple(raw["first"]),
            second=None if second is None else tuple(second),
        ),
        text=raw["text"],
        ids=tuple(raw["ids"]),
        images=tuple((height, width) for height, width in raw["images"]),
    )
