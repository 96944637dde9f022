"""Make the page of a run folder again."""

from __future__ import annotations

import sys
from pathlib import Path

from roboserve.report.page import write_report

if __name__ == "__main__":
    print(write_report(Path(sys.argv[1])))
