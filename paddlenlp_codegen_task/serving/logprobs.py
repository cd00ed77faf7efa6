"""Log-probabilities as OpenAI's legacy API writes them."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from paddlenlp_codegen_task.serving.protocol import MINUS_INFINITY


class TokenBytes(Protocol):
    """What is asked of a tokenizer."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for."""


class LogProbs:
    """Follows the tokens of one text, and writes those whose text has been handed out."""

    def __init__(self, tokenizer: TokenBytes, offset: int = 0) -> None:
        """Begin with a text's first token.

        Args:
            tokenizer: says what tokens stand for.
            offset: characters of the answer's text before it; below 0 if it begins before that.
        """
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = offset
        self._waiting: deque[tuple[int, dict[int, float] | None]] = deque()

    def add(self, tokens: Iterable[dict[int, float]]) -> None:
        """Append tokens: for each the log-probabilities, its own first."""
        for one in tokens:
            self.add_token(next(iter(one)), one)

    def add_token(self, token_id: int, log_probs: dict[int, float] | None) -> None:
        """Append a token; None for a prompt's first, of which nothing is known."""
        self._waiting.append((token_id, log_probs))

    def write(self, end: int | None = None) -> dict[str, Any]:
        """Those not written yet that begin before `end` characters of the answer's text; or all.

        Of tokens that stand for nothing, such as special ones, also those at its end.
        """
        tokens: list[str] = []
        own: list[float | None] = []
        top: list[dict[str, float] | None] = []
        offsets: list[int] = []
        while self._waiting and self._is_due(end):
            token_id, log_probs = self._waiting.popleft()
            tokens.append(self._text(token_id))
            offsets.append(self._offset)
            own.append(None if log_probs is None else _finite(log_probs[token_id]))
            if log_probs is None:
                top.append(None)
            else:
                texts: dict[str, float] = {}
                for one, log_prob in log_probs.items():  # of two alike, the first
                    texts.setdefault(self._text(one), _finite(log_prob))
                top.append(texts)
            self._offset += len(self._decoder.decode(self._token_bytes(token_id)))
        return {
            "tokens": tokens,
            "token_logprobs": own,
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def _is_due(self, end: int | None) -> bool:
        if end is None or self._offset < end:
            return True
        return self._offset == end and not self._token_bytes(self._waiting[0][0])

    def _text(self, token_id: int) -> str:
        """A token's text; of one that ends within a character, its bytes, as OpenAI writes them."""
        data = self._token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of a text, and of the one that follows it."""
    return {name: [*values, *second[name]] for name, values in first.items()}


def _finite(log_prob: float) -> float:
    return max(log_prob, MINUS_INFINITY)
