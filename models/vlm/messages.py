"""What a vision-language model is asked: turns of text and images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Message:
    """One turn.

    Attributes:
        role: who speaks.
        content: texts, and images uint8 (height, width, 3) RGB, in their order.
    """

    role: Role
    content: tuple[str | NDArray[np.uint8], ...]

    @property
    def images(self) -> list[NDArray[np.uint8]]:
        """The turn's images."""
        return [part for part in self.content if not isinstance(part, str)]

    @property
    def text(self) -> str:
        """The turn's texts, joined."""
        return "".join(part for part in self.content if isinstance(part, str))


def user(*content: str | NDArray[np.uint8]) -> Message:
    """Return a turn of the user."""
    return Message(role="user", content=content)


def images_of(messages: Sequence[Message]) -> list[NDArray[np.uint8]]:
    """Return the images of a conversation, in order."""
    return [image for message in messages for image in message.images]
