"""From a decoded message to a checked request for paths; images are looked at later, off the event loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from clients.errors import RoboserveError
from models.hamster.drawing import STYLES
from serving.fields import flag, integer, kind_of, number, refuse_unknown, short_text
from serving.path_config import ViewName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.hamster.prompt import PathPrompt
    from serving.path_config import PathArgs

_MAX_DEADLINE_MS = 3_600_000.0
_HEADER = ("type", "request_id", "deadline_ms", "model")
_PATH = frozenset((*_HEADER, "queries", "options"))
_OPEN = frozenset((*_HEADER, "session", "image", "instruction", "options"))
_NAMED = frozenset((*_HEADER, "session"))
_QUERY = frozenset(("image", "instruction"))
_OPTIONS = frozenset(("structured", "view", "max_points", "initial_open", "draw", "form", "canvas", "audit"))
DrawForm = Literal["overlay", "concat"]
VIEWS: tuple[ViewName, ...] = get_args(ViewName)
FORMS: tuple[DrawForm, ...] = get_args(DrawForm)


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """How a path is asked for and told.

    Attributes:
        structured: whether only answers of the grammar can come.
        view: how the image is shown to the model.
        max_points: most points of the answer.
        initial_open: the gripper's state before the first tag.
        draw: style of a drawing that the reply brings, one of `STYLES`; None brings none.
        form: "overlay" draws on the image; "concat" on black, to be stacked on the image as channels 4 to 6.
        canvas: (height, width) of black to draw on, of the form "concat": where the path lies once the image is resized
            to it with padding, as policies' images are. None takes the image's own size.
        audit: whether the model's own words go into the reply.
    """

    structured: bool
    view: ViewName
    max_points: int
    initial_open: bool
    draw: str | None = None
    form: DrawForm = "overlay"
    canvas: tuple[int, int] | None = None
    audit: bool = False


@dataclass(frozen=True, kw_only=True)
class PathQuery:
    """One image, as it stood in the message, and what is to be done in it; `field`: what a refusal calls it."""

    image: Any
    instruction: str
    field: str

    @property
    def image_field(self) -> str:
        """What a refusal calls the image."""
        return f"{self.field}.image" if self.field else "image"


@dataclass(frozen=True, kw_only=True)
class PathRequest:
    """A checked request for paths; `deadline_ms` counts from receipt."""

    queries: tuple[PathQuery, ...]
    options: PathOptions
    deadline_ms: float | None


@dataclass(frozen=True, kw_only=True)
class OpenRequest:
    """A checked request to keep a path; `session` None has the server name it."""

    session: str | None
    query: PathQuery
    options: PathOptions
    deadline_ms: float | None


@dataclass(frozen=True, kw_only=True)
class RequeryRequest:
    """A checked request to ask anew; what is None stays as the session was opened with."""

    session: str
    image: Any
    instruction: str | None
    options: Mapping[str, Any]
    deadline_ms: float | None


class PathParser:
    """Checks messages against a predictor's wording and its service's limits.

    Args:
        prompt: the wording; `args`: the application's arguments.
    """

    def __init__(self, prompt: PathPrompt, args: PathArgs) -> None:
        self._prompt, self._args = prompt, args
        self.most_points = min(args.paths.points, prompt.answer.max_points)
        self.defaults = PathOptions(
            structured=args.structured,
            view=args.view,
            max_points=self.most_points,
            initial_open=prompt.initial_open,
        )

    def path(self, message: Mapping[str, Any]) -> PathRequest:
        """Check a request for paths.

        Raises:
            RoboserveError: naming the field, the value and the limit.
        """
        refuse_unknown(message, _PATH, "message")
        queries = message.get("queries")
        if not isinstance(queries, list) or not queries:
            raise RoboserveError("invalid_request", f"queries: must be a list of at least one, is {kind_of(queries)}")
        if len(queries) > self._args.paths.images:
            raise RoboserveError("too_large", f"queries: {len(queries)}, limit {self._args.paths.images} a request")
        return PathRequest(
            queries=tuple(self._query(query, f"queries[{index}]") for index, query in enumerate(queries)),
            options=self.options(_map(message, "options"), self.defaults),
            deadline_ms=_deadline(message),
        )

    def open(self, message: Mapping[str, Any]) -> OpenRequest:
        """Check a request to keep a path; raises as `path` does."""
        refuse_unknown(message, _OPEN, "message")
        return OpenRequest(
            session=short_text(message, "session"),
            query=PathQuery(image=_image(message, ""), instruction=self._instruction(message, ""), field=""),
            options=self.options(_map(message, "options"), self.defaults),
            deadline_ms=_deadline(message),
        )

    def requery(self, message: Mapping[str, Any]) -> RequeryRequest:
        """Check a request to ask anew; raises as `path` does."""
        refuse_unknown(message, _OPEN, "message")
        options = _map(message, "options")
        self.options(options, self.defaults)
        return RequeryRequest(
            session=session_of(message),
            image=_image(message, ""),
            instruction=None if message.get("instruction") is None else self._instruction(message, ""),
            options=options,
            deadline_ms=_deadline(message),
        )

    def options(self, given: Mapping[str, Any], defaults: PathOptions) -> PathOptions:
        """Check options; those that are not given are `defaults`'.

        Raises:
            RoboserveError: as `path`.
        """
        refuse_unknown(given, _OPTIONS, "options")
        structured = _flag(given, "structured", default=defaults.structured)
        if structured and not self._args.structured:
            raise RoboserveError("invalid_request", "options.structured: true, which this service does not offer")
        known = {name: _flag(given, name, default=getattr(defaults, name)) for name in ("initial_open", "audit")}
        draw = _choice(given, "draw", ("none", *STYLES), defaults.draw or "none")
        form = cast("DrawForm", _choice(given, "form", FORMS, defaults.form))
        return replace(
            defaults,
            structured=structured,
            view=cast("ViewName", _choice(given, "view", VIEWS, defaults.view)),
            max_points=integer(given, "max_points", 1, self.most_points) or defaults.max_points,
            draw=None if draw == "none" else draw,
            form=form,
            canvas=self._canvas(given, form, defaults.canvas),
            **known,
        )

    def _canvas(
        self, given: Mapping[str, Any], form: DrawForm, default: tuple[int, int] | None
    ) -> tuple[int, int] | None:
        value = given.get("canvas")
        if value is None:
            return default if form == "concat" else None
        pixels = self._args.limits.image_pixels
        if not isinstance(value, list) or len(value) != 2 or not all(type(side) is int and side > 0 for side in value):
            raise RoboserveError("invalid_request", "options.canvas: must be height and width, 1 or more each")
        if form != "concat":
            raise RoboserveError("invalid_request", "options.canvas: needs the form 'concat'")
        if value[0] * value[1] > pixels:
            raise RoboserveError("too_large", f"options.canvas: {value[1]} x {value[0]} pixels, limit {pixels} in all")
        return value[0], value[1]

    def _query(self, query: Any, field: str) -> PathQuery:
        if not isinstance(query, dict):
            raise RoboserveError("invalid_request", f"{field}: must be a map, is {kind_of(query)}")
        refuse_unknown(query, _QUERY, field)
        return PathQuery(image=_image(query, field), instruction=self._instruction(query, field), field=field)

    def _instruction(self, source: Mapping[str, Any], field: str) -> str:
        where = f"{field}.instruction" if field else "instruction"
        text = source.get("instruction")
        if not isinstance(text, str) or not text.strip():
            raise RoboserveError("invalid_request", f"{where}: must be text, not empty")
        if len(text) > self._prompt.quest_chars:
            raise RoboserveError("too_large", f"{where}: {len(text)} characters, limit {self._prompt.quest_chars}")
        return text


def named(message: Mapping[str, Any]) -> str:
    """Check a message that only names a session, and return it.

    Raises:
        RoboserveError: `invalid_request`.
    """
    refuse_unknown(message, _NAMED, "message")
    return session_of(message)


def session_of(message: Mapping[str, Any]) -> str:
    """Return the session that a message names.

    Raises:
        RoboserveError: `invalid_request`.
    """
    session = short_text(message, "session")
    if session is None:
        raise RoboserveError("invalid_request", "session: is missing")
    return session


def _image(source: Mapping[str, Any], field: str) -> Any:
    if source.get("image") is None:
        raise RoboserveError("invalid_request", f"{field}.image: is missing" if field else "image: is missing")
    return source["image"]


def _map(message: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = message.get(field)
    if value is not None and not isinstance(value, dict):
        raise RoboserveError("invalid_request", f"{field}: must be a map, is {kind_of(value)}")
    return value or {}


def _flag(given: Mapping[str, Any], name: str, *, default: bool) -> bool:
    return default if given.get(name) is None else flag(given, name)


def _choice(given: Mapping[str, Any], name: str, known: tuple[str, ...], default: str) -> str:
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or value not in known:
        raise RoboserveError("invalid_request", f"options.{name}: {value!r:.40}; known are {', '.join(known)}")
    return value


def _deadline(message: Mapping[str, Any]) -> float | None:
    return number(message, "deadline_ms", 0.0, _MAX_DEADLINE_MS)
