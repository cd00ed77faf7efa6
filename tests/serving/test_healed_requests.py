"""Token healing over HTTP: on by default, off where tokens are given or looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from running_server import Running, running

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.serving.settings import Settings

PROMPT = "def add(a, b):\n    return "
WORD = "def add(a, b):\n    ret"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def healing(generator: CodeGenerator) -> Iterator[Running]:
    """A server with the default settings."""
    with running(generator) as one:
        yield one


def expected(server: Running, prompt: str | list[str], healed: bool, **options: Any) -> list[str]:
    found = server.generator.generate(
        prompt,
        **{
            "max_length": 8,
            "decode_strategy": "greedy_search",
            "repetition_penalty": 1.0,
            "truncation": None,
            "token_healing": healed,
            **options,
        },
    )
    return [one.text for completions in found for one in completions]


def texts(server: Running, **body: Any) -> list[str]:
    answer = server.post({**GREEDY, **body})
    assert answer.status_code == 200, answer.text
    return [choice["text"] for choice in answer.json()["choices"]]


def streamed(server: Running, **body: Any) -> tuple[str, list[dict[str, Any]]]:
    answer = server.post({**GREEDY, **body, "stream": True})
    assert answer.status_code == 200, answer.text
    lines = [one.removeprefix("data: ") for one in answer.text.splitlines() if one]
    choices = [json.loads(one)["choices"][0] for one in lines if one != "[DONE]"]
    return "".join(one["text"] for one in choices), choices


def test_prompts_are_healed_where_nothing_is_said(healing: Running):
    server = healing
    prompts = [PROMPT, WORD]
    plain, healed = expected(server, prompts, False), expected(server, prompts, True)
    assert healed[0].startswith("a + b")
    assert not {*plain} & {*healed}
    assert texts(server, prompt=prompts) == healed
    assert texts(server, prompt=prompts, token_healing=None) == healed
    assert texts(server, prompt=prompts, token_healing=False) == plain
    assert [streamed(server, prompt=one)[0] for one in prompts] == healed
    sampled = {"num_return_sequences": 2, "seed": 4, "decode_strategy": "sampling"}
    some = expected(server, PROMPT, True, temperature=0.5, top_k=0, **sampled)
    assert texts(server, prompt=PROMPT, temperature=0.5, seed=4, n=2) == some
    body = server.post({**GREEDY, "prompt": PROMPT}).json()
    kept = len(server.generator.tokenizer.encode(PROMPT)) - 1
    assert body["usage"]["prompt_tokens"] == kept


def test_tokens_are_as_they_are_unless_asked_for(healing: Running):
    server = healing
    ids = server.generator.tokenizer.encode(PROMPT)
    [plain], [healed] = expected(server, PROMPT, False), expected(server, PROMPT, True)
    assert texts(server, prompt=ids) == [plain]
    assert texts(server, prompt=ids, token_healing=True) == [healed]
    assert texts(server, prompt=PROMPT, logprobs=1) == [plain]
    assert texts(server, prompt=PROMPT, truncate_prompt_tokens=7) != [plain]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
def test_an_answer_has_the_prompt_as_it_was_given(healing: Running, stream: bool, echo: bool):
    [healed] = expected(healing, WORD, True)
    body = {"prompt": WORD, "echo": echo}
    found = streamed(healing, **body)[0] if stream else texts(healing, **body)[0]
    assert found == (WORD + healed if echo else healed)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_of_all_tokens(healing: Running, stream: bool):
    """Those that spell the prompt's end begin before the text: their offsets are below 0."""
    body = {"prompt": WORD, "logprobs": 1, "token_healing": True}
    if stream:
        text, parts = streamed(healing, **body)
        reported = [part["logprobs"] for part in parts]
    else:
        [choice] = healing.post({**GREEDY, **body}).json()["choices"]
        text, reported = choice["text"], [choice["logprobs"]]
    tokens = [token for one in reported for token in one["tokens"]]
    offsets = [offset for one in reported for offset in one["text_offset"]]
    assert "".join(tokens) == "ret" + text
    assert (tokens[0], offsets[0]) == ("return", -3)
    assert offsets[1] == len(tokens[0]) - 3


def test_what_does_not_go_with_it(healing: Running):
    asked = {**GREEDY, "prompt": PROMPT, "token_healing": True, "echo": True, "logprobs": 0}
    answer = healing.post(asked)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "token_healing"
    assert error["message"].startswith("token_healing does not go with logprobs: ")
    assert texts(healing, prompt=PROMPT, echo=True, max_tokens=0, token_healing=True) == [PROMPT]
    answer = healing.post({"prompt": "x", "token_healing": "yes"})
    assert answer.json()["error"]["param"] == "token_healing"


def test_a_server_may_leave_prompts_as_they_are(serve: Callable[..., Running]):
    server = serve(Settings(token_healing=False))
    assert texts(server, prompt=PROMPT) == expected(server, PROMPT, False)
    assert texts(server, prompt=PROMPT, token_healing=True) == expected(server, PROMPT, True)
    with pytest.raises(TypeError, match=r"^token_healing must be True or False, got 1$"):
        Settings(token_healing=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [PROMPT, WORD])
def test_dialects_heal(healing: Running, prompt: str):
    [healed] = expected(healing, prompt, True)
    for details in (False, True):
        given = {"max_new_tokens": 8, "details": details}
        answer = healing.post({"inputs": prompt, "parameters": given}, "/generate").json()
        assert answer["generated_text"] == healed
        if details:
            parts = answer["details"]["tokens"]
            assert "".join(part["text"] for part in parts) == healed
            assert len(parts) == answer["details"]["generated_tokens"]
    streamed_ = healing.post({"inputs": prompt, "parameters": given}, "/generate_stream").text
    events = [json.loads(line[5:]) for line in streamed_.splitlines() if line]
    assert "".join(one["token"]["text"] for one in events) == healed
    assert events[-1]["generated_text"] == healed
    options = {"temperature": 0, "num_predict": 8, "repeat_penalty": 1.0}
    for truncate in (True, False):
        body = {"model": "m", "prompt": prompt, "stream": False, "options": options}
        answer = healing.post({**body, "truncate": truncate}, "/api/generate").json()
        assert answer["response"] == healed
    answer = healing.post({**body, "logprobs": True}, "/api/generate").json()
    assert answer["response"] == expected(healing, prompt, False)[0]
    body = {**GREEDY, "prompt": prompt}
    answer = healing.post(body, "/v1/engines/codegen/completions").json()
    assert answer["choices"][0]["text"] == healed
