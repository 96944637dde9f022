"""The adapters that a policy serves: those of a folder, mixed in one batch, or none at all."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from models.policies.adapter_folder import AdapterFolder
from models.policies.adapters import Base, read_adapter
from models.policies.low_rank import LowRankMixer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from models.policies.adapters import AdapterFacts
    from models.policies.low_rank import FittedAdapter


class ServedAdapters:
    """See the module.

    Args:
        folder, most, poll_s: see `AdapterFolder`; no folder is no adapters.
        network: gets hooks where there is a folder, and is not changed otherwise; `base`: its checkpoint.
        check: raises ValueError for an adapter that this kind of policy cannot serve.
    """

    def __init__(
        self,
        folder: str | None,
        network: nn.Module,
        base: Base,
        *,
        most: int,
        poll_s: float,
        check: Callable[[AdapterFacts], None] | None = None,
    ) -> None:
        self._base, self._check = base, check
        self.folder: AdapterFolder | None = None
        if folder is not None:
            self._mixer = LowRankMixer(network)
            self.folder = AdapterFolder(Path(folder), self._read, most=most, poll_s=poll_s)

    @property
    def how(self) -> Literal["none", "mixed"]:
        """What the policy's contract says of them."""
        return "none" if self.folder is None else "mixed"

    @property
    def known(self) -> Mapping[str, str]:
        """Names that may be asked for now, to their content hashes."""
        return {} if self.folder is None else self.folder.known

    @property
    def refused(self) -> Mapping[str, str]:
        """Names that cannot be served, to the reason."""
        return {} if self.folder is None else self.folder.refused

    def require(self, name: str | None) -> None:
        """Check that an item may name an adapter where it does.

        Raises:
            ValueError: the policy has none.
        """
        if name is not None and self.folder is None:
            raise ValueError(f"adapter: {name!r}, this policy has none")

    def get(self, names: Sequence[str | None]) -> list[FittedAdapter | None]:
        """Return the versions that answer these items, whatever takes their place meanwhile; None is the base.

        Raises:
            FileNotFoundError, ValueError: one is not served, or cannot be read any more.
        """
        folder = self.folder
        return [None if name is None or folder is None else folder.get(name) for name in names]

    def mixing(self, adapters: Sequence[FittedAdapter | None]) -> AbstractContextManager[None]:
        """Let the forwards of the block be of items with these adapters."""
        return nullcontext() if self.folder is None else self._mixer.mixing(adapters)

    def _read(self, folder: Path) -> FittedAdapter:
        read = read_adapter(folder, base=self._base)
        if self._check is not None:
            self._check(read.facts)
        return self._mixer.fit(read)
