"""CodeGen's tokenizer: byte-level BPE as GPT-2's, and runs of blanks as added tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from paddlenlp_codegen_task.checks import shown
from paddlenlp_codegen_task.files import read_json
from paddlenlp_codegen_task.model.spelling import Spelling

END_OF_TEXT = "<|endoftext|>"
_ID = re.compile("[0-9]{1,10}")
_BRACKETED = re.compile(r"<[^\s<>]+>")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """Text to token ids and back; gives the ids of transformers' CodeGenTokenizerFast.

    Nothing in it changes after it is made, so threads may share one.

    Attributes:
        vocab_size: one more than the largest id; a model's own is often padded beyond it.
        eos_token_id: the id that ends a text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
        """Wrap `backend`; `settings`, from tokenizer_config.json, name the special tokens.

        Raises:
            ValueError: `backend` is not byte-level, has no token for the end of a text, or two of
                one id; or the settings ask for a token before each text.
        """
        if not isinstance(backend.decoder, tokenizers.decoders.ByteLevel):
            raise ValueError("not a byte-level BPE tokenizer, as CodeGen's is")
        if _flag(settings, "add_bos_token"):
            raise ValueError("add_bos_token is not supported: nothing is put before a text")
        self._backend = backend
        eos_token = _content(settings.get("eos_token")) or END_OF_TEXT
        eos_token_id = backend.token_to_id(eos_token)
        if eos_token_id is None:
            raise ValueError(f"end of text token {shown(eos_token)} is not in the vocabulary")
        self.eos_token_id: int = eos_token_id
        ids = backend.get_vocab(with_added_tokens=True).values()
        # The tokenizers library drops what is beyond 32 bits of an id.
        if len(set(ids)) < len(ids):
            raise ValueError("two tokens of the vocabulary have the same id")
        self.vocab_size = max(ids) + 1
        self._bytes: dict[int, bytes] = {}  # of the tokens that were added to BPE's own
        special = _special_tokens(settings)
        for token_id, added in backend.get_added_tokens_decoder().items():
            hidden = added.special or added.content in special
            self._bytes[token_id] = b"" if hidden else added.content.encode("utf-8")
        self._bytes[eos_token_id] = b""
        self._added = frozenset(self._bytes)
        self._special = frozenset(special)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read a tokenizer as transformers or PaddleNLP saves it, leaving the folder as it is.

        tokenizer.json is enough; without it vocab.json and merges.txt are needed. The added
        tokens then come from tokenizer_config.json (`added_tokens_decoder`) and added_tokens.json.

        Raises:
            FileNotFoundError: files are missing.
            ValueError: a file is broken, or the files do not fit together.
        """
        settings = {
            **_read_if_there(folder / "tokenizer_config.json"),
            **_read_if_there(folder / "special_tokens_map.json"),
        }
        added = _read_if_there(folder / "added_tokens.json")
        try:
            return cls(_read_backend(folder, added, settings), settings)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None

    def encode(self, text: str, allow_special: bool = True) -> list[int]:
        """Return the ids of `text`, nothing put before or after.

        Args:
            text: any text.
            allow_special: whether a special token's name in the text, such as "<|endoftext|>" or
                "<mask_1>", becomes that token, as it does in transformers; else it is text like
                any other, as tiktoken's encode_ordinary has it: for texts that nobody has read.

        Raises:
            ValueError: `text` holds a lone surrogate, which UTF-8 cannot express.
        """
        backend = self._backend if allow_special else self._ordinary
        try:
            ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            if isinstance(text, str):
                raise ValueError("the text holds a lone surrogate, not valid Unicode") from None
            raise
        return ids

    def token_id(self, name: str) -> int | None:
        """Return the id of the token with this name, such as "<sep>"; None if there is none."""
        found: int | None = self._backend.token_to_id(name)
        return found

    @cached_property
    def _ordinary(self) -> tokenizers.Tokenizer:
        """The backend, but for the names of special tokens in texts.

        Those are the tokens that are called special, and those in angle brackets, as CodeGen2's,
        which its files list like any other. Runs of blanks stay tokens.
        """
        values = json.loads(self._backend.to_str())
        for token in values["added_tokens"]:
            name = token["content"]
            special = token["special"] or name in self._special
            token["special"] = bool(special or _BRACKETED.fullmatch(name))
        backend = tokenizers.Tokenizer.from_str(json.dumps(values))
        backend.encode_special_tokens = True
        return backend

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`: every blank as it was, special tokens left out.

        Bytes that are not UTF-8 become U+FFFD.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    @cached_property
    def spelling(self) -> Spelling:
        """Which tokens begin with some bytes; made when it is first asked for."""
        return Spelling([self.token_bytes(token_id) for token_id in range(self.vocab_size)])

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for.

        They are empty for special tokens and for ids beyond the vocabulary, which a model with a
        padded vocabulary may generate. A character may be spread over several tokens.
        """
        known = self._bytes.get(token_id)
        if known is not None:
            return known
        if not 0 <= token_id < self.vocab_size:
            return b""
        self._bytes[token_id] = found = self._read_bytes(token_id)
        return found

    def is_ordinary(self, token_id: int) -> bool:
        """Whether a token stands for text as one of BPE's own: neither added to it nor special."""
        return token_id not in self._added and self.token_bytes(token_id) != b""

    def _read_bytes(self, token_id: int) -> bytes:
        token: str | None = self._backend.id_to_token(token_id)
        if token is None:  # a gap
            return b""
        try:
            return bytes([_BYTES[character] for character in token])
        except KeyError:  # not BPE's own, but added as text
            return token.encode("utf-8")


def _read_backend(
    folder: Path, added: dict[str, Any], settings: dict[str, Any]
) -> tokenizers.Tokenizer:
    """tokenizer.json as it is; else one of vocab.json, merges.txt and the added tokens."""
    whole = folder / "tokenizer.json"
    if whole.is_file():
        backend = _load(tokenizers.Tokenizer.from_file, whole)
        backend.no_truncation()
        backend.no_padding()
        return backend
    parts = [folder / "vocab.json", folder / "merges.txt"]
    if missing := [path.name for path in parts if not path.is_file()]:
        raise FileNotFoundError(f"{folder} has no tokenizer.json, and no {' or '.join(missing)}")
    backend = tokenizers.Tokenizer(_load(tokenizers.models.BPE.from_file, *parts))
    prefix = _flag(settings, "add_prefix_space")
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = tokenizers.decoders.ByteLevel()
    _add_tokens(backend, added, settings)
    return backend


def _add_tokens(
    backend: tokenizers.Tokenizer, ids: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Add the tokens of added_tokens.json (`ids`) and of `added_tokens_decoder`."""
    listed = settings.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise ValueError("tokenizer_config.json: added_tokens_decoder must be a JSON object")
    ids, options = dict(ids), {}
    for key, token in listed.items():
        content = _content(token)
        number = int(key) if _ID.fullmatch(key) else key  # JSON's keys are texts
        if ids.setdefault(content, number) != number:
            one, other = shown(ids[content]), shown(number)
            raise ValueError(f"added token {shown(content)} has two ids, {one} and {other}")
        options[content] = token if isinstance(token, dict) else {}
    for content, number in ids.items():
        if not content or type(number) is not int:
            raise ValueError(f"added token {shown(content)} has id {shown(number)}, not a number")
    # PaddleNLP does not list <|endoftext|> among the added tokens; transformers always adds it.
    special = _special_tokens(settings)
    known = {one: backend.token_to_id(one) for one in special}
    ids = {one: number for one, number in known.items() if number is not None} | ids
    for content in sorted(ids, key=ids.__getitem__):
        given = options.get(content, {})
        chosen = {name: bool(given.get(name)) for name in ("single_word", "lstrip", "rstrip")}
        chosen["special"] = content in special or bool(given.get("special"))
        chosen["normalized"] = bool(given.get("normalized", not chosen["special"]))
        backend.add_tokens([tokenizers.AddedToken(content, **chosen)])
        if (number := backend.token_to_id(content)) != ids[content]:
            raise ValueError(
                f"added token {shown(content)} should have id {shown(ids[content])}, but the one "
                f"that follows the vocabulary is {number}"
            )


def _load(read: Callable[..., Any], *paths: Path) -> Any:
    try:
        return read(*map(str, paths))
    except Exception as error:  # the tokenizers library raises nothing more specific
        names = " or ".join(path.name for path in paths)
        reason = " ".join(str(error).split())[:500]
        raise ValueError(f"broken {names}: {reason}") from None


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _flag(settings: dict[str, Any], name: str) -> bool:
    value = settings.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {shown(value)}")
    return bool(value)


def _content(token: Any) -> str:
    """Return a token's text: the files hold a token as a string or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _special_tokens(settings: dict[str, Any]) -> set[str]:
    named = [settings.get(name) for name in _NAMED_TOKENS]
    additional = settings.get("additional_special_tokens")
    named += additional if isinstance(additional, list) else []
    return {_content(token) for token in (END_OF_TEXT, *named)} - {""}


def _byte_alphabet() -> dict[str, int]:
    """Return the byte behind each character of GPT-2's vocabulary.

    Printable bytes stand for themselves, the others for U+0100 onwards: bytes_to_unicode in
    https://github.com/openai/gpt-2/blob/master/src/encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + n): byte for n, byte in enumerate(others)
    }


_BYTES = _byte_alphabet()
