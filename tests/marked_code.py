"""Code in which `«` marks where the prompt ends, and `»` where its completion should."""

from __future__ import annotations

from paddlenlp_codegen_task.truncation import Truncator


def check(preset: str, marked: str) -> None:
    """Assert that the completion ends there, whole or a character at a time, with any line end."""
    for code in (marked, marked.replace("\n", "\r\n"), marked.replace("\n", "\r")):
        prompt, rest = code.split("«")
        kept, more = rest.split("»")
        truncator = Truncator(preset)
        assert truncator.truncate(kept + more, prompt) == kept
        scanner = truncator.scanner(prompt)
        decision = None
        for n, character in enumerate(kept + more, start=1):
            decision = scanner.feed(character)
            assert decision == truncator.decided((kept + more)[:n], prompt)
            assert kept.startswith(scanner.settled)
            assert decision in (None, kept)
        assert decision == kept


def check_from_anywhere(preset: str, marked: str) -> None:
    """Assert it for every longer prompt, too: the end is that of what the prompt has begun.

    Longer up to the last brace, if there is one: after that, the function is complete.
    """
    check(preset, marked)
    prompt, rest = marked.split("«")
    kept, more = rest.split("»")
    truncator = Truncator(preset)
    for n in range(kept.rfind("}") + 1 or len(kept)):
        assert truncator.truncate(kept[n:] + more, prompt + kept[:n]) == kept[n:]
