"""`python -m roboserve` is the `roboserve` command."""

from roboserve.cli import main

main()
