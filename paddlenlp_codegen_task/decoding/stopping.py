"""When a sequence's text is decided, so that generating it can end."""

from __future__ import annotations

import codecs
from typing import Protocol

from paddlenlp_codegen_task.truncation import Scanner


class TokenBytes(Protocol):
    """What is asked of a tokenizer: `paddlenlp_codegen_task.model.tokenizer.Tokenizer` has it."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for."""


class StopChecker:
    """Follows one sequence token by token and tells when its truncated text is decided.

    A token may end within a character: such bytes are held back until the character is whole, or
    known never to be.
    """

    def __init__(self, tokenizer: TokenBytes, scanner: Scanner, healed: int = 0) -> None:
        """Follow what `scanner` is fed, which has read the prompt; it is the checker's own.

        Args:
            tokenizer: says what tokens stand for.
            scanner: decides the text.
            healed: how many bytes of the tokens are the prompt's own, taken back and spelled again.
        """
        self._token_bytes = tokenizer.token_bytes
        self._scanner = scanner
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decision: str | None = None
        self._healed = healed

    def feed(self, token_id: int) -> bool:
        """Append a generated token; return whether no further token can change `text`."""
        if self._decision is None:
            new = self._token_bytes(token_id)
            if self._healed:
                self._healed, new = max(self._healed - len(new), 0), new[self._healed :]
            delta = self._decoder.decode(new)
            if delta:
                self._decision = self._scanner.feed(delta)
        return self._decision is not None

    @property
    def text(self) -> str:
        """The truncated text of all tokens fed, without the prompt's own end."""
        if self._decision is not None:
            return self._decision
        held_back, _ = self._decoder.getstate()
        return self._scanner.copy().end(held_back.decode("utf-8", "replace"))

    @property
    def settled(self) -> str:
        """What `text` begins with, whatever tokens follow: it can be shown while generating."""
        return self._scanner.settled if self._decision is None else self._decision
