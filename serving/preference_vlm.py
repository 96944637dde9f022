"""A vision-language model as a labeller: two protocols over any engine."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from models.folders import checkpoint_folder
from models.preference.combine import combined, one_hot, require_sane
from models.preference.contract import TIE, LabellerSpec, Protocols, Reading, Reply, Usage
from models.preference.prompt import FILE, GENERAL_PROMPT, PreferencePrompt, chances_of, parse_label
from serving.together import together
from serving.vlm.contract import Sampling, VlmRequest, answering_hash
from serving.vlm.engines import EngineSettings, LocalSettings, make_engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.preference.contract import Judgement, LabelOptions, Pair
    from models.vlm.messages import Message
    from serving.vlm.contract import VlmEngine


class VlmLabeller:
    """Asks a vision-language model; `start` makes one from its configuration.

    The one-token protocol reads the label words' probabilities and samples nothing. The two-stage protocol takes the
    likeliest answers; with several votes the analyses are drawn, each vote with a seed of its own, so that the same
    question gets the same votes again.

    Args:
        engine: who answers; `config`: how it is asked; `prompt`: its wording.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Configuration.

        Attributes:
            engine: see `serving.vlm.engines`.
            adapter: who answers, as the engine calls it; None is the base.
            prompt: a folder with a `preference_prompt.json` ("zoo:NAME" too), or such a file; None takes the engine's
                own folder, and a general wording where that has none.
            protocol: the one that holds where a request names none; None is the prompt's first.
            concurrency: questions put to the engine at once.
            vote_temperature: of analyses that are drawn, over 0.
            max_frames: most frames of one side.
            goal_chars: longest goal.
        """

        engine: EngineSettings
        adapter: str | None = None
        prompt: str | None = None
        protocol: Protocols | None = None
        concurrency: int = 32
        vote_temperature: float = 0.7
        max_frames: int = 4
        goal_chars: int = 512

        @property
        def checkpoint(self) -> str | None:
            """The engine's folder, where it has one here."""
            return self.engine.checkpoint if isinstance(self.engine, LocalSettings) else None

    def __init__(self, engine: VlmEngine, config: Config, prompt: PreferencePrompt) -> None:
        self._engine, self._config, self.prompt = engine, config, prompt
        self._room = asyncio.Semaphore(config.concurrency)
        known: list[Protocols] = []
        if prompt.one_token is not None:
            known.append("one_token")
        if prompt.two_stage is not None:
            known.append("two_stage")
        if config.protocol is not None and config.protocol not in known:
            raise ValueError(f"protocol: {config.protocol!r}; the prompt has {', '.join(known)}")
        if config.concurrency < 1 or not config.vote_temperature > 0.0 or config.max_frames < 1:
            raise ValueError("concurrency, vote_temperature and max_frames: must be positive")
        known.sort(key=lambda name: name != config.protocol)
        if engine.spec.images < 2:
            raise ValueError(f"engine.images: {engine.spec.images}, a pair needs 2")
        self._protocols: tuple[Protocols, ...] = tuple(known)

    @classmethod
    async def start(cls, config: Config) -> VlmLabeller:
        """Start the engine and read the wording.

        Raises:
            FileNotFoundError, ValueError, ImportError: see `make_engine`, `PreferencePrompt.read` and the class.
        """
        prompt = read_prompt(config.prompt, config.checkpoint)
        engine = await make_engine(config.engine)
        try:
            return cls(engine, config, prompt)
        except ValueError:
            await engine.close()
            raise

    @property
    def spec(self) -> LabellerSpec:
        """What answers now: an adapter, or a model, that takes another's place under its name changes the hash."""
        engine, config, prompt = self._engine.spec, self._config, self.prompt
        return LabellerSpec(
            id=engine.id,
            revision=engine.revision,
            content_hash=answering_hash(self._engine, config.adapter),
            architecture="vlm",
            dtype=engine.dtype,
            prompt_id=prompt.id,
            protocols=self._protocols,
            image_size=prompt.image_size,
            max_frames=min(config.max_frames, engine.images // 2),
            goal_chars=config.goal_chars,
        )

    async def label(self, pairs: Sequence[Pair], options: LabelOptions) -> list[Judgement]:
        """Label pairs; see `Labeller.label`, and `VlmEngine` for the errors of an engine."""
        require_sane(pairs, options, self.spec)
        return await together(self._judge(pair, options) for pair in pairs)

    def check_health(self) -> None:
        """Raise when the engine can answer no more."""
        self._engine.check_health()

    async def close(self) -> None:
        """Free the engine."""
        await self._engine.close()

    async def _judge(self, pair: Pair, options: LabelOptions) -> Judgement:
        orders = [(pair, False), (pair.swapped, True)] if options.order_swap else [(pair, False)]
        questions = [(shown, swapped, vote) for shown, swapped in orders for vote in range(options.votes)]
        readings = await together(self._read(*question, options) for question in questions)
        return combined(readings[: options.votes], readings[options.votes :], options)

    async def _read(self, pair: Pair, swapped: bool, vote: int, options: LabelOptions) -> Reading:  # noqa: FBT001
        async with self._room:
            if options.protocol == "one_token":
                return await self._one_token(pair, swapped=swapped)
            return await self._two_stage(pair, swapped=swapped, vote=vote if options.votes > 1 else None)

    async def _one_token(self, pair: Pair, *, swapped: bool) -> Reading:
        prompt = self.prompt.one_token
        if prompt is None:
            raise ValueError("prompt: has no 'one_token'")
        words = prompt.labels.listed
        read = await self._engine.labels(self.prompt.ask_one_token(pair), words, adapter=self._config.adapter)
        told = chances_of(read.logprobs)
        text = json.dumps(dict(zip(words, read.logprobs, strict=True)))
        return Reading(
            chances=None if told is None else told[0],
            mass=None if told is None else told[1],
            usage=Usage(calls=1, prompt_tokens=read.prompt_tokens),
            replies=(Reply(swapped=swapped, vote=0, stage="one_token", text=text),),
        )

    async def _two_stage(self, pair: Pair, *, swapped: bool, vote: int | None) -> Reading:
        prompt = self.prompt.two_stage
        if prompt is None:
            raise ValueError("prompt: has no 'two_stage'")
        drawn = Sampling(max_tokens=prompt.analysis_tokens)
        if vote is not None:
            drawn = replace(drawn, temperature=self._config.vote_temperature, seed=vote)
        analysis, first = await self._say(self.prompt.ask_analysis(pair), drawn)
        question = self.prompt.ask_label(pair.goal, analysis)
        answer, second = await self._say(question, Sampling(max_tokens=prompt.label_tokens))
        label = parse_label(answer)
        replies = (("analysis", analysis), ("label", answer))
        return Reading(
            chances=one_hot(TIE if label is None else label),
            unparsed=label is None,
            usage=first + second,
            replies=tuple(Reply(swapped=swapped, vote=vote or 0, stage=stage, text=text) for stage, text in replies),
        )

    async def _say(self, messages: tuple[Message, ...], sampling: Sampling) -> tuple[str, Usage]:
        request = VlmRequest(messages=messages, sampling=sampling, adapter=self._config.adapter)
        text, usage = "", Usage(calls=1)
        async for chunk in self._engine.stream(request):
            text += chunk.text
            if chunk.finish is not None:
                usage = Usage(calls=1, prompt_tokens=chunk.prompt_tokens, answer_tokens=chunk.answer_tokens)
        return text, usage


def read_prompt(given: str | None, checkpoint: str | None) -> PreferencePrompt:
    """Return the wording that a configuration names; see `VlmLabeller.Config`.

    Raises:
        FileNotFoundError: what is named is not there.
        ValueError: the file is damaged.
    """
    if given is not None:
        path = checkpoint_folder(given)
        return PreferencePrompt.read(path / FILE if path.is_dir() else path)
    own = None if checkpoint is None else checkpoint_folder(checkpoint) / FILE
    if own is not None and Path(own).is_file():
        return PreferencePrompt.read(own)
    return GENERAL_PROMPT
