"""`roboserve preflight`: what would break later, found now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from serving.preflight import Check, run_checks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def run(config: Path) -> int:
    """Print every check; exit status 2 when one failed."""
    return 0 if report_checks(Console(), run_checks(config)) else 2


def report_checks(console: Console, checks: Sequence[Check], *, only_failures: bool = False) -> bool:
    """Print checks and return whether all passed."""
    for check in checks:
        if check.passed and only_failures:
            continue
        mark = "[green]ok[/green]  " if check.passed else "[red]FAIL[/red]"
        console.print(f"{mark} {check.name}: {escape(check.finding)}", highlight=False)
        if not check.passed:
            console.print(f"     mend: {escape(check.mend)}", highlight=False)
    return all(check.passed for check in checks)
