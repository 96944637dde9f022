"""Further MetaWorld v3 tasks: reward models are trained on some and judged on others; the policy knows none."""

from __future__ import annotations

from typing import Dict, Tuple

from robot_client.robots.metaworld_task import MetaWorldTask


def _row(name: str, instruction: str, wordings: Tuple[str, str, str, str], held_out: str) -> MetaWorldTask:
    return MetaWorldTask(name=name, instruction=instruction, wordings=wordings, held_out=held_out)


_TRAINED = (
    _row(
        "coffee-push",
        "push the mug under the coffee machine",
        (
            "slide the cup to the coffee maker",
            "push the cup under the machine",
            "move the mug to the coffee machine",
            "put the white mug below the coffee maker",
        ),
        "slide the mug to the machine",
    ),
    _row(
        "door-unlock",
        "unlock the door",
        ("turn the lock open", "open the lock of the door", "rotate the lock to unlock it", "undo the door's lock"),
        "open the door's lock",
    ),
    _row(
        "hammer",
        "hammer the nail in",
        (
            "drive the nail into the box with the hammer",
            "hit the nail with the hammer",
            "pick up the hammer and strike the nail",
            "knock the nail in",
        ),
        "hit the nail in with the hammer",
    ),
    _row(
        "hand-insert",
        "put the hand into the hole",
        (
            "insert the gripper into the hole",
            "reach down into the hole",
            "move the hand into the gap",
            "lower into the hole",
        ),
        "insert the hand in the gap",
    ),
    _row(
        "handle-pull",
        "pull the handle up",
        ("raise the handle", "lift the red handle", "pull up on the lever handle", "pull the handle upwards"),
        "lift the handle",
    ),
    _row(
        "lever-pull",
        "pull the lever up",
        ("raise the lever", "lift the lever arm", "swing the lever upwards", "push the lever up to the top"),
        "lift the lever",
    ),
    _row(
        "pick-place",
        "pick up the block and bring it to the target",
        (
            "lift the red block to the goal",
            "grasp the puck and place it at the target",
            "carry the block to the red ball",
            "pick the puck and move it to the goal",
        ),
        "lift the block and carry it to the goal",
    ),
    _row(
        "plate-slide-back",
        "slide the plate back out of the goal",
        (
            "pull the plate out of the net",
            "move the puck back out of the goal",
            "drag the plate back towards you",
            "bring the black puck out of the net",
        ),
        "pull the plate back out",
    ),
    _row(
        "push",
        "push the block to the target",
        (
            "slide the red block to the goal",
            "push the puck to the red ball",
            "move the block over the table to the goal",
            "shove the cylinder to the target",
        ),
        "slide the block to the target",
    ),
    _row(
        "sweep-into",
        "sweep the block into the hole",
        (
            "push the block into the hole",
            "sweep the cube into the gap of the table",
            "slide the block until it falls in",
            "brush the cube into the hole",
        ),
        "sweep the cube in the hole",
    ),
)

_HELD_OUT = (
    _row(
        "button-press-wall",
        "press the button behind the wall",
        (
            "reach over the wall and push the button",
            "hit the button past the wall",
            "push the red button by the wall",
            "press the walled button",
        ),
        "push the button behind the wall",
    ),
    _row(
        "coffee-pull",
        "pull the mug away from the coffee machine",
        (
            "drag the cup from the machine",
            "take the mug out from under the machine",
            "move the cup off the coffee maker",
            "pull the white mug back",
        ),
        "drag the mug away",
    ),
    _row(
        "door-lock",
        "lock the door",
        ("turn the lock shut", "close the lock of the door", "rotate the lock to lock it", "shut the door's lock"),
        "close the door's lock",
    ),
    _row(
        "handle-press-side",
        "press the handle at the side down",
        (
            "push down the side handle",
            "lower the lever at the side",
            "press the sideways handle",
            "push the red side handle down",
        ),
        "push the side handle down",
    ),
    _row(
        "plate-slide-side",
        "slide the plate sideways into the goal",
        (
            "push the plate to the side",
            "slide the puck sideways",
            "move the plate into the net at the side",
            "push the black puck sideways",
        ),
        "push the plate sideways",
    ),
    _row(
        "reach-wall",
        "reach the red target behind the wall",
        (
            "move the hand over the wall to the ball",
            "go past the wall to the target",
            "bring the gripper to the ball by the wall",
            "reach around the wall",
        ),
        "move the gripper behind the wall",
    ),
)

TRAINED: Dict[str, MetaWorldTask] = {row.name: row for row in _TRAINED}
"""Tasks that reward models are trained on besides those of the policy."""

HELD_OUT: Dict[str, MetaWorldTask] = {row.name: row for row in _HELD_OUT}
"""Tasks that no model is trained on."""
