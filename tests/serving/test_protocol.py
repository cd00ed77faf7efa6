"""OpenAI's completions API, field by field."""

from __future__ import annotations

import itertools
import json
import logging
import re
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_server import PATIENCE, Running, wait_until

from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.serving.protocol import CompletionRequest
from paddlenlp_codegen_task.serving.settings import Settings

PROMPT = "def add(a, b):\n    "
GREEDY = {"temperature": 0, "max_tokens": 8}


def choices(server: Running, **body: Any) -> list[dict[str, Any]]:
    answer = server.post(body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def text(server: Running, **body: Any) -> str:
    [choice] = choices(server, **{"prompt": PROMPT, **GREEDY, **body})
    return choice["text"]


def refused(server: Running, body: Any, status: int = 400, path: str = "/v1/completions") -> Any:
    """The error of a body that is none."""
    answer = server.post(body, path) if not isinstance(body, bytes) else send(server, body, path)
    assert answer.status_code == status, answer.text
    [(name, error)] = answer.json().items()
    assert name == "error"
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 320
    assert "\n" not in error["message"]
    return error


def send(server: Running, body: bytes, path: str = "/v1/completions") -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(server.url + path, content=body, headers=headers, timeout=PATIENCE)


def test_an_answer_has_the_shape_of_openai_s(server: Running) -> None:
    body = server.post({"model": "any", "prompt": PROMPT, "user": "u", **GREEDY}).json()
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}
    assert body["id"].startswith("cmpl-")
    assert (body["object"], body["model"]) == ("text_completion", server.generator.name)
    [choice] = body["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
    [[expected]] = server.generator.generate(
        PROMPT,
        max_length=8,
        decode_strategy="greedy_search",
        truncation=None,
        repetition_penalty=1.0,
    )
    assert choice["text"] == expected.text
    tokens = len(server.generator.tokenizer.encode(PROMPT))
    assert body["usage"]["prompt_tokens"] == tokens
    assert body["usage"]["completion_tokens"] == len(expected.token_ids)
    assert body["usage"]["total_tokens"] == tokens + len(expected.token_ids)


SAMPLED = {"prompt": PROMPT, "seed": 11, "max_tokens": 12}


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({}, {}),
        ({"temperature": 0.3}, {"temperature": 0.3}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"top_k": 3}, {"top_k": 3}),
        ({"top_k": -1}, {}),
        ({"min_p": 0.2}, {"min_p": 0.2}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"presence_penalty": 2.0}, {"presence_penalty": 2.0}),
        ({"frequency_penalty": 2}, {"frequency_penalty": 2.0}),
        ({"logit_bias": {"65": 100}}, {"logit_bias": {65: 100.0}}),
        ({"ignore_eos": True, "max_tokens": 60}, {"ignore_eos": True, "max_length": 60}),
        ({"min_tokens": 12}, {"min_length": 12}),
        ({"stop_token_ids": [*range(200, 400)]}, {"stop_token_ids": range(200, 400)}),
        ({"stop_token_ids": []}, {}),
        ({"n": 3}, {"num_return_sequences": 3}),
        ({"n": 2, "best_of": 4}, {"num_return_sequences": 2, "best_of": 4}),
        ({"best_of": 1}, {}),
        ({"stop": "return"}, {"stop": "return"}),
        ({"stop": ["1", "2", "3", "(", "\n", "x"]}, {"stop": ["1", "2", "3", "(", "\n", "x"]}),
        ({"truncation": "python", "max_tokens": 60}, {"truncation": "python", "max_length": 60}),
        ({"seed": -5}, {"seed": 2**64 - 5}),
        (
            {"use_beam_search": True, "n": 2, "best_of": 3, "length_penalty": 0.5},
            {"decode_strategy": "beam_search", "num_beams": 3, "num_return_sequences": 2}
            | {"length_penalty": 0.5},
        ),
    ],
    ids=str,
)
def test_each_field_is_the_option_of_the_generator(
    server: Running, body: dict[str, Any], options: dict[str, Any]
):
    found = choices(server, **{**SAMPLED, **body})
    plain: dict[str, Any] = {
        "max_length": 12,
        "seed": 11,
        "truncation": None,
        "repetition_penalty": 1.0,
    }
    if "decode_strategy" not in options:
        plain |= {"decode_strategy": "sampling", "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    [expected] = server.generator.generate(PROMPT, **{**plain, **options})
    assert [one["text"] for one in found] == [one.text for one in expected]
    assert [one["index"] for one in found] == list(range(len(expected)))
    reasons = {"eos": "stop", "stop": "stop", "length": "length"}
    assert [one["finish_reason"] for one in found] == [reasons[o.finish_reason] for o in expected]


NULLABLE = [name for name in CompletionRequest.model_fields if name not in ("prompt", "seed")]


def test_null_is_the_default_and_what_is_unknown_is_ignored(server: Running):
    plain = choices(server, prompt=PROMPT, seed=1)
    nulls: dict[str, Any] = dict.fromkeys(NULLABLE)
    assert choices(server, prompt=PROMPT, seed=1, **nulls) == plain
    extra = {"tokenizer_config": {"path": "/etc/passwd"}, "parameters": [1], "extra": None}
    assert choices(server, prompt=PROMPT, seed=1, suffix="", **extra) == plain
    assert choices(server, prompt=PROMPT, seed=None)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("prompt", [1, {}, [], [[]], ["a", 1], [1, [2]], [1.5], [True], [None], [["a"]], [-1]]),
        ("prompt", [[10**6], [[1], [10**30]], ["a", None]]),
        ("max_tokens", [-1, 1.5, "16", True, 10**6, [16]]),
        ("temperature", [-0.1, 2.1, "1", True, [], 1e400]),
        ("top_p", [0, 1.1, -1, "1"]),
        ("n", [0, -1, 65, 1.5, "2"]),
        ("best_of", [0, 65, "2"]),
        ("stream", [1, "true", []]),
        ("stream_options", [1, [], {"include_usage": "yes"}]),
        ("logprobs", [-1, 21, True, "1"]),
        ("echo", ["yes", 0]),
        ("stop", [1, [1], [["a"]], {}, "", ["a", ""]]),
        ("presence_penalty", [-2.1, 2.1, "0"]),
        ("frequency_penalty", [-2.1, 2.1, "0"]),
        ("logit_bias", [1, [], {"a": 1}, {"1": "x"}, {"1": 101}, {"-1": 1}, {"999999": 1}]),
        ("seed", [1.5, "1", True]),
        ("user", [1, []]),
        ("model", [1, {}]),
        ("suffix", [1, "return"]),
        ("top_k", [-2, 1.5]),
        ("min_p", [-0.1, 1.0, 1.1]),
        ("repetition_penalty", [0, -1]),
        ("ignore_eos", [1]),
        ("stop_token_ids", [1, "x", ["x"], [1.5], [True], [-1], [999999], {"1": 1}]),
        ("min_tokens", [-1, 17]),
        ("truncate_prompt_tokens", [0, -1, "1"]),
        ("truncation", [1, "no such", "\\nclass", "(a+)+$", ["python"]]),
    ],
)
def test_a_wrong_value_is_refused_by_its_field_s_name(
    server: Running, field: str, values: list[Any]
):
    for value in values:
        body = {"prompt": "x", field: value}
        written = json.dumps(body).replace("Infinity", "1e999").encode()
        error = refused(server, written)
        assert error["type"] == "invalid_request_error"
        assert error["param"] == field, (value, error)
        assert re.match(rf"{field}\b", error["message"]), error


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "prompt is required: a string, or a list of them"),
        ({"prompt": "x", "n": 3, "best_of": 2}, "best_of", "best_of must be n (3) at least, got 2"),
        (
            {"prompt": "x", "best_of": 2, "stream": True},
            "best_of",
            "best_of does not go with stream: its texts are ranked",
        ),
        (
            {"prompt": 1.5},
            "prompt",
            "prompt must be a string, token ids, or a list of strings or of lists of token ids",
        ),
        ({"prompt": "x", "min_tokens": 9, "max_tokens": 8}, "min_tokens", None),
        (
            {"prompt": "x", "use_beam_search": True, "length_penalty": 11.0},
            "length_penalty",
            None,
        ),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_told(
    server: Running, body: Any, param: str, message: str | None
):
    error = refused(server, body)
    assert error["param"] == param
    assert message in (None, error["message"])
    assert "max_length" not in error["message"]


def test_prompts_are_texts_or_tokens_and_answered_in_their_order(server: Running):
    encode = server.generator.tokenizer.encode
    texts = ["def f(x):", "import os\n", "for i in", "class A"]
    alone = [text(server, prompt=one) for one in texts]
    assert len(set(alone)) > 1
    ids = [encode(one) for one in texts]
    for prompts in (texts, ids):
        found = choices(server, prompt=prompts, n=2, **GREEDY)
        assert [one["index"] for one in found] == list(range(8))
        assert [one["text"] for one in found] == [one for one in alone for _ in range(2)]
    assert text(server, prompt=ids[0]) == alone[0]


@pytest.mark.parametrize("prompt", [None, ""])
def test_no_prompt_begins_a_new_document(server: Running, prompt: str | None):
    end = server.generator.tokenizer.eos_token_id
    assert text(server, prompt=prompt) == text(server, prompt=[end])
    [choice] = choices(server, prompt=prompt, echo=True, logprobs=0, **GREEDY)
    assert choice["logprobs"]["tokens"][0] == ""
    assert choice["logprobs"]["text_offset"][:2] == [0, 0]


def test_usage_counts_all_that_ran_and_what_was_cached(server: Running):
    tokenizer = server.generator.tokenizer
    prompts = ["x = 1\ny = 2\n" * 40, "import sys\n"]
    asked = {"prompt": prompts, "n": 1, "best_of": 3, "max_tokens": 5, "ignore_eos": True}
    body = server.post(asked).json()
    prompt_tokens = sum(len(tokenizer.encode(one)) for one in prompts)
    assert body["usage"]["prompt_tokens"] == prompt_tokens
    assert body["usage"]["completion_tokens"] == 2 * 3 * 5
    assert body["usage"]["total_tokens"] == prompt_tokens + 30
    again = server.post(asked).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 64 < again < prompt_tokens


def test_a_prompt_that_does_not_fit_is_told_how_many_do(server: Running):
    room = server.generator.config.n_positions
    long = [65] * (room - 3)
    error = refused(server, {"prompt": long, "max_tokens": 10})
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert f"has {room} tokens" in error["message"]
    assert f"the prompt has {room - 3} with max_tokens 10" in error["message"]
    assert f"at most {room - 10} fit" in error["message"]
    assert text(server, prompt=long, max_tokens=3)
    assert text(server, prompt=long, max_tokens=10, truncate_prompt_tokens=room - 10)


def test_the_beginning_is_dropped_where_the_server_is_told_to(serve: Any, server: Running):
    cutting = serve(Settings(overflow="truncate_left"))
    room = server.generator.config.n_positions
    ids = server.generator.tokenizer.encode("a = 1\nb = 2\n" * 400)[: room + 20]
    kept = server.generator.tokenizer.decode(ids[-(room - 8) :])
    [choice] = choices(cutting, prompt=ids, echo=True, **GREEDY)
    assert choice["text"] == kept + text(server, prompt=ids[-(room - 8) :])


def test_the_last_tokens_of_a_prompt_are_used(server: Running):
    ids = server.generator.tokenizer.encode(PROMPT)
    expected = text(server, prompt=ids[-3:])
    for prompt in (PROMPT, ids):
        assert text(server, prompt=prompt, truncate_prompt_tokens=3) == expected
        echoed = text(server, prompt=prompt, truncate_prompt_tokens=3, echo=True)
        assert echoed == server.generator.tokenizer.decode(ids[-3:]) + expected


# Log-probabilities and echo.


def check_logprobs(server: Running, choice: dict[str, Any], ids: list[int], count: int) -> None:
    """Assert that all tokens of a choice, `ids`, are reported: texts, offsets, the likeliest."""
    tokenizer, reported = server.generator.tokenizer, choice["logprobs"]
    assert set(reported) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert len({len(values) for values in reported.values()}) == 1
    assert len(reported["tokens"]) == len(ids)
    offset = 0
    for n, token_id in enumerate(ids):
        data = tokenizer.token_bytes(token_id)
        own, top = reported["token_logprobs"][n], reported["top_logprobs"][n]
        try:
            assert reported["tokens"][n] == data.decode()
        except UnicodeDecodeError:
            assert reported["tokens"][n] == "bytes:" + "".join(f"\\x{one:02x}" for one in data)
        else:
            at = reported["text_offset"][n]
            assert choice["text"][at : at + len(data.decode())] == data.decode()
        assert reported["text_offset"][n] >= offset
        offset = reported["text_offset"][n]
        if own is not None:
            assert own <= 1e-4
            assert top[reported["tokens"][n]] == own
            assert max(1, count) <= len(top) <= count + 1
        else:
            assert (n, top) == (0, None)


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_logprobs_of_the_completion(server: Running, count: int):
    [[expected]] = server.generator.generate(
        PROMPT, max_length=12, decode_strategy="greedy_search", truncation=None, logprobs=count,
        repetition_penalty=1.0, ignore_eos=True,
    )  # fmt: skip
    [choice] = choices(
        server, prompt=PROMPT, logprobs=count, temperature=0, max_tokens=12, ignore_eos=True
    )
    check_logprobs(server, choice, list(expected.token_ids), count)
    assert expected.logprobs is not None
    own = [next(iter(one.values())) for one in expected.logprobs]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize("most", [0, 1, 7])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_echo_with_logprobs_scores_the_prompt(
    server: Running, most: int, stream: bool, tokens: bool
):
    prompt = 'x = "你好 🦊"\nprint('
    ids = server.generator.tokenizer.encode(prompt)
    body = {
        "prompt": ids if tokens else prompt,
        "echo": True,
        "logprobs": 2,
        "temperature": 0,
        "max_tokens": most,
        "ignore_eos": True,
        "n": 2,
    }
    both = streamed_choices(server, **body) if stream else choices(server, **body)
    assert len(both) == 2
    for choice in both:
        new = choice["text"][len(prompt) :]
        assert choice["text"] == prompt + new
        [[expected]] = server.generator.generate(
            prompt, max_length=most, prompt_logprobs=2, decode_strategy="greedy_search",
            truncation=None, repetition_penalty=1.0, ignore_eos=True,
        )  # fmt: skip
        assert new == expected.text
        assert choice["finish_reason"] == "length"
        check_logprobs(server, choice, [*ids, *expected.token_ids], 2)
        assert expected.prompt_logprobs is not None
        own = [next(iter(one.values())) for one in expected.prompt_logprobs if one]
        assert choice["logprobs"]["token_logprobs"][1 : len(ids)] == pytest.approx(own, abs=1e-3)


def test_what_a_prompt_s_tokens_get_is_what_they_get_when_generated(server: Running):
    """Scoring a completion gives what the model gave it."""
    ids = server.generator.tokenizer.encode(PROMPT)
    [[one]] = server.generator.generate(
        PROMPT, max_length=20, logprobs=0, seed=3, truncation=None, temperature=1.0
    )
    given = [next(iter(each.values())) for each in one.logprobs or ()]
    [scored] = choices(server, prompt=[*ids, *one.token_ids], echo=True, logprobs=0, max_tokens=0)
    assert scored["logprobs"]["token_logprobs"][len(ids) :] == pytest.approx(given, abs=1e-3)


def test_echo_alone(server: Running):
    assert text(server, echo=True) == PROMPT + text(server)
    assert text(server, echo=True, max_tokens=0) == PROMPT


def test_no_tokens_are_no_text(server: Running):
    body = server.post({"prompt": [PROMPT, "x"], "max_tokens": 0, "n": 2, "logprobs": 1}).json()
    for choice in body["choices"]:
        assert (choice["text"], choice["finish_reason"]) == ("", "length")
        assert choice["logprobs"]["tokens"] == []
    assert body["usage"]["completion_tokens"] == 0


def test_half_a_character_is_reported_by_its_bytes(server: Running):
    """A fox is four bytes, which the built-in model has as several tokens."""
    ids = server.generator.tokenizer.encode("🦊")
    assert len(ids) > 1
    [choice] = choices(server, prompt=["x🦊"], echo=True, logprobs=0, max_tokens=0)
    halves = [one for one in choice["logprobs"]["tokens"] if one.startswith("bytes:\\x")]
    assert halves
    joined = b"".join(
        bytes.fromhex(one[6:].replace("\\x", "")) if one.startswith("bytes:") else one.encode()
        for one in choice["logprobs"]["tokens"]
    )
    assert joined.decode() == "x🦊"


def test_tokens_beyond_a_stop_are_not_reported(server: Running):
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 30, "logprobs": 1}
    [whole] = choices(server, **body)
    stop = whole["text"].strip()[3]
    [cut] = choices(server, **body, stop=stop)
    assert cut["finish_reason"] == "stop"
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    offsets = cut["logprobs"]["text_offset"]
    assert offsets == [one for one in whole["logprobs"]["text_offset"] if one < len(cut["text"])]


def streamed_choices(server: Running, **body: Any) -> list[dict[str, Any]]:
    """The choices of a stream, put together as a client would."""
    answer = server.post({**body, "stream": True})
    assert answer.status_code == 200, answer.text
    lines = [one for one in answer.text.split("\n\n") if one]
    assert lines[-1] == "data: [DONE]"
    found: dict[int, dict[str, Any]] = {}
    for line in lines[:-1]:
        for part in json.loads(line.removeprefix("data: "))["choices"]:
            into = found.setdefault(
                part["index"], {"text": "", "logprobs": None, "finish_reason": None}
            )
            assert into["finish_reason"] is None
            into["text"] += part["text"]
            into["finish_reason"] = part["finish_reason"]
            if part["logprobs"] is not None:
                into["logprobs"] = into["logprobs"] or {name: [] for name in part["logprobs"]}
                for name, values in part["logprobs"].items():
                    into["logprobs"][name] += values
    return [found[index] for index in sorted(found)]


# Other routes.


def test_models(server: Running):
    name = server.generator.name
    [model] = server.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == (name, "model")
    assert model["max_model_len"] == server.generator.config.n_positions
    assert server.get(f"/v1/models/{name}").json() == model
    answer = server.get("/v1/models/no/such")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_version(server: Running):
    assert re.fullmatch(r"[0-9.]+\w*", server.get("/version").json()["version"])


def test_tokens_of_a_text_and_back(server: Running):
    prompt = 'print("你好 🦊")\n\tx<|endoftext|>'
    answer = server.post({"prompt": prompt, "model": "any"}, "/tokenize").json()
    ids = server.generator.tokenizer.encode(prompt, allow_special=False)
    assert answer == {
        "count": len(ids),
        "max_model_len": server.generator.config.n_positions,
        "tokens": ids,
        "token_strs": None,
    }
    named = server.post({"prompt": "a b", "return_token_strs": True}, "/tokenize").json()
    assert "".join(named["token_strs"]) == "a b"
    back = server.post({"tokens": ids}, "/detokenize").json()
    assert back == {"prompt": server.generator.tokenizer.decode(ids)}
    assert server.post({"prompt": ""}, "/tokenize").json()["tokens"] == []


@pytest.mark.parametrize("tokens", [None, "x", [1.5], [-1], ["1"], [10**9], [True], {}])
def test_no_tokens(server: Running, tokens: Any):
    assert refused(server, {"tokens": tokens}, path="/detokenize")["param"] == "tokens"
    assert refused(server, {"prompt": tokens if tokens != "x" else 1}, path="/tokenize")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/completions", 405), ("PUT", "/v1/models", 405)],
)
def test_what_is_not_there_is_told_as_openai_tells_it(
    server: Running, method: str, path: str, status: int
):
    answer = httpx.request(method, server.url + path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if status == 405:
        assert answer.headers["allow"]


def test_a_failure_is_500_in_the_same_shape(server: Running, monkeypatch: pytest.MonkeyPatch):
    """Of a single request; the server goes on."""
    plain = text(server)
    scheduler = server.scheduler()
    forward = scheduler._runtime.forward

    def fail(*_: Any) -> Any:
        raise RuntimeError(f"secret: {PROMPT}")

    monkeypatch.setattr(scheduler._runtime, "forward", fail)
    error = refused(server, {"prompt": PROMPT, **GREEDY}, 500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]
    monkeypatch.setattr(scheduler._runtime, "forward", forward)
    assert text(server) == plain


# Bodies that are none.

SECRET = "xyzzy-secret-prompt"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
WRONG: dict[str, list[Any]] = {
    "max_tokens": [-1, "x", 1.5, []],
    "temperature": [-1, 3, "hot", {}],
    "prompt": [1, {SECRET: SECRET}, [SECRET, 1], [[SECRET]], 1e9],
    "n": [0, -1, "x"],
    "logit_bias": [{SECRET: 1}, 1],
    "stop": [{}, [1, SECRET]],
    "truncation": [SECRET, 1],
    "suffix": [SECRET],
    "stream": [SECRET],
}


@st.composite
def malformed(draw: st.DrawFn) -> bytes:
    """A body with something wrong."""
    kind = draw(st.sampled_from(["no JSON", "cut", "no object", "field", "bytes"]))
    good = json.dumps({"prompt": SECRET, "max_tokens": 1}).encode()
    if kind == "no JSON":
        return draw(st.binary(max_size=40)) + b"}" + good
    if kind == "cut":
        return good[: draw(st.integers(0, len(good) - 1))]
    if kind == "bytes":
        at = draw(st.integers(12, 20))
        return good[:at] + draw(st.sampled_from([b"\xff", b"\x00", b"\\ud800", b'"'])) + good[at:]
    if kind == "no object":
        value = draw(json_values.filter(lambda one: not isinstance(one, dict)))
        return json.dumps(value).encode()
    field = draw(st.sampled_from(sorted(WRONG)))
    others = draw(st.dictionaries(st.text(max_size=8), json_values, max_size=3))
    wrong = draw(st.sampled_from(WRONG[field]))
    return json.dumps({"prompt": SECRET, **others, field: wrong}).encode()


def test_malformed_bodies_are_refused_with_a_line_each(
    server: Running, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "paddlenlp_codegen_task")
    sent = itertools.count(1)
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:

        @settings(
            max_examples=1000,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(malformed())
        def check(body: bytes) -> None:
            headers = {"x-request-id": f"m{next(sent)}"}
            answer = client.post("/v1/completions", content=body, headers=headers)
            assert answer.status_code in (400, 413, 422), (body, answer.text)
            error = answer.json()["error"]
            assert "\n" not in error["message"]
            assert SECRET not in answer.text

        check()
    count = next(sent) - 1
    wait_until(lambda: len(caplog.records) >= count)  # a line comes right after its answer
    lines = [one.getMessage() for one in caplog.records]
    ids = [line.rpartition(" id=m")[2] for line in lines]
    assert sorted(ids, key=int) == [str(n) for n in range(1, count + 1)]
    assert not [line for line in lines if SECRET in line or "\n" in line]
    assert text(server)


def test_a_body_that_is_too_long_is_413(serve: Any):
    small = serve(Settings(max_body_bytes=1000))
    error = refused(small, {"prompt": "x" * 1000}, 413)
    assert "1000 bytes" in error["message"]
    assert text(small)


@pytest.mark.parametrize("depth", [100, 100_000])
def test_a_body_as_deep_as_it_likes_is_refused(server: Running, depth: int):
    refused(server, b'{"prompt": ' + b"[" * depth + b"]" * depth + b"}")


def test_limits_of_a_request(serve: Any):
    tight = serve(Settings(max_prompts=2, max_n=3))
    assert refused(tight, {"prompt": ["a"] * 3})["param"] == "prompt"
    assert refused(tight, {"prompt": "a", "n": 4})["param"] == "n"
    assert refused(tight, {"prompt": "a", "best_of": 4})["param"] == "best_of"
    assert len(choices(tight, prompt=["a", "b"], n=3, max_tokens=1)) == 6


def test_the_reference_agrees(server: Running):
    """Log-probabilities over HTTP are those of the plain forward pass."""
    from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
    from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
    from paddlenlp_codegen_task.model.weights import FusedWeights

    ids = server.generator.tokenizer.encode(PROMPT)
    with open_checkpoint(BUILTIN_FOLDER) as checkpoint:
        weights = FusedWeights(checkpoint, server.generator.config)
        logits = reference.forward(weights, ids).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    [choice] = choices(server, prompt=PROMPT, echo=True, logprobs=0, max_tokens=0)
    own = [expected[n, token] for n, token in enumerate(ids[1:])]
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(own, abs=1e-3)
