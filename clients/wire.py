"""The wire codec: msgpack maps with numpy arrays, and the trust boundary of the platform.

An array is a map with the byte keys `__ndarray__`, `data`, `dtype`, `shape`; a numpy scalar has `__npgeneric__`,
`data`, `dtype`. This is openpi's encoding (openpi-client, msgpack_numpy.py), so stock openpi clients and servers
understand it.

Unlike that one, the decoder trusts nothing it is told: it walks the message once for its limits, before any object is
built, allows the array kinds b, i, u, f only (an object array over foreign bytes is a wild pointer), wants the buffer's
length to equal shape times itemsize, and copies, so that arrays are writable and own their memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import msgpack
import numpy as np

from clients.errors import RoboserveError

ARRAY_KINDS = "biuf"
_ND, _NP, _DATA, _DTYPE, _SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}
_DTYPES = {
    f"{order}{kind}{size}": np.dtype(f"{order}{kind}{size}")
    for order in "<>|="
    for kind in ARRAY_KINDS
    for size in _SIZES[kind]
}


@dataclass(frozen=True)
class WireLimits:
    """Caps that hold before any object of a message is built.

    Attributes:
        message_bytes: the whole message.
        text_bytes: one string.
        map_keys: entries of one map.
        list_items: items of one list.
        depth: nesting of maps and lists.
        array_dims: dimensions of one array.
        objects: values in the whole message, keys included.
    """

    message_bytes: int = 16 * 1024 * 1024
    text_bytes: int = 64 * 1024
    map_keys: int = 256
    list_items: int = 4096
    depth: int = 8
    array_dims: int = 6
    objects: int = 20_000


DEFAULT_LIMITS = WireLimits()


def encode(message: Any) -> bytes:
    """Encode a message (maps, lists, text, bytes, numbers, numpy arrays and scalars).

    Raises:
        RoboserveError: `invalid_request` for an array of a kind other than b, i, u, f or a value that has no wire form.
    """
    try:
        packed = msgpack.packb(message, default=_pack_numpy, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise RoboserveError("invalid_request", f"message: cannot be encoded: {error}") from error
    return bytes(packed)


def decode(data: bytes, limits: WireLimits = DEFAULT_LIMITS) -> Any:
    """Decode one message from an untrusted peer.

    Returns:
        maps with text keys, lists, text, bytes, numbers, and numpy arrays that are writable copies.

    Raises:
        RoboserveError: `too_large` over a limit, `malformed` where the bytes are no message of this protocol.
    """
    if len(data) > limits.message_bytes:
        raise RoboserveError("too_large", f"message: {len(data)} bytes, limit {limits.message_bytes}")
    _Scan(data, limits).message()
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, object_pairs_hook=_Reviver(limits))
    except RoboserveError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RoboserveError("malformed", "message: not a valid msgpack message") from error


def with_entry(packed_map: bytes, key: str, value: Any) -> bytes:
    """Return an encoded map of fewer than 15 entries with one entry more, without encoding the rest again.

    So a reply can carry the time that its own encoding took.
    """
    if not 0x80 <= packed_map[0] < 0x8F:
        raise ValueError("with_entry: needs an encoded map of fewer than 15 entries")
    return bytes([packed_map[0] + 1]) + packed_map[1:] + encode(key) + encode(value)


def _pack_numpy(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in ARRAY_KINDS:
        raise TypeError(f"array of dtype {value.dtype}: allowed kinds are {', '.join(ARRAY_KINDS)}")
    if isinstance(value, np.ndarray):
        return {_ND: True, _DATA: value.tobytes(), _DTYPE: value.dtype.str, _SHAPE: value.shape}
    if isinstance(value, np.generic):
        return {_NP: True, _DATA: value.item(), _DTYPE: value.dtype.str}
    raise TypeError(f"a value of type {type(value).__name__} has no wire form")


class _Reviver:
    """Called for every map while it is unpacked, innermost first: turns it into a plain map, an array or a scalar."""

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits

    def __call__(self, pairs: List[Tuple[Any, Any]]) -> Any:
        node = dict(pairs)
        if len(node) != len(pairs):
            raise RoboserveError("malformed", "map: a key comes twice")
        if _ND in node:
            return _array(node, self._limits)
        if _NP in node:
            return _scalar(node)
        if not all(isinstance(key, str) for key in node):
            raise RoboserveError("malformed", "map: keys must be text")
        return node


def _dtype(name: Any) -> np.dtype[Any]:
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise RoboserveError("malformed", f"array dtype: kind must be one of {', '.join(ARRAY_KINDS)}, 8 bytes or less")
    return dtype


def _array(node: Dict[Any, Any], limits: WireLimits) -> np.ndarray[Any, Any]:
    if set(node) != {_ND, _DATA, _DTYPE, _SHAPE}:
        raise RoboserveError("malformed", "array: needs __ndarray__, data, dtype and shape, and nothing else")
    data, shape, dtype = node[_DATA], node[_SHAPE], _dtype(node[_DTYPE])
    if not isinstance(data, bytes):
        raise RoboserveError("malformed", "array data: must be bytes")
    if not isinstance(shape, list) or any(type(side) is not int for side in shape):
        raise RoboserveError("malformed", "array shape: must be a list of integers")
    if len(shape) > limits.array_dims:
        raise RoboserveError("too_large", f"array shape: {len(shape)} dimensions, limit {limits.array_dims}")
    if any(side < 0 for side in shape):
        raise RoboserveError("malformed", "array shape: a dimension is negative")
    # The sides of an array without elements count too: numpy multiplies them, and they can overflow.
    if math.prod(side for side in shape if side) > limits.message_bytes:
        raise RoboserveError("malformed", "array shape: its dimensions are larger than any message")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise RoboserveError("malformed", f"array: its shape and dtype do not fit the {len(data)} bytes sent")
    if dtype.kind == "b":
        flags: np.ndarray[Any, Any] = np.array(np.frombuffer(data, dtype=np.uint8).reshape(shape), dtype=np.bool_)
        return flags
    return np.array(np.frombuffer(data, dtype=dtype).reshape(shape), dtype=dtype.newbyteorder("="))


def _scalar(node: Dict[Any, Any]) -> Any:
    if set(node) != {_NP, _DATA, _DTYPE}:
        raise RoboserveError("malformed", "scalar: needs __npgeneric__, data and dtype, and nothing else")
    dtype, value = _dtype(node[_DTYPE]).newbyteorder("="), node[_DATA]
    if not _fits(dtype, value):
        raise RoboserveError("malformed", f"scalar: the value is not one of dtype {dtype.str}")
    return dtype.type(value)


def _fits(dtype: np.dtype[Any], value: Any) -> bool:
    """Whether a dtype holds a plain number without changing what it is."""
    if dtype.kind == "b":
        return isinstance(value, bool)
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        return type(value) is int and bool(bounds.min <= value <= bounds.max)
    if type(value) is int and abs(value) > 2**53:
        return False
    return type(value) in (int, float) and (not math.isfinite(value) or abs(value) <= float(np.finfo(dtype).max))


class _Scan:
    """One pass over the raw bytes that builds nothing: structure, counts and lengths (msgpack specification)."""

    def __init__(self, data: bytes, limits: WireLimits) -> None:
        self._data = data
        self._limits = limits
        self._at = 0
        self._objects = 0

    def message(self) -> None:
        self._value(0)
        if self._at != len(self._data):
            raise RoboserveError("malformed", "message: bytes left over after its end")

    def _value(self, depth: int) -> None:
        self._objects += 1
        if self._objects > self._limits.objects:
            raise RoboserveError("too_large", f"message: more than {self._limits.objects} values")
        tag = self._uint(1)
        if tag <= 0x7F or tag >= 0xE0 or tag in (0xC0, 0xC2, 0xC3):
            return
        if tag <= 0x8F:
            self._items(tag & 0x0F, depth, per_item=2)
        elif tag <= 0x9F:
            self._items(tag & 0x0F, depth, per_item=1)
        elif tag <= 0xBF:
            self._text(tag & 0x1F)
        else:
            self._sized(tag, depth)

    def _sized(self, tag: int, depth: int) -> None:
        if tag in _NUMBER_BYTES:
            self._skip(_NUMBER_BYTES[tag])
        elif tag in _TEXT_LENGTH:
            self._text(self._uint(_TEXT_LENGTH[tag]))
        elif tag in _BIN_LENGTH:
            self._skip(self._uint(_BIN_LENGTH[tag]))
        elif tag in _LIST_LENGTH:
            self._items(self._uint(_LIST_LENGTH[tag]), depth, per_item=1)
        elif tag in _MAP_LENGTH:
            self._items(self._uint(_MAP_LENGTH[tag]), depth, per_item=2)
        else:
            raise RoboserveError("malformed", "message: extension and reserved types are not part of the protocol")

    def _items(self, count: int, depth: int, *, per_item: int) -> None:
        limit, noun = (self._limits.map_keys, "map") if per_item == 2 else (self._limits.list_items, "list")
        if count > limit:
            raise RoboserveError("too_large", f"{noun}: {count} entries, limit {limit}")
        if depth >= self._limits.depth:
            raise RoboserveError("too_large", f"message: nested deeper than {self._limits.depth}")
        for _ in range(count * per_item):
            self._value(depth + 1)

    def _text(self, length: int) -> None:
        if length > self._limits.text_bytes:
            raise RoboserveError("too_large", f"text: {length} bytes, limit {self._limits.text_bytes}")
        self._skip(length)

    def _uint(self, size: int) -> int:
        start = self._at
        self._skip(size)
        return int.from_bytes(self._data[start : self._at], "big")

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise RoboserveError("malformed", "message: ends before its declared length")


_NUMBER_BYTES = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_TEXT_LENGTH = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BIN_LENGTH = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_LIST_LENGTH = {0xDC: 2, 0xDD: 4}
_MAP_LENGTH = {0xDE: 2, 0xDF: 4}
