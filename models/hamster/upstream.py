"""The prompt of published HAMSTER weights, read off the user's own copy of the upstream demo.

The wording is not ours to carry. The demo writes it as one f-string around the instruction; it is found in the file's
syntax tree, and nothing of the file is ever run.
"""

from __future__ import annotations

import ast
import hashlib
from typing import TYPE_CHECKING

from models.hamster.prompt import SLOT, Decoding, PathPrompt, PromptError

if TYPE_CHECKING:
    from pathlib import Path

DEMO_FILE = "gradio_server_example.py"
MARK = "<quest>"
_MAX_BYTES = 1 << 20


def read_demo(source: Path) -> PathPrompt:
    """Return the prompt that HAMSTER_beta's demo asks with.

    Image before text and a gripper that starts closed are the demo's; greedy decoding too. Its 128 tokens are not: they
    cut long answers off, and under greedy decoding a larger budget changes nothing else. 512 is its server's default.

    Args:
        source: the demo's file, or a checkout that holds it.

    Raises:
        FileNotFoundError: there is no such file.
        PromptError: the file is no Python, or does not hold exactly one f-string of that kind.
    """
    path = source / DEMO_FILE if source.is_dir() else source
    if not path.is_file():
        raise FileNotFoundError(f"demo: there is no {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise PromptError(f"demo: {path.name} has {path.stat().st_size} bytes, at most {_MAX_BYTES} are read")
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError) as error:
        raise PromptError(f"demo: {path.name} is not valid Python") from error
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    templates = [template for template in map(_template, strings) if template is not None]
    if len(templates) != 1:
        raise PromptError(f"demo: {path.name} holds {len(templates)} f-strings with {MARK} and one value, must be 1")
    return PathPrompt(
        template=templates[0],
        version=f"hamster-{hashlib.sha256(templates[0].encode()).hexdigest()[:12]}",
        decoding=Decoding(max_tokens=512, temperature=0.0, top_p=0.95),
    )


def _template(string: ast.JoinedStr) -> str | None:
    """Return an f-string with the slot for its one value; None if it has another number of them, or no mark."""
    pieces, values = [], 0
    for part in string.values:
        if isinstance(part, ast.Constant):
            pieces.append(str(part.value))
        else:
            pieces.append(SLOT)
            values += 1
    text = "".join(pieces)
    return text if values == 1 and MARK in text else None
