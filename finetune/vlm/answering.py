"""A checkpoint answers as it does in the service, many questions in one forward, with a form imposed or without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.hamster.grammar import answer_regex
from models.hamster.prompt import read_prompt
from models.preference.prompt import FILE, PreferencePrompt
from models.vlm.adapters import Adapters
from models.vlm.checkpoint import load_checkpoint
from models.vlm.constraint import Grammars
from models.vlm.decoding import Decoding, Draw, label_logprobs
from models.vlm.messages import user

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from models.preference.contract import Pair
    from models.vlm.inputs import Prompt


class Answering:
    """A folder's base and adapters, asked many questions at once.

    Args:
        folder: with `path_prompt.json` and `preference_prompt.json`.
        batch: most prompts in one forward.

    Raises:
        FileNotFoundError, ValueError: the folder lacks something or is damaged.
    """

    def __init__(self, folder: Path, *, batch: int = 64) -> None:
        self._checkpoint = load_checkpoint(folder)
        self._path_prompt = read_prompt(folder)
        self._preference_prompt = PreferencePrompt.read(folder / FILE)
        self._adapters = Adapters(self._checkpoint.network)
        self._slots = {
            name: self._adapters.load(name, place) for name, place in self._checkpoint.folder.adapters.items()
        }
        self._batch = batch
        network: Any = self._checkpoint.network
        self._grammars = Grammars(
            self._checkpoint.tokenizer,
            vocabulary=network.config.get_text_config().vocab_size,
            ends=self._checkpoint.ends,
        )

    @property
    def content_hash(self) -> str:
        """Of the base."""
        return self._checkpoint.folder.content_hash

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters."""
        return tuple(self._slots)

    def paths(
        self,
        images: Sequence[NDArray[np.uint8]],
        quests: Sequence[str],
        *,
        adapter: str | None,
        constrain: bool,
        report: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Return the answer to each question for a path, greedily decoded.

        Args:
            constrain: only texts of the answer's grammar may come.
            report: told how many more are answered.
        """
        self._adapters.use(self._slots[adapter] if adapter else None)
        form = answer_regex(self._path_prompt.answer.style)
        answers: list[str] = []
        for first in range(0, len(images), self._batch):
            part = slice(first, first + self._batch)
            messages = [
                (user(image, self._path_prompt.text(quest)),)
                for image, quest in zip(images[part], quests[part], strict=True)
            ]
            prompts = [self._checkpoint.composer.compose(turns) for turns in messages]
            draws = [Draw(mask=self._grammars.compile("regex", form) if constrain else None) for _ in prompts]
            answers += self._decoded(prompts, draws)
            if report is not None:
                report(len(prompts))
        return answers

    def labels(
        self, pairs: Sequence[Pair], *, adapter: str | None, report: Callable[[int], None] | None = None
    ) -> list[list[float]]:
        """Return the log-probabilities of the labels first, second and tie of each pair."""
        if self._preference_prompt.one_token is None:
            raise ValueError("preference prompt: has no one-token question")
        self._adapters.use(self._slots[adapter] if adapter else None)
        words = self._preference_prompt.one_token.labels.listed
        tokenizer = self._checkpoint.tokenizer
        ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
        found: list[list[float]] = []
        for first in range(0, len(pairs), self._batch):
            part = pairs[first : first + self._batch]
            prompts = [self._checkpoint.composer.compose(self._preference_prompt.ask_one_token(pair)) for pair in part]
            found += label_logprobs(self._checkpoint, prompts, [ids] * len(prompts))
            if report is not None:
                report(len(prompts))
        return found

    def _decoded(self, prompts: Sequence[Prompt], draws: Sequence[Draw]) -> list[str]:
        decoding = Decoding(self._checkpoint, prompts, draws)
        tokens: list[list[int]] = [[] for _ in prompts]
        for _ in range(self._path_prompt.decoding.max_tokens):
            ended = set()
            for drawn in decoding.draw():
                if decoding.is_end(drawn.token):
                    ended.add(drawn.row)
                else:
                    tokens[drawn.row].append(drawn.token)
            decoding.advance(ended)
            if not decoding.rows:
                break
        return [self._checkpoint.tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
