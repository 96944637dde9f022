"""Answers that must have a form: a grammar says at each place which tokens may come (llguidance).

llguidance is also a backend of vLLM's, so one grammar means one language in both engines. It is bounded: a grammar that
is too large, or a schema that is too deep, is refused when it is compiled.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ConstraintKind = Literal["choice", "regex", "json", "grammar"]
GRAMMAR_CHARS = 65_536


class Grammars:
    """Compiles constraints for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer; `vocabulary`: columns of the network's logits.
        ends: ids of the tokens that end an answer.

    Raises:
        ImportError: llguidance is not installed; the message names the extra.
    """

    def __init__(self, tokenizer: Any, *, vocabulary: int, ends: frozenset[int]) -> None:
        try:
            import llguidance.hf
        except ImportError as error:
            raise ImportError("structured answers need llguidance; install roboserve[vlm]") from error
        self._library: Any = llguidance
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(ends))
        self._vocabulary = vocabulary

    def compile(self, kind: ConstraintKind, value: Any) -> TokenMask:
        """Return a constraint at its beginning.

        Raises:
            ValueError: the constraint cannot be compiled, with the reason.
        """
        matcher = self._library.LLMatcher
        try:
            grammar = self._grammar(kind, value)
            reason = matcher.validate_grammar(grammar, self._tokenizer)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{kind}: {error}"[:300]) from error
        if reason:
            raise ValueError(f"{kind}: {reason}"[:300])
        return TokenMask(matcher(self._tokenizer, grammar), self._vocabulary)

    def _grammar(self, kind: ConstraintKind, value: Any) -> str:
        matcher = self._library.LLMatcher
        if kind == "choice":
            texts = list(value)
            if not texts or not all(isinstance(text, str) and text for text in texts):
                raise ValueError("must be texts, at least one, none empty")
            grammar = matcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, texts)))
        elif kind == "regex":
            grammar = matcher.grammar_from_regex(value)
        elif kind == "json":
            # no space but where a text holds one: a small model would fill its whole answer with it
            grammar = matcher.grammar_from_json_schema(value, overrides={"whitespace_flexible": False})
        else:
            grammar = matcher.grammar_from_lark(value)
        if len(grammar) > GRAMMAR_CHARS:
            raise ValueError(f"{len(grammar)} characters as a grammar, limit {GRAMMAR_CHARS}")
        return str(grammar)


class TokenMask:
    """Which tokens may come next in one answer."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def allowed(self) -> NDArray[np.bool_]:
        """Return bool (vocabulary,)."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(packed, bitorder="little")[: self._vocabulary].astype(bool)

    def take(self, token: int) -> None:
        """Go on after a token.

        Raises:
            ValueError: it may not come here.
        """
        if not self._matcher.consume_token(token):
            raise ValueError(f"constraint: token {token} may not come here: {self._matcher.get_error()}")
