"""A folder of adapters that may change while it is served: found, read beside what is served, then put in its place.

Each version of an adapter is an object of its own that nothing changes. A forward holds those that it began with, so a
version that another took the place of ends with the last answer that needs it.
"""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING

from models.peft_files import CONFIG, WEIGHTS
from models.policies.adapters import FACTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from models.policies.low_rank import FittedAdapter

logger = logging.getLogger("ray.serve")
ADAPTER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_Stamp = tuple[tuple[int, int, int] | None, ...]


class AdapterFolder:
    """The adapters in the folders of a folder, by the folders' names.

    `get` belongs to one thread at a time; `known`, `refused` and `look` to any.

    Args:
        folder: need not exist yet.
        read: reads a folder; raises FileNotFoundError or ValueError for one that cannot be served.
        most: adapters in memory; the one asked for longest ago makes room.
        poll_s: seconds between looks by a thread of its own; it ends with this object. 0 for none.

    Raises:
        ValueError: `most` below 1 or `poll_s` below 0.
    """

    def __init__(self, folder: Path, read: Callable[[Path], FittedAdapter], *, most: int, poll_s: float) -> None:
        if most < 1 or poll_s < 0:
            raise ValueError(f"adapters: {most} in memory must be 1 or more, and {poll_s} s between looks 0 or more")
        self._folder, self._read, self._most = folder, read, most
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._known: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._stamps: dict[str, _Stamp] = {}
        self._gone: frozenset[str] = frozenset()
        self._resident: OrderedDict[str, FittedAdapter] = OrderedDict()
        self.look()
        if poll_s:
            arguments = (weakref.ref(self), poll_s)
            threading.Thread(target=_watch, args=arguments, name="adapters", daemon=True).start()

    @property
    def known(self) -> Mapping[str, str]:
        """Names of those that are served, to their content hashes."""
        return self._known

    @property
    def refused(self) -> Mapping[str, str]:
        """Names of those whose newest version cannot be served, to the reason; an older one may still be served."""
        return self._refused

    @property
    def resident(self) -> tuple[str, ...]:
        """Names of those in memory, the one asked for longest ago first."""
        with self._lock:
            return tuple(self._resident)

    def get(self, name: str) -> FittedAdapter:
        """Return an adapter, read from its folder where it is not in memory.

        Raises:
            FileNotFoundError, ValueError: it is not served, or cannot be read any more.
        """
        with self._lock:
            found = self._resident.get(name)
            if found is not None:
                self._resident.move_to_end(name)
                return found
        if name not in self._known:
            raise ValueError(f"adapter: {name!r:.80} is not served; known are {sorted(self._known)}")
        read = self._read(self._folder / name)
        self._keep(name, read, newly=True)
        return read

    def look(self) -> None:
        """Take in what came, changed or went.

        One that changed is read first and then takes the place of the old one. One that went is no longer listed, and
        leaves memory at the next look, when what was asked of it before has been answered.
        """
        with self._looking:
            stamps = _stamps(self._folder)
            for name in sorted(stamps):
                if self._stamps.get(name) != stamps[name] or name in self._refused:
                    self._take(name)
            gone = frozenset(self._known) - stamps.keys()
            with self._lock:
                for name in (self._gone | self._resident.keys()) - stamps.keys() - gone:
                    self._resident.pop(name, None)
                self._known = {name: value for name, value in self._known.items() if name not in gone}
                self._refused = {name: value for name, value in self._refused.items() if name in stamps}
            self._gone, self._stamps = gone, stamps

    def _take(self, name: str) -> None:
        try:
            read = self._read(self._folder / name)
        except (OSError, ValueError) as error:
            if self._refused.get(name) != str(error):
                logger.error("adapter refused", extra={"adapter": name, "reason": str(error)})  # noqa: TRY400  no traceback
            self._refused = {**self._refused, name: str(error)}
            return
        self._refused = {other: reason for other, reason in self._refused.items() if other != name}
        self._keep(name, read, newly=False)
        logger.info("adapter read", extra={"adapter": name, "content_hash": read.content_hash})

    def _keep(self, name: str, read: FittedAdapter, *, newly: bool) -> None:
        """Serve a version; one that is merely found (not `newly` asked for) drives none out of memory."""
        with self._lock:
            self._known = {**self._known, name: read.content_hash}
            if newly or name in self._resident or len(self._resident) < self._most:
                self._resident[name] = read
            if newly:
                self._resident.move_to_end(name)
            while len(self._resident) > self._most:
                self._resident.popitem(last=False)


def _stamps(folder: Path) -> dict[str, _Stamp]:
    """Return what tells versions apart without reading them, by name."""
    if not folder.is_dir():
        return {}
    names = [path.name for path in folder.iterdir() if re.fullmatch(ADAPTER_NAME, path.name)]
    found = {name: tuple(_stamp(folder / name / part) for part in (FACTS, CONFIG, WEIGHTS)) for name in names}
    return {name: stamp for name, stamp in found.items() if stamp[0] is not None}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _watch(reference: weakref.ref[AdapterFolder], poll_s: float) -> None:
    pause = threading.Event()
    while not pause.wait(poll_s):
        folder = reference()
        if folder is None:
            return
        try:
            folder.look()
        except OSError as error:  # a shared file system that is away for a while must not end the watch
            logger.error("adapters cannot be looked at", extra={"reason": str(error)})  # noqa: TRY400  no traceback
        del folder
