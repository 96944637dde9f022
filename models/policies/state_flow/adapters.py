"""Adapters of a state policy: read from a folder, and mixed in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models.policies.adapter_folder import AdapterFolder
from models.policies.adapters import Base, read_adapter
from models.policies.low_rank import LowRankMixer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import nn

    from models.policies.adapters import AdapterFacts
    from models.policies.low_rank import FittedAdapter


class StateAdapters:
    """The adapters of a folder, on one network.

    Args:
        folder, most, poll_s: see `AdapterFolder`.
        network: gets hooks, and is not changed otherwise; `base`: its checkpoint.
    """

    def __init__(self, folder: str, network: nn.Module, base: Base, *, most: int, poll_s: float) -> None:
        self._mixer, self._base = LowRankMixer(network), base
        self._folder = AdapterFolder(Path(folder), self._read, most=most, poll_s=poll_s)

    @property
    def known(self) -> Mapping[str, str]:
        """Names that may be asked for now, to their content hashes."""
        return self._folder.known

    @property
    def refused(self) -> Mapping[str, str]:
        """Names that cannot be served, to the reason."""
        return self._folder.refused

    def get(self, names: Sequence[str | None]) -> list[FittedAdapter | None]:
        """Return the adapters of these names; None is the base.

        Raises:
            ValueError: one is not served.
        """
        return [None if name is None else self._folder.get(name) for name in names]

    def mixing(self, adapters: Sequence[FittedAdapter | None]) -> AbstractContextManager[None]:
        """Let the forwards of the block be of items with these adapters."""
        return self._mixer.mixing(adapters)

    def _read(self, folder: Path) -> FittedAdapter:
        read = read_adapter(folder, base=self._base)
        require_plain_actions(read.facts)
        return self._mixer.fit(read)


def require_plain_actions(facts: AdapterFacts) -> None:
    """Check that an adapter leaves actions in the scale that state policies write them in.

    Raises:
        ValueError: it has statistics of actions of its own.
    """
    if any(facts.action.mean) or any(value != 1 for value in facts.action.std):
        raise ValueError(f"adapter: {facts.id} scales actions, and those of a state policy are as they are")
