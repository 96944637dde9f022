"""`python -m robot_client` is `roboserve-robot`."""

from __future__ import annotations

import sys

from robot_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
