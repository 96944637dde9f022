"""Multipart forms (RFC 7578): the parts of a body that is in memory already, within caps on their number and names."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from clients.errors import RoboserveError

_NAME_CHARS = 128


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a form; `filename` is None where it is a plain field."""

    filename: str | None
    data: bytes


def read_form(body: bytes, content_type: bytes, *, max_parts: int) -> dict[str, Part]:
    """Return the parts of a multipart body by name.

    Args:
        content_type: the request's header, whose boundary parts the body.

    Raises:
        RoboserveError: `malformed` for another content type, damaged bytes, a part without a name or a name that comes
            twice; `too_large` beyond `max_parts`, or for a name over 128 characters.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        text = f"content-type: {content_type.decode('latin-1')!r:.80}, must be multipart/form-data with a boundary"
        raise RoboserveError("malformed", text)
    reading = _Reading(max_parts=max_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reading.begin,
                "on_header_field": reading.header_name,
                "on_header_value": reading.header_value,
                "on_header_end": reading.header_end,
                "on_headers_finished": reading.headers_end,
                "on_part_data": reading.content,
                "on_part_end": reading.end,
                "on_end": reading.finish,
            },
        )
        parser.write(body)
    except FormParserError as error:
        raise RoboserveError("malformed", "body: is no multipart form") from error
    if not reading.finished:
        raise RoboserveError("malformed", "body: the form breaks off before its last boundary")
    return reading.parts


@dataclass(kw_only=True)
class _Reading:
    """What the parser has found so far."""

    max_parts: int
    parts: dict[str, Part] = field(default_factory=dict)
    finished: bool = False
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _header: tuple[bytes, bytes] = (b"", b"")
    _name: str = ""
    _filename: str | None = None
    _data: list[bytes] = field(default_factory=list)

    def begin(self) -> None:
        if len(self.parts) >= self.max_parts:
            raise RoboserveError("too_large", f"body: more than {self.max_parts} parts, which is the limit")
        self._headers, self._data = {}, []

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0] + data[start:end], self._header[1])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0], self._header[1] + data[start:end])

    def header_end(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = (b"", b"")

    def headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name, filename = options.get(b"name"), options.get(b"filename")
        if not name:
            raise RoboserveError("malformed", f"body: part {len(self.parts)} has no name")
        if len(name) > _NAME_CHARS:
            raise RoboserveError("too_large", f"body: a part's name of {len(name)} characters, limit {_NAME_CHARS}")
        self._name = name.decode("utf-8", "replace")
        self._filename = None if filename is None else filename.decode("utf-8", "replace")
        if self._name in self.parts:
            raise RoboserveError("malformed", f"body: two parts are named {self._name!r}")

    def content(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def end(self) -> None:
        self.parts[self._name] = Part(filename=self._filename, data=b"".join(self._data))

    def finish(self) -> None:
        self.finished = True
