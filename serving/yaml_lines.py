"""Where things stand in a YAML document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator


class Lines:
    """Maps a path into a YAML document to the line where it stands."""

    def __init__(self, node: yaml.Node | None) -> None:
        self._node = node

    def of(self, path: tuple[Any, ...]) -> int:
        """Return the line of a path's last step, or of the last one that is there."""
        node, line = self._node, 1
        for step in path:
            child = _child(node, step)
            if child is None:
                return line
            line, node = child
        return line


def _child(node: yaml.Node | None, step: Any) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line + 1, node.value[step]
    return None


def repeated_keys(node: yaml.Node | None, path: tuple[Any, ...] = ()) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield (line, path) of every key that its map has already; YAML readers take the last and say nothing."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark.line + 1, (*path, key.value)
            seen.add(key.value)
            yield from repeated_keys(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from repeated_keys(value, (*path, index))
