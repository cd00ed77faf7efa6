"""`suffix` where the model infills, and where it does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from infilling_model import write_infilling_model, write_plain_model
from running_server import Running

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.serving.settings import Settings

PREFIX, SUFFIX = "def add(a, b):\n    ", "\n\nprint(add(1, 2))\n"
GREEDY: dict[str, Any] = {
    "decode_strategy": "greedy_search",
    "repetition_penalty": 1.0,
    "max_length": 12,
}


OPTIONS: dict[str, Any] = {
    "engine": "onnxruntime", "precision": "fp32", "device": "cpu", "num_threads": 1
}  # fmt: skip


@pytest.fixture(scope="module")
def infilling(tmp_path_factory: pytest.TempPathFactory, home_path: Path) -> Iterator[CodeGenerator]:
    folder = write_infilling_model(tmp_path_factory.mktemp("codegen2"))
    with CodeGenerator.from_pretrained(folder, home_path=home_path, **OPTIONS) as found:
        yield found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, home_path: Path) -> Iterator[CodeGenerator]:
    """A model that does not infill."""
    folder = write_plain_model(tmp_path_factory.mktemp("plain"))
    with CodeGenerator.from_pretrained(folder, home_path=home_path, **OPTIONS) as found:
        yield found


@pytest.fixture
def server(serve: Callable[..., Running], infilling: CodeGenerator) -> Running:
    return serve(Settings(truncation="python"), infilling)


def test_a_suffix_is_what_stands_after(server: Running, infilling: CodeGenerator) -> None:
    [middle] = infilling.infill(PREFIX, SUFFIX, **GREEDY)
    body = {"prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 12, "temperature": 0}
    answer = server.post(body).json()
    [choice] = answer["choices"]
    assert choice["text"] == middle.text  # the server's truncation is none of a middle's
    assert answer["usage"]["prompt_tokens"] == middle.prompt_tokens
    lines = server.post({**body, "stream": True}).text.splitlines()
    streamed = [json.loads(one[6:]) for one in lines if one.startswith("data: {")]
    assert "".join(one["choices"][0]["text"] for one in streamed) == middle.text
    [echoed] = server.post({**body, "echo": True}).json()["choices"]
    assert echoed["text"] == PREFIX + middle.text
    [cut] = server.post({**body, "truncation": "salesforce"}).json()["choices"]
    assert middle.text.startswith(cut["text"])


def test_copilots_suffix_and_ollamas(server: Running, infilling: CodeGenerator) -> None:
    [middle] = infilling.infill(PREFIX, SUFFIX, **GREEDY)
    body = {"prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 12, "temperature": 0}
    answer = server.post({**body, "frequency_penalty": 1}, "/v1/engines/codegen/completions")
    assert answer.json()["choices"][0]["text"] == middle.text
    options = {"num_predict": 12, "temperature": 0, "repeat_penalty": 1.0}
    found = server.post(
        {
            "model": "x", "prompt": PREFIX, "suffix": SUFFIX, "options": options, "stream": False
        },
        "/api/generate",
    )  # fmt: skip
    assert found.json()["response"] == middle.text


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"prompt": [1, 2]}, "suffix"),
        ({"truncate_prompt_tokens": 3}, "suffix"),
        ({"prompt": "x = 1\n" * 100}, "prompt"),
    ],
)
def test_what_does_not_go_with_it(server: Running, body: dict[str, Any], named: str) -> None:
    answer = server.post({"prompt": PREFIX, "suffix": SUFFIX, **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == named


def test_names_of_tokens_are_text(server: Running, infilling: CodeGenerator) -> None:
    text = "x = '<|endoftext|><mask_1>'"
    plain = infilling.tokenizer.encode(text, allow_special=False)
    body = {"prompt": text, "max_tokens": 1, "token_healing": False}
    assert server.post(body).json()["usage"]["prompt_tokens"] == len(plain)
    assert server.post({"prompt": text}, "/tokenize").json()["tokens"] == plain


def test_a_model_that_does_not_infill(serve: Callable[..., Running], plain: CodeGenerator) -> None:
    server = serve(None, plain)
    answer = server.post({"prompt": PREFIX, "suffix": SUFFIX})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "suffix"
    answer = server.post({"model": "x", "prompt": PREFIX, "suffix": SUFFIX}, "/api/generate")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("suffix: this model does not infill")
    # Copilot cannot be told to leave it out.
    body = {"prompt": PREFIX, "max_tokens": 4, "temperature": 0}
    path = "/v1/engines/codegen/completions"
    one, other = (server.post({**body, **more}, path).json() for more in ({}, {"suffix": SUFFIX}))
    assert one["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]
    assert one["choices"] == other["choices"]
