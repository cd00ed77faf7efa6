"""Which requests go to the same replica."""

from __future__ import annotations

import json
from typing import Any

import pytest

from paddlenlp_codegen_task.distributed.routing import key

CODE = "def number():\n    return 1\n" * 60


def key_of(body: Any, client: str = "192.0.2.1", **headers: str) -> str:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return key(client, named, body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize("field", ["prompt", "inputs"])
@pytest.mark.parametrize(
    "kind", [str, lambda text: [text, "other"], lambda text: list(map(ord, text))]
)
def test_a_prompt_that_grows_stays(field: str, kind: Any):
    def at(text: str) -> str:
        return key_of({field: kind(text), "max_tokens": len(text)})

    assert len({at(CODE[:length]) for length in range(1024, len(CODE), 50)}) == 1
    assert len({at(CODE[:length]) for length in range(256, 1024, 50)}) == 1
    assert len({at(CODE[:length]) for length in range(64, 256, 50)}) == 1
    assert len({at(CODE[:length]) for length in range(1, 64)}) == 1
    assert len({at(f"{n:<5}" + CODE) for n in range(100)}) == 100
    assert len({at("# A licence.\n" * 60 + f"{n:<5}" + CODE) for n in range(100)}) == 100


def test_a_session_stays_whatever_it_asks():
    assert key_of({"prompt": "a"}, x_session_id="s") == key_of({"prompt": "b"}, x_session_id="s")
    assert key_of({"user": "s"}) == key_of({"user": "s", "prompt": CODE})
    assert key_of({"user": "s", "prompt_cache_key": "t"}) == key_of({"prompt_cache_key": "t"})
    assert key_of({"user": "s"}) != key_of({"user": "t"})
    assert key_of({"user": "s"}, x_session_id="t") != key_of({"user": "s"})


def test_who_asks_is_part_of_it():
    prompt = {"prompt": CODE}
    different = {
        key_of(prompt),
        key_of(prompt, client="192.0.2.2"),
        key_of(prompt, authorization="Bearer a"),
        key_of(prompt, api_key="a"),
    }
    assert len(different) == 4


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[1, 2]",
        b"null",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": [[1, 2], [3]]}',
        b'{"prompt": {"a": 1}, "user": 5, "prompt_cache_key": ["x"]}',
        b'{"prompt": [null]}',
    ],
)
def test_anything_has_a_key_that_tells_nothing(body: bytes):
    found = key_of(body)
    assert len(found) == 32
    assert int(found, 16) >= 0
    assert found == key_of(body)
