"""From a method's name and arguments to the finetuning command that runs, here or on a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from roboserve.revision_folders import revisions_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

METHODS = {
    "bc": ("finetune.bc", "train"),
    "csp": ("finetune.csp", "pretrain"),
    "lora": ("finetune.lora", "train"),
    "tmrl": ("finetune.tmrl", "train"),
    "ogpo": ("finetune.ogpo", "train"),
    "baselines": ("finetune.baselines", "train"),
}
_MODULE = re.compile(r"finetune(\.[a-z_]\w*)+")


class JobError(ValueError):
    """A job cannot be started as it was asked for; the message says why."""


def command_of(method: str, arguments: Sequence[str], *, publish: str | None, config: Path | None) -> list[str]:
    """Return the words after `python -m`.

    Args:
        method: one of `METHODS`, or a module as finetune.study, whose own command then comes first in `arguments`.
        publish: policy/NAME, whose revisions get each new best checkpoint.
        config: platform configuration that serves it; that of the running platform when left out.

    Raises:
        JobError: there is no such method, or no such policy to publish to.
    """
    if method in METHODS:
        words = [*METHODS[method], *arguments]
    elif _MODULE.fullmatch(method):
        words = [method, *arguments]
    else:
        raise JobError(f"method: {method!r} is none of {', '.join(METHODS)}, and no module of finetune")
    if publish is None:
        return words
    family, slash, name = publish.partition("/")
    if family != "policy" or not slash:
        raise JobError(f"publish: {publish!r} is not policy/NAME")
    try:
        return [*words, "--publish", str(revisions_folder(name, config))]
    except ValueError as error:
        raise JobError(f"publish: {error}") from error


def folder_of(words: Sequence[str], option: str) -> Path | None:
    """Return the folder that a command gives with an option, as --out."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            return Path(following)
        if word.startswith(f"{option}="):
            return Path(word.partition("=")[2])
    return None
