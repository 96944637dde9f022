"""The words that tasks are asked for in: instructions for paths, goals for preferences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robot_client.robots.metaworld_tasks import find_task

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

GOALS: dict[str, tuple[str, str, str]] = {
    "button-press": ("the button is pressed", "a button that is pushed in", "the button has been pushed"),
    "button-press-topdown": ("the top button is down", "a button pressed from above", "the button is pushed down"),
    "button-press-wall": ("the button behind the wall is pressed", "a pressed button", "the button is in"),
    "coffee-button": ("the coffee machine is on", "the coffee button is pressed", "coffee is being made"),
    "coffee-pull": ("the mug is away from the machine", "a mug far from the machine", "the mug is off the machine"),
    "coffee-push": ("the mug is under the machine", "a cup below the coffee maker", "the cup is at the machine"),
    "dial-turn": ("the dial is turned", "a dial that was rotated", "the knob has been turned"),
    "door-close": ("the door is closed", "a door that is shut", "the door has been shut"),
    "door-lock": ("the door is locked", "a door that is locked", "the lock is closed"),
    "door-open": ("the door is open", "a door that stands open", "the door has been opened"),
    "door-unlock": ("the door is unlocked", "a lock that is open", "the lock has been opened"),
    "drawer-close": ("the drawer is closed", "a drawer that is shut", "the drawer is pushed in"),
    "drawer-open": ("the drawer is open", "a drawer that is pulled out", "the drawer has been opened"),
    "faucet-close": ("the faucet is closed", "a tap that is off", "the tap is turned off"),
    "faucet-open": ("the faucet is open", "a tap that is on", "the tap is turned on"),
    "hammer": ("the nail is hammered in", "a nail that is in the box", "the nail has been driven in"),
    "hand-insert": ("the hand is in the hole", "a gripper inside the hole", "the gripper is in the gap"),
    "handle-press": ("the handle is down", "a handle that is pressed", "the lever handle is pushed down"),
    "handle-press-side": ("the side handle is down", "a side handle that is pressed", "the handle is pushed down"),
    "handle-pull": ("the handle is up", "a handle that is lifted", "the handle has been raised"),
    "lever-pull": ("the lever is up", "a lever that is raised", "the lever has been lifted"),
    "pick-place": ("the block is at the target", "a block held at the goal", "the puck has reached the target"),
    "plate-slide": ("the plate is in the goal", "a puck in the net", "the plate has been pushed in"),
    "plate-slide-back": ("the plate is out of the goal", "a puck outside the net", "the plate has been pulled back"),
    "plate-slide-side": ("the plate is in the side goal", "a puck in the net", "the plate is pushed sideways"),
    "push": ("the block is pushed to the target", "a block on the target", "the puck has been pushed to the goal"),
    "reach": ("the hand is at the target", "a gripper at the red ball", "the gripper has reached the goal"),
    "reach-wall": ("the hand is at the target behind the wall", "a gripper past the wall", "the hand is at the ball"),
    "sweep-into": ("the block is in the hole", "a cube swept into the hole", "the block has fallen in"),
    "window-close": ("the window is closed", "a window that is shut", "the window has been closed"),
    "window-open": ("the window is open", "a window that stands open", "the window has been opened"),
}
"""Goals of each task: two that the model is taught and, last, one that it is not."""


def instructions(task: str) -> tuple[str, ...]:
    """Return the instructions that are taught."""
    return find_task(task).training_instructions


def goals(task: str) -> tuple[str, ...]:
    """Return the goals that are taught: the instructions, and what the scene is like in the end."""
    return (*find_task(task).training_instructions, *GOALS[task][:2])


def held_out(task: str) -> tuple[str, str]:
    """Return the instruction and the goal that are taught to no model."""
    return find_task(task).held_out, GOALS[task][2]


def said(wordings: Sequence[str], random: np.random.Generator) -> str:
    """Return one of the wordings as a person may type it: with a capital, a full stop, a please, or none of these."""
    text = wordings[int(random.integers(len(wordings)))]
    if random.random() < 0.15:
        text = f"please {text}"
    if random.random() < 0.2:
        text = text[0].upper() + text[1:]
    return f"{text}." if random.random() < 0.2 else text


def all_texts(tasks: Sequence[str]) -> list[str]:
    """Return the texts that a tokenizer is made for: of the tasks that are taught, and the variants of `said`."""
    texts = [text for task in tasks for text in goals(task)]
    return [*texts, *(f"{text[0].upper()}{text[1:]}." for text in texts), *(f"please {text}" for text in texts)]
