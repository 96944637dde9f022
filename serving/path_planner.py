"""A vision-language model as a path predictor: an image and an instruction in, a path in that image out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clients.errors import RoboserveError
from models.folders import checkpoint_folder
from models.hamster.answer import AnswerError, AnswerLimits, AnswerStyle, parse_answer
from models.hamster.grammar import answer_regex, longest_answer
from models.hamster.prompt import PromptError, read_prompt
from models.hamster.simplify import kept
from models.hamster.view import View, seen
from models.vlm.messages import user
from serving.vlm.contract import Constraint, Sampling, VlmRequest, answering_hash
from serving.vlm.engines import make_engine

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from models.hamster.answer import ParsedAnswer
    from models.hamster.path import Path
    from models.hamster.prompt import PathPrompt
    from models.vlm.messages import Message
    from serving.path_config import PathArgs
    from serving.path_requests import PathOptions
    from serving.vlm.contract import FinishReason, VlmEngine

_ROUNDING = 1e-6


class UnreadableAnswerError(RoboserveError):
    """A model's answer that is no path: `invalid_output`.

    Attributes:
        reason: code of `models.hamster.draft.AnswerError`.
        answer: the model's own words.
    """

    def __init__(self, reason: str, message: str, *, answer: str) -> None:
        super().__init__("invalid_output", message)
        self.reason, self.answer = reason, answer


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a model said, why it ended, and its tokens."""

    text: str
    finish: FinishReason
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A path that was read off an answer.

    Attributes:
        path: in normalised coordinates of the whole image, simplified.
        issues: what was odd, code to the indices of the path's points that it concerns; those of the parser, and
            `in_padding` for points beside the image, which were brought to its border.
        answered: points of the answer, before simplification.
        form: notation of the answer.
        said: the model's own words.
    """

    path: Path
    issues: Mapping[str, tuple[int, ...]]
    answered: int
    form: str
    said: Said


class PathPlanner:
    """Asks one engine by one wording; `start` makes one.

    Args:
        engine: who answers; `prompt`: how it is asked; `args`: the application's arguments.

    Raises:
        ValueError: answers are too short for a single point, or the engine shows no image.
    """

    def __init__(self, engine: VlmEngine, prompt: PathPrompt, args: PathArgs) -> None:
        self.engine, self.prompt, self._args = engine, prompt, args
        least = longest_answer(AnswerStyle(decimals=prompt.answer.decimals, max_points=1))
        if args.structured and prompt.decoding.max_tokens < least:
            # A token is a character or more: with fewer tokens a constrained answer might end before its first point.
            raise ValueError(f"decoding.max_tokens: {prompt.decoding.max_tokens}, one point may take {least}")
        if engine.spec.images < 1:
            raise ValueError(f"engine.images: {engine.spec.images}, a path needs 1")

    @classmethod
    async def start(cls, args: PathArgs) -> PathPlanner:
        """Read the wording and start the engine.

        Raises:
            FileNotFoundError, ValueError, ImportError: see `make_engine`, `read_prompt` and the class.
            RoboserveError: the engine's, where it is another application's.
        """
        prompt = read_prompt(checkpoint_folder(args.prompt_folder))
        engine = await make_engine(args.engine)
        try:
            return cls(engine, prompt, args)
        except ValueError:
            await engine.close()
            raise

    def described(self) -> dict[str, Any]:
        """Return what every answer says of the model; an adapter that takes another's place changes the hash."""
        spec, adapter = self.engine.spec, self._args.adapter
        return {
            "id": self._args.name,
            "revision": spec.revision,
            "content_hash": answering_hash(self.engine, adapter),
            "architecture": "vlm",
            "dtype": spec.dtype,
            "prompt_version": f"{self.prompt.version}-{self.prompt.content_hash[:12]}",
            "adapter": adapter,
        }

    def shown(self, image: NDArray[np.uint8], options: PathOptions) -> tuple[NDArray[np.uint8], View]:
        """Return an image as the model is to see it, and the view that leads back to its own coordinates."""
        if options.view == "none":
            return image, View.stretch()
        size = self._args.image_size
        wanted = None if size is None else (size[1], size[0])
        if options.view == "stretch" and wanted is None:
            # HAMSTER's "Stretch" leaves it to the model's processor to make a square of it; here it is made.
            wanted = (min(image.shape[:2]), min(image.shape[:2]))
        return seen(image, options.view, size=wanted)

    async def ask(self, image: NDArray[np.uint8], instruction: str, options: PathOptions, *, field: str = "") -> Said:
        """Ask about one image, as the model is to see it.

        Args:
            field: what a refusal calls the query.

        Raises:
            RoboserveError: `invalid_request` for an instruction without words, or the engine's.
        """
        try:
            text = self.prompt.text(instruction)
        except PromptError as error:
            raise RoboserveError("invalid_request", f"{field and field + '.'}instruction: {error}") from error
        message = user(image, text) if self.prompt.image_first else user(text, image)
        constraint = self.constraint(options.max_points) if options.structured else None
        decoding = self.prompt.decoding
        sampling = Sampling(max_tokens=decoding.max_tokens, temperature=decoding.temperature, top_p=decoding.top_p)
        return await self.say((message,), sampling, constraint)

    async def say(self, messages: tuple[Message, ...], sampling: Sampling, constraint: Constraint | None) -> Said:
        """Have the engine go on with a conversation to its end; raises what the engine raises."""
        request = VlmRequest(messages=messages, sampling=sampling, constraint=constraint, adapter=self._args.adapter)
        pieces: list[str] = []
        stream = self.engine.stream(request)
        try:
            async for chunk in stream:
                pieces.append(chunk.text)
                if chunk.finish is not None:
                    return Said(
                        text="".join(pieces),
                        finish=chunk.finish,
                        prompt_tokens=chunk.prompt_tokens,
                        answer_tokens=chunk.answer_tokens,
                    )
        finally:
            await stream.aclose()
        raise RoboserveError("internal", "vlm: the engine's answer has no end")

    def constraint(self, max_points: int) -> Constraint:
        """Return what a structured answer must be."""
        style = AnswerStyle(decimals=self.prompt.answer.decimals, max_points=max_points)
        return Constraint(kind="regex", value=answer_regex(style))

    def read(self, said: Said, view: View, options: PathOptions, *, field: str = "") -> Plan:
        """Read a path off an answer.

        Raises:
            UnreadableAnswerError: it holds none.
        """
        try:
            parsed = parse_answer(
                said.text,
                initial_open=options.initial_open,
                limits=AnswerLimits(max_points=options.max_points),
            )
        except AnswerError as error:
            cut = f"; it was cut off after {said.answer_tokens} tokens" if said.finish == "length" else ""
            text = f"{field or 'path'}: {error.code}: {error}{cut}"
            raise UnreadableAnswerError(error.code, text, answer=said.text) from error
        return _plan(parsed, said, view, self._args.tolerance)


def _plan(parsed: ParsedAnswer, said: Said, view: View, tolerance: float | None) -> Plan:
    whole = parsed.path
    indices = np.arange(len(whole)) if tolerance is None else kept(whole, tolerance=tolerance)
    path = whole.taken(indices)
    place = {int(old): new for new, old in enumerate(indices)}
    issues: dict[str, tuple[int, ...]] = {}
    for issue in parsed.issues:
        issues[issue.code] = tuple(place[point] for point in issue.points if point in place)
    original = view.to_original(path.points)
    beside = np.flatnonzero(((original < -_ROUNDING) | (original > 1 + _ROUNDING)).any(axis=1))
    if len(beside):
        issues["in_padding"] = tuple(int(point) for point in beside)
    return Plan(path=path.in_original(view), issues=issues, answered=len(whole), form=parsed.form, said=said)
