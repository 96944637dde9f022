"""Which adapter a name stands for, and who still uses the one that it stood for before."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from clients.errors import RoboserveError
from models.vlm.checkpoint import adapter_hash

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Load = Callable[[str, Path], Awaitable[str]]
    Free = Callable[[str], Awaitable[None]]


class AdapterSlots:
    """Names of adapters, each with the slot that an engine keeps it in.

    Args:
        load: reads a folder under a name and returns its slot; raises FileNotFoundError or ValueError.
        free: forgets a slot.
    """

    def __init__(self, load: Load, free: Free) -> None:
        self._load, self._free = load, free
        self._slots: dict[str, str] = {}
        self._users: Counter[str] = Counter()
        self.hashes: dict[str, str] = {}

    def check(self, name: str | None) -> None:
        """Raise `not_found` for a name that stands for nothing."""
        if name is not None and name not in self._slots:
            known = ", ".join(self._slots) or "none"
            raise RoboserveError("not_found", f"adapter: no {name[:64]!r} is loaded; loaded are {known}")

    @asynccontextmanager
    async def hold(self, name: str | None) -> AsyncIterator[str | None]:
        """Give the slot of a name, and keep it until the block ends, whatever is loaded or forgotten meanwhile."""
        self.check(name)
        slot = None if name is None else self._slots[name]
        if slot is None:
            yield None
            return
        self._users[slot] += 1
        try:
            yield slot
        finally:
            self._users[slot] -= 1
            await self._sweep(slot)

    async def load(self, name: str, folder: Path) -> None:
        """Let a name stand for a folder's adapter.

        Raises:
            RoboserveError: `invalid_request` where it cannot be read or does not fit.
        """
        try:
            digest = adapter_hash(folder)
            slot = await self._load(name, folder)
        except (FileNotFoundError, ValueError) as error:
            raise RoboserveError("invalid_request", str(error)) from error
        before = self._slots.get(name)
        self._slots[name], self.hashes[name] = slot, digest
        if before is not None:
            await self._sweep(before)

    async def unload(self, name: str) -> None:
        """Let a name stand for nothing; answers under way end with what they began with."""
        self.check(name)
        slot = self._slots.pop(name)
        del self.hashes[name]
        await self._sweep(slot)

    async def _sweep(self, slot: str) -> None:
        if not self._users[slot] and slot not in self._slots.values():
            del self._users[slot]
            await self._free(slot)
