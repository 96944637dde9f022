"""What a path client is given and gives back, and replies of the server, refused where they are unusable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from clients.errors import RoboserveError
from clients.images import Array, decode_image, encode_image
from clients.reward_messages import ModelIdentity

if TYPE_CHECKING:
    from clients.path_contract import PathContract

_MOST_PIXELS = 4096 * 4096


@dataclass(frozen=True)
class PathQuery:
    """An image, uint8 (h, w, 3) or JPEG or PNG bytes, and what is to be done in it, in words."""

    image: Union[bytes, Array]
    instruction: str


@dataclass(frozen=True)
class PathIssue:
    """Something odd about an answer that was read nevertheless; `points`: indices of the path's that it concerns."""

    code: str
    points: Tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PathReply:
    """A path.

    Attributes:
        points: float64 (n, 2), x to the right and y down, 0 to 1 of the whole image, whatever view of it the model saw.
        gripper_open: bool (n,), the state from this point on.
        issues: what was odd about the answer.
        answered: points of the answer, before simplification.
        form: notation of the answer; `finish`: "stop", or "length" where it was cut off.
        answer: the model's own words, where they were asked for.
        drawing: RGB uint8 (h, w, 3) where a drawing was asked for, of the image's size or the canvas's: the path on the
            image, or on black for the form "concat".
    """

    points: Array
    gripper_open: Array
    issues: Tuple[PathIssue, ...]
    answered: int
    form: str
    finish: str
    answer: Optional[str] = None
    drawing: Optional[Array] = None

    def six_channels(self, image: Array) -> Array:
        """Return uint8 (h, w, 6): an image, then the drawing, which has to be one of the form "concat".

        Raises:
            RoboserveError: `invalid_image` without a drawing, or of another size.
        """
        return np.concatenate([image, self._fitting(image)], axis=2)

    def over(self, image: Array) -> Array:
        """Return a copy of an image with the path on it, from a drawing of the form "concat"; raises as above.

        No style draws in black, so this is what drawing on the image itself gives, to the pixel.
        """
        return laid_over(image, self._fitting(image))

    def _fitting(self, image: Array) -> Array:
        if self.drawing is None:
            raise RoboserveError("invalid_image", "drawing: none was asked for")
        if image.shape != self.drawing.shape or image.dtype != np.uint8:
            raise RoboserveError(
                "invalid_image",
                f"image: {image.dtype} {image.shape}, needs uint8 {self.drawing.shape} as the drawing",
            )
        return self.drawing


@dataclass(frozen=True)
class PathFailure:
    """An answer that holds no path: `code` and `message` of the error, the parser's `reason`, the answer on request."""

    code: str
    message: str
    reason: str
    answer: Optional[str] = None

    def error(self) -> RoboserveError:
        """Return the same as an error."""
        return RoboserveError(self.code, self.message)


@dataclass(frozen=True)
class PathReplies:
    """An answer: a path or a failure for each query, in order, and how it came about.

    Attributes:
        adapter: who answered; None is the base.
        usage: "calls", "prompt_tokens", "answer_tokens" of this request.
        timings: ms on the server: "decode", "answer" (the longest), "total".
    """

    paths: Tuple[Union[PathReply, PathFailure], ...]
    model: ModelIdentity
    adapter: Optional[str]
    usage: Mapping[str, int]
    timings: Mapping[str, float]


@dataclass(frozen=True)
class KeptReply:
    """A kept path: its session, the instruction that it is for, and how often the model was asked."""

    session: str
    instruction: str
    queries: int
    path: PathReply
    model: ModelIdentity
    adapter: Optional[str]


@dataclass(frozen=True)
class PathAsk:
    """How paths are asked for; see `clients.path.PathClient.paths`. What is None is the server's choice."""

    view: Optional[str] = None
    structured: Optional[bool] = None
    max_points: Optional[int] = None
    initial_open: Optional[bool] = None
    draw: Optional[str] = None
    form: Optional[str] = None
    canvas: Optional[Tuple[int, int]] = None
    audit: Optional[bool] = None

    def options(self) -> Dict[str, Any]:
        """Return the wire form."""
        given = {**vars(self), "canvas": None if self.canvas is None else list(self.canvas)}
        return {name: value for name, value in given.items() if value is not None}

    def path(self, queries: Sequence[PathQuery], contract: PathContract, codec: str) -> Dict[str, Any]:
        """Return the message for some queries; raises `too_large` for too many, and as `wire_image`."""
        limit = int(contract.limits["images"])
        if len(queries) > limit:
            raise RoboserveError("too_large", f"queries: {len(queries)}, limit {limit} in one request")
        asked = [
            {"image": wire_image(query.image, codec, f"queries[{i}].image"), "instruction": query.instruction}
            for i, query in enumerate(queries)
        ]
        return {"type": "path", "queries": asked, "options": self.options()}


def laid_over(image: Array, drawing: Array) -> Array:
    """Return an image with a drawing on black laid over it, both uint8 (h, w, 3) of one size."""
    return np.where(drawing.any(axis=2, keepdims=True), drawing, image)


def wire_image(image: Union[bytes, Array], codec: str, field: str) -> Any:
    """Return an image as it travels; raises `invalid_image` naming the field."""
    if isinstance(image, bytes):
        return image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise RoboserveError("invalid_image", f"{field}: {image.dtype} {image.shape}, needs uint8 (height, width, 3)")
    return encode_image(image, codec)


def read_paths(message: Mapping[str, Any], *, queries: int) -> PathReplies:
    """Read a reply to `path`.

    Raises:
        RoboserveError: `invalid_output` for a reply of another type or form.
    """
    _require_type(message, "paths")
    found = message.get("paths")
    if not isinstance(found, list) or len(found) != queries:
        raise RoboserveError("invalid_output", f"paths: the server answered other than the {queries} that were asked")
    return PathReplies(
        paths=tuple(_read_entry(entry, f"paths[{index}]") for index, entry in enumerate(found)),
        model=_model(message),
        adapter=_adapter(message),
        usage={str(name): int(value) for name, value in _map(message, "usage").items()},
        timings={str(name): float(value) for name, value in _map(message, "timings").items()},
    )


def read_kept(message: Mapping[str, Any]) -> KeptReply:
    """Read a reply to `open`, `get` or `requery`; raises as `read_paths`."""
    _require_type(message, "kept")
    return KeptReply(
        session=str(message.get("session")),
        instruction=str(message.get("instruction")),
        queries=int(message.get("queries", 0)),
        path=read_path(_map(message, "path"), "path"),
        model=_model(message),
        adapter=_adapter(message),
    )


def read_path(entry: Mapping[str, Any], field: str) -> PathReply:
    """Read one path; raises as `read_paths`."""
    points, states = entry.get("points"), entry.get("gripper_open")
    if not isinstance(points, np.ndarray) or points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise RoboserveError("invalid_output", f"{field}.points: must be (n, 2), n over 0")
    if points.dtype.kind != "f" or not np.isfinite(points).all() or points.min() < 0 or points.max() > 1:
        raise RoboserveError("invalid_output", f"{field}.points: must be numbers from 0 to 1")
    if not isinstance(states, np.ndarray) or states.shape != (len(points),) or states.dtype != np.bool_:
        raise RoboserveError("invalid_output", f"{field}.gripper_open: must be {len(points)} truth values")
    drawing, answer = entry.get("drawing"), entry.get("answer")
    return PathReply(
        points=points.astype(np.float64),
        gripper_open=states,
        issues=tuple(_issues(entry.get("issues"), field)),
        answered=int(entry.get("answered", len(points))),
        form=str(entry.get("form")),
        finish=str(entry.get("finish")),
        answer=None if answer is None else str(answer),
        drawing=None if drawing is None else _drawing(drawing, field),
    )


def _read_entry(entry: Any, field: str) -> Union[PathReply, PathFailure]:
    if not isinstance(entry, Mapping):
        raise RoboserveError("invalid_output", f"{field}: is not a map")
    error = entry.get("error")
    if error is None:
        return read_path(entry, field)
    if not isinstance(error, Mapping):
        raise RoboserveError("invalid_output", f"{field}.error: is not a map")
    told, answer = RoboserveError.from_map(error), entry.get("answer")
    return PathFailure(told.code, told.message, str(error.get("reason")), None if answer is None else str(answer))


def _drawing(value: Any, field: str) -> Array:
    try:
        return decode_image(value, field=f"{field}.drawing", max_pixels=_MOST_PIXELS)
    except RoboserveError as error:
        raise RoboserveError("invalid_output", error.message) from error


def _issues(value: Any, field: str) -> List[PathIssue]:
    if not isinstance(value, list) or not all(isinstance(issue, Mapping) for issue in value):
        raise RoboserveError("invalid_output", f"{field}.issues: must be a list of maps")
    return [
        PathIssue(str(issue.get("code")), tuple(int(point) for point in issue.get("points") or ())) for issue in value
    ]


def _require_type(message: Mapping[str, Any], kind: str) -> None:
    if message.get("type") != kind:
        raise RoboserveError("invalid_output", f"reply type: {message.get('type')!r:.40}, expected {kind!r}")


def _model(message: Mapping[str, Any]) -> ModelIdentity:
    model = _map(message, "model")
    names = ("id", "revision", "content_hash", "architecture", "dtype", "prompt_version")
    return ModelIdentity(*(str(model.get(name, "")) for name in names))


def _adapter(message: Mapping[str, Any]) -> Optional[str]:
    adapter = _map(message, "model").get("adapter")
    return None if adapter is None else str(adapter)


def _map(message: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = message.get(name)
    if not isinstance(value, Mapping):
        raise RoboserveError("invalid_output", f"reply: needs {name} as a map")
    return value
