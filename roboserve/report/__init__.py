"""The demo's report: one self-contained page over a run folder; `python -m roboserve.report FOLDER` makes it again."""

from __future__ import annotations

from roboserve.report.page import write_report

__all__ = ["write_report"]
