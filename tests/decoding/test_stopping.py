import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlenlp_codegen_task.decoding.stopping import StopChecker
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.truncation import DEFAULT_TRUNCATION, Truncator

sys.path.insert(0, str(Path(__file__).parents[1]))
from codegen_tokenizer import write_codegen_tokenizer
from test_truncation import FRAGMENTS, patterns


class Tokens:
    """A tokenizer made of a list of byte strings."""

    def __init__(self, vocabulary: list[bytes]) -> None:
        self.vocabulary = vocabulary

    def token_bytes(self, token_id: int) -> bytes:
        return self.vocabulary[token_id]

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.vocabulary[n] for n in ids).decode("utf-8", "replace")


SPLIT = [bytes([b]) for b in "汉😀é".encode()]  # characters spread over tokens
INVALID = [b"\xff", b"\xc0", b"\xe6\xb1", b"\xf0\x9f", b"\x80", b"\xed\xa0", b"\n\xe6", b"\x89#"]
TOKENS = Tokens([b"", *(one.encode() for one in FRAGMENTS), *SPLIT, *INVALID])
streams = st.lists(st.integers(0, len(TOKENS.vocabulary) - 1), max_size=16)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.none(), patterns), streams)
def test_stopping_early_gives_the_text_of_the_whole_stream(
    pattern: str | list[str] | None, ids: list[int]
):
    truncator = Truncator(pattern)
    checker = StopChecker(TOKENS, truncator.scanner())
    stopped, settled = False, ""
    for n, token_id in enumerate(ids, start=1):
        now = checker.feed(token_id)
        assert now or not stopped
        assert checker.text == truncator.truncate(TOKENS.decode(ids[:n]))
        assert checker.text.startswith(settled)
        assert checker.settled.startswith(settled)
        assert not now or checker.settled == checker.text
        stopped, settled = now, checker.settled
    assert checker.text == truncator.truncate(TOKENS.decode(ids))


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=5), max_size=12))
def test_invalid_bytes_become_what_decoding_the_whole_gives(pieces: list[bytes]):
    checker = StopChecker(Tokens(pieces), Truncator(None).scanner())
    for n in range(len(pieces)):
        assert not checker.feed(n)
        assert checker.text == b"".join(pieces[: n + 1]).decode("utf-8", "replace")
    assert checker.text.startswith(checker.settled)


@settings(max_examples=500, deadline=None)
@given(streams)
def test_default_stops_at_the_first_token_that_decides(ids: list[int]):
    truncator = Truncator()
    checker = StopChecker(TOKENS, truncator.scanner())
    continuations = [*TOKENS.vocabulary, b"z", b"\nclass", b"lass", b"rint", b"ss", b"nt"]
    fed = b""
    for token_id in ids:
        fed += TOKENS.token_bytes(token_id)
        kept = truncator.truncate(fed.decode("utf-8", "replace"))
        more = {truncator.truncate((fed + one).decode("utf-8", "replace")) for one in continuations}
        assert checker.feed(token_id) == (more == {kept})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("codegen")
    return Tokenizer.from_folder(write_codegen_tokenizer(folder))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('\n    print("你好 😀")\n\n\nprint(hello())\nx = 1\n', '\n    print("你好 😀")'),
        ("\n\treturn 1\r\n\n@decorator\ndef f():\n", "\n\treturn 1"),
        ("\n    return 1\n\n    # comment\n\n# end\nmore", "\n    return 1\n\n    # comment"),
        ("    pass\n\n\nclass A:\n    pass", "    pass"),
    ],
)
def test_stops_where_a_programmer_would(tokenizer: Tokenizer, text: str, kept: str):
    checker = StopChecker(tokenizer, Truncator(DEFAULT_TRUNCATION).scanner())
    ids = tokenizer.encode(text)
    stops = [checker.feed(token_id) for token_id in ids]
    assert checker.text == kept
    first = stops.index(True)
    assert all(stops[first:])
    assert first + 1 < len(ids)
    assert tokenizer.decode(ids[:first]).rstrip() == kept


def test_ids_without_text_change_nothing(tokenizer: Tokenizer):
    checker = StopChecker(tokenizer, Truncator().scanner())
    for token_id in [
        *tokenizer.encode("a ="),
        tokenizer.eos_token_id,
        50300,
        *tokenizer.encode(" 1"),
    ]:
        assert not checker.feed(token_id)
    assert checker.text == "a = 1"
