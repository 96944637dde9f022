"""`roboserve convert`: published weights, made into a folder that is served and finetuned like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from models.hamster.prompt import FILE, write_prompt
from models.hamster.upstream import read_demo

if TYPE_CHECKING:
    from pathlib import Path

    from finetune.robometer.conversion.convert import ConvertConfig

_GIB = 2**30


def robometer(config: ConvertConfig) -> int:
    """Convert a folder and tell what was checked; return the exit code."""
    from finetune.robometer.conversion.convert import convert

    console = Console()
    try:
        with console.status("checking the weights' layout, then asking the upstream package"):
            found = convert(config)
    except (OSError, ValueError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        return 1
    published, answer, settings = found.published, found.answer, found.settings
    size = f"{published.parameters / 1e6:.1f} M parameters, {published.bytes / _GIB:.2f} GiB"
    compares = "asked" if settings.prompt.compares else "this package has no such prompt, so compare is off"
    lines = (
        f"weights: {published.tensors} tensors ({'/'.join(published.dtypes)}), {size}; none missing, none unexpected",
        f"tokenizer: {published.vocabulary} tokens, the asking ones last; {published.bins} progress bins",
        f"prompt: {answer.package} {answer.version}, {answer.processor}: {found.checked} prompts equal in text and ids",
        f"preference: {compares}",
        f"{found.folder}: {settings.id}, revision {settings.revision}, prompt {settings.prompt.version[:12]}",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    return 0


def hamster(folder: Path, demo: Path) -> int:
    """Write a folder's path prompt, taken from the user's copy of the upstream demo; return the exit code."""
    console = Console()
    try:
        prompt = read_demo(demo)
        write_prompt(folder, prompt)
    except (OSError, ValueError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        return 1
    decoding = prompt.decoding
    console.print(f"{folder / FILE}: prompt {prompt.version}, {len(prompt.template)} characters", highlight=False)
    console.print(
        f"asked with the image first, temperature {decoding.temperature:g}, at most {decoding.max_tokens} tokens; "
        f"the gripper starts {'open' if prompt.initial_open else 'closed'}",
        highlight=False,
        soft_wrap=True,
    )
    return 0
