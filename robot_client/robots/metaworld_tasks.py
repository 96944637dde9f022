"""The MetaWorld v3 tasks of the embedded policy, with the words that ask for each of them.

A table and nothing more: it imports no simulator, so that training jobs, robots and the command line can all read it.
"""

from __future__ import annotations

from typing import Dict

from clients.errors import RoboserveError
from robot_client.robots.metaworld_more_tasks import HELD_OUT, TRAINED
from robot_client.robots.metaworld_task import MetaWorldTask

_ROWS = (
    MetaWorldTask(
        "button-press",
        "press the button",
        (
            "push the red button in",
            "push in the button on the box",
            "press the button on the wall box",
            "hit the red button",
        ),
        "push the button on the box",
    ),
    MetaWorldTask(
        "button-press-topdown",
        "press the button from above",
        (
            "push the button down from the top",
            "press down the top button",
            "push down on the button",
            "press the red button downwards",
        ),
        "push down the button from above",
    ),
    MetaWorldTask(
        "coffee-button",
        "start the coffee machine",
        (
            "press the button of the coffee machine",
            "turn on the coffee maker",
            "push the coffee button",
            "make a cup of coffee",
        ),
        "push the button of the coffee maker",
    ),
    MetaWorldTask(
        "dial-turn",
        "turn the dial",
        ("rotate the dial", "turn the knob around", "twist the dial", "rotate the round knob"),
        "twist the knob",
    ),
    MetaWorldTask(
        "door-close",
        "close the door",
        ("shut the door", "push the door shut", "swing the door closed", "close the open door of the safe"),
        "shut the open door",
    ),
    MetaWorldTask(
        "door-open",
        "open the door",
        (
            "pull the door open",
            "swing the door open",
            "open up the door by its handle",
            "open the closed door of the safe",
        ),
        "pull open the closed door",
    ),
    MetaWorldTask(
        "drawer-close",
        "close the drawer",
        ("shut the drawer", "push the drawer shut", "push the drawer in", "close the open green drawer"),
        "shut the green drawer",
    ),
    MetaWorldTask(
        "drawer-open",
        "open the drawer",
        (
            "pull the drawer open",
            "pull out the drawer",
            "open up the drawer by its handle",
            "open the closed green drawer",
        ),
        "pull out the green drawer",
    ),
    MetaWorldTask(
        "faucet-close",
        "close the faucet",
        ("turn the faucet off", "shut the tap", "turn off the tap", "rotate the faucet to close it"),
        "shut off the faucet",
    ),
    MetaWorldTask(
        "faucet-open",
        "open the faucet",
        ("turn the faucet on", "open up the tap", "turn on the tap", "rotate the faucet to open it"),
        "open the tap",
    ),
    MetaWorldTask(
        "handle-press",
        "press the handle down",
        ("push down the handle", "push the red handle down", "press down on the lever handle", "lower the handle"),
        "press down the red handle",
    ),
    MetaWorldTask(
        "plate-slide",
        "slide the plate into the goal",
        (
            "push the plate into the net",
            "slide the puck into the goal",
            "move the plate to the goal",
            "push the black puck in the net",
        ),
        "push the plate in the goal",
    ),
    MetaWorldTask(
        "reach",
        "reach the red target",
        (
            "move the hand to the red ball",
            "reach to the goal position",
            "go to the target",
            "bring the gripper to the red ball",
        ),
        "move the gripper to the red target",
    ),
    MetaWorldTask(
        "window-close",
        "close the window",
        ("shut the window", "slide the window shut", "push the window closed", "close the open window by its handle"),
        "slide the window closed",
    ),
    MetaWorldTask(
        "window-open",
        "open the window",
        ("slide the window open", "push the window open", "open up the window", "open the closed window by its handle"),
        "slide open the closed window",
    ),
)

TASKS: Dict[str, MetaWorldTask] = {row.name: row for row in _ROWS}


def find_task(name: str) -> MetaWorldTask:
    """Return a task by its name: one of `TASKS`, or of `metaworld_more_tasks`.

    Raises:
        RoboserveError: `not_found` with the names there are.
    """
    known = {**TASKS, **TRAINED, **HELD_OUT}
    if name not in known:
        raise RoboserveError("not_found", f"task: {name!r} is unknown; allowed are {', '.join(known)}")
    return known[name]
